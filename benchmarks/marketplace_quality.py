"""Does the multimodal model beat the ID-only model on the marketplace, and by more on new items?

Runs the whole quickstart per seed (the seed makes another marketplace and other weights); a run that is already in
its folder is taken up. The interval is Student's, over seeds.

    python benchmarks/marketplace_quality.py --seeds 0 1 2 --workdir /tmp/marketplace_quality
"""

import argparse
import json
import math
import pathlib
import statistics
import subprocess
import sys
import tempfile

import recording

T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, by the number of seeds
METRICS = ("auc", "gauc", "gauc_new_items", "logloss")


def run(seed: int, workdir: pathlib.Path) -> dict:
    folder = workdir / f"seed-{seed}"
    command = [sys.executable, "-m", "tfmm.cli", "quickstart", "--seed", str(seed), "--workdir", str(folder)]
    subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parents[1])
    return json.loads((folder / "summary.json").read_text())


def interval(values: list[float]) -> dict[str, float]:
    mean, half = statistics.mean(values), math.inf
    if len(values) in T_95:
        half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workdir", type=pathlib.Path, help="default: a temporary folder")
    options = parser.parse_args()
    if len(options.seeds) not in T_95:
        parser.error(f"name 2 to 5 seeds, not {len(options.seeds)}")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or pathlib.Path(temporary)
        summaries = {seed: run(seed, workdir) for seed in options.seeds}
    gains = {
        metric: interval([s["multimodal"][metric] - s["id"][metric] for s in summaries.values()]) for metric in METRICS
    }
    keys = ("acc_at_1", "acc_at_5", "id", "multimodal", "new_item_delay_s", "stages", "total_seconds", "peak_memory_gb")
    recording.write(
        "marketplace_quality",
        "Does the multimodal model beat the ID-only model on the marketplace, and by more on new items?",
        {"gains": gains, "seeds": {seed: {key: s[key] for key in keys} for seed, s in summaries.items()}},
    )


if __name__ == "__main__":
    main()
