"""Does the multimodal model beat the ID-only model on the marketplace, and by more on new items?

Runs the whole quickstart per seed (the seed makes another marketplace and other weights); a run that is already in
its folder is taken up. The interval is Student's, over seeds.

    python benchmarks/marketplace_quality.py --seeds 0 1 2 --workdir runs
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import recording

METRICS = ("auc", "gauc", "gauc_new_items", "logloss")


def run(seed: int, workdir: pathlib.Path) -> dict:
    folder = workdir / f"seed-{seed}"
    command = [sys.executable, "-m", "tfmm.cli", "quickstart", "--seed", str(seed), "--workdir", str(folder)]
    subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parents[1])
    return json.loads((folder / "summary.json").read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--workdir", type=pathlib.Path, help="default: a temporary folder")
    options = parser.parse_args()
    if not 2 <= len(options.seeds) <= 5:
        parser.error(f"name 2 to 5 seeds, not {len(options.seeds)}")
    with tempfile.TemporaryDirectory() as temporary:
        workdir = options.workdir or pathlib.Path(temporary)
        summaries = {seed: run(seed, workdir) for seed in options.seeds}
    gains = {
        metric: recording.interval([s["multimodal"][metric] - s["id"][metric] for s in summaries.values()])
        for metric in METRICS
    }
    keys = ("acc_at_1", "acc_at_5", "id", "multimodal", "new_item_delay_s", "stages", "total_seconds", "peak_memory_gb")
    recording.write(
        "marketplace_quality",
        "Does the multimodal model beat the ID-only model on the marketplace, and by more on new items?",
        {"gains": gains, "seeds": {seed: {key: s[key] for key in keys} for seed, s in summaries.items()}},
    )


if __name__ == "__main__":
    main()
