"""How fast are exact AUC and GAUC against scikit-learn, and do they agree with it?

Rows like a click log: 5 % clicks, float32 scores, 0.09 users per row. scikit-learn's GAUC is a loop over users; over
all of them it takes minutes, so it is timed on the rows of some users and multiplied up (`loop_users` in the result).
Peak memory is what NumPy allocates, by tracemalloc.
"""

import argparse
import itertools
import statistics
import tracemalloc

import numpy as np
import recording
import sklearn.metrics

from tfmm.metrics import auc, gauc


def click_log(rng, rows, users):
    scores = rng.beta(1, 19, rows).astype(np.float32)
    return (rng.random(rows) < scores).astype(np.int8), scores, rng.integers(0, users, rows)


def loop_over_users(labels, scores, users):
    """GAUC as one writes it with scikit-learn: rows sorted by user once, then a loop."""
    order = np.argsort(users, kind="stable")
    labels, scores, users = labels[order], scores[order], users[order]
    bounds = np.append(np.flatnonzero(np.diff(users, prepend=users[0] - 1)), users.size)
    won, weight = 0.0, 0
    for start, end in itertools.pairwise(bounds):
        mine = labels[start:end]
        if 0 < mine.sum() < mine.size:
            won += mine.size * sklearn.metrics.roc_auc_score(mine, scores[start:end])
            weight += mine.size
    return won / weight


def peak_bytes(call) -> int:
    tracemalloc.start()
    call()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


def compare(sides, reference, repeats, factor=1.0):
    """Times sides in turn; a ratio is the median over rounds of reference * factor / side."""
    seconds = recording.interleave(sides, repeats)
    result = {}
    for name, values in seconds.items():
        scale = factor if name == reference else 1.0
        ratios = [factor * a / (scale * b) for a, b in zip(seconds[reference], values)]
        result[name] = {"seconds": recording.spread([scale * v for v in values]),
                        f"times_{reference}": statistics.median(ratios), "peak_bytes": peak_bytes(sides[name])}
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--loop-users", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    num_users = int(0.09 * arguments.rows)
    labels, scores, users = click_log(np.random.default_rng(0), arguments.rows, num_users)
    some = users < min(arguments.loop_users, num_users)
    part = labels[some], scores[some], users[some]
    spread_ids = np.random.default_rng(1).permutation(2**62 // num_users * np.arange(num_users))[users]
    results = {
        "rows": arguments.rows, "users": num_users, "loop_users": int(np.unique(part[2]).size),
        "auc": compare({"scikit_learn": lambda: sklearn.metrics.roc_auc_score(labels, scores),
                        "tfmm": lambda: auc(labels, scores)}, "scikit_learn", arguments.repeats),
        "gauc": compare({"scikit_learn_loop": lambda: loop_over_users(*part),
                         "tfmm": lambda: gauc(labels, scores, users),
                         "tfmm_64_bit_ids": lambda: gauc(labels, scores, spread_ids)},
                        "scikit_learn_loop", arguments.repeats, factor=arguments.rows / part[0].size),
        "difference": {"auc": abs(auc(labels, scores) - sklearn.metrics.roc_auc_score(labels, scores)),
                       "gauc": abs(gauc(*part).value - loop_over_users(*part))},
    }
    recording.write("auc", __doc__.splitlines()[0], results, seed=0)


if __name__ == "__main__":
    main()
