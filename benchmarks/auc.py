"""How fast are exact AUC and GAUC against scikit-learn and pandas, and do they agree with them?

Rows like a click log: 5 % clicks, 0.09 users per row; the scores probabilities or logits, float32 or float64. GAUC is
measured against two references: scikit-learn in a loop over users, which takes minutes over all of them, so that it is
timed on the rows of some and multiplied up (`loop_users` in the result), and ranks inside groups in pandas.
Peak memory is what NumPy allocates, by tracemalloc.
"""

import argparse
import itertools
import statistics
import tracemalloc

import numpy as np
import pandas as pd
import recording
import sklearn.metrics

from tfmm.metrics import auc, gauc


def click_log(rng, rows, users):
    """Returns labels, float64 probabilities and user ids."""
    scores = rng.beta(1, 19, rows)
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


def ranks_in_groups(labels, scores, users):
    """GAUC as one writes it with pandas: ranks inside each user, ties averaged, summed over the clicks."""
    frame = pd.DataFrame({"user": users, "score": scores, "label": labels})
    frame["rank_of_click"] = frame.groupby("user")["score"].rank() * frame["label"]
    by_user = frame.groupby("user").agg(
        ranks=("rank_of_click", "sum"), clicks=("label", "sum"), rows=("label", "size"))
    both = by_user[(by_user.clicks > 0) & (by_user.clicks < by_user.rows)]
    won = both.ranks - both.clicks * (both.clicks + 1) / 2
    return np.average(won / (both.clicks * (both.rows - both.clicks)), weights=both.rows)


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


def compare_auc(labels, scores, repeats):
    result = compare({"scikit_learn": lambda: sklearn.metrics.roc_auc_score(labels, scores),
                      "tfmm": lambda: auc(labels, scores)}, "scikit_learn", repeats)
    return {**result, "difference": abs(auc(labels, scores) - sklearn.metrics.roc_auc_score(labels, scores))}


def compare_gauc(labels, kinds, users, spread_ids, loop_users, repeats):
    scores = kinds["float32_probabilities"]
    some = users < loop_users
    part = labels[some], scores[some], users[some]
    result = compare({"scikit_learn_loop": lambda: loop_over_users(*part),
                      "pandas": lambda: ranks_in_groups(labels, scores, users),
                      "tfmm": lambda: gauc(labels, scores, users),
                      "tfmm_64_bit_ids": lambda: gauc(labels, scores, spread_ids),
                      "tfmm_float64_probabilities": lambda: gauc(labels, kinds["float64_probabilities"], users),
                      "tfmm_float32_logits": lambda: gauc(labels, kinds["float32_logits"], users)},
                     "scikit_learn_loop", repeats, factor=labels.size / part[0].size)
    return {**result, "loop_users": int(np.unique(part[2]).size),
            "tfmm_times_pandas": result["pandas"]["seconds"]["median"] / result["tfmm"]["seconds"]["median"],
            "difference": {"scikit_learn_loop": abs(gauc(*part).value - loop_over_users(*part)),
                           "pandas": abs(gauc(labels, scores, users).value - ranks_in_groups(labels, scores, users))}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--loop-users", type=int, default=20_000)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    num_users = int(0.09 * arguments.rows)
    labels, scores, users = click_log(np.random.default_rng(0), arguments.rows, num_users)
    kinds = {"float32_probabilities": scores.astype(np.float32), "float64_probabilities": scores,
             "float32_logits": (np.log(scores) - np.log1p(-scores)).astype(np.float32)}
    spread_ids = np.random.default_rng(1).permutation(2**62 // num_users * np.arange(num_users))[users]
    aucs = {kind: compare_auc(labels, values, arguments.repeats) for kind, values in kinds.items()}
    gaucs = compare_gauc(labels, kinds, users, spread_ids, min(arguments.loop_users, num_users), arguments.repeats)
    size = f"{arguments.rows:,} rows, {num_users:,} users"
    bars = {f"AUC, float32 probabilities, {size}: times as fast as scikit-learn":
            recording.bar(aucs["float32_probabilities"]["tfmm"]["times_scikit_learn"], at_least=20),
            **{f"GAUC, {kind}, {size}: times as fast as scikit-learn in a loop over users":
               recording.bar(gaucs[side]["times_scikit_learn_loop"], at_least=150)
               for kind, side in (("float32 probabilities", "tfmm"),
                                  ("float64 probabilities", "tfmm_float64_probabilities"))}}
    recording.write("auc", __doc__.splitlines()[0], {
        "rows": arguments.rows, "users": num_users, "auc": aucs, "gauc": gaucs, "pandas": pd.__version__,
    }, seed=0, bars=bars)


if __name__ == "__main__":
    main()
