"""Does semantic-aware contrastive learning beat pixels on real pairs, and what do its parts add (table 2)?

Data: emoji_vendors, 559 held-out base emoji; query one vendor's drawing, positive the other's. Rows as in table 2 of
the paper: SCL, without triplet loss, without triplet loss and memory bank; beside them pixels (16 x 16, each image's
mean taken away, cosine) and the encoder before training. At least 3 seeds; the interval is the mean's, 95 %, by t.
"""

import argparse
import dataclasses
import pathlib
import tempfile
import time

import emoji_vendors
import numpy as np
import recording
from scipy import stats

from tfmm.config import SCLConfig, to_dict
from tfmm.pretrain.train import fit

BASE = SCLConfig(modality="image", image_size=24, width=16, dim=128, batch_size=64, memory_bank_size=4_096,
                 memory_bank_share=2.0, augment=True)
METHODS = {
    "scl": {},
    "without_triplet": {"triplet_weight": 0.0},
    "without_triplet_and_moco": {"triplet_weight": 0.0, "memory_bank_size": 0},
}


def summary(values: list[float]) -> dict[str, object]:
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if len(values) > 1 else float("nan")
    return {"values": values, "mean": float(np.mean(values)), "half_interval_95": float(half)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=pathlib.Path, default=recording.RESULTS.parents[2] / "shared/data/emoji_vendors")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        pairs = pathlib.Path(folder)
        emoji_vendors.write_pairs(options.data, pairs)
        results["pixels"] = emoji_vendors.pixels(pairs / "image")
        runs = {method: [] for method in options.methods}
        for seed in range(options.seeds):
            for method in options.methods:
                config = dataclasses.replace(BASE, epochs=options.epochs, seed=seed, **METHODS[method])
                started = time.process_time()
                facts = fit(config, pairs / "image").facts
                runs[method].append({**facts, "cpu_seconds": time.process_time() - started})
                print(seed, method, runs[method][-1], flush=True)
    for method, rows in runs.items():
        names = ("acc_at_1", "acc_at_5", "acc_at_1_untrained", "cpu_seconds")
        results[method] = {name: summary([row[name] for row in rows]) for name in names}
    recording.write("scl_quality", "Does SCL beat pixels on real pairs, and what do its parts add?",
                    {"config": to_dict(dataclasses.replace(BASE, epochs=options.epochs)), "results": results,
                     "heldout_items": rows[0]["heldout_items"], "train_pairs": rows[0]["train_pairs"]})


if __name__ == "__main__":
    main()
