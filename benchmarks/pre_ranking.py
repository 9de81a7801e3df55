"""How much does pre-ranking let through of what ranking likes best, and what do 5,000 of its candidates cost?

Recall: the default marketplace by the commands, per seed (encoders, index, ranking model, head); both heads then
score the catalog for held-out users, as `tfmm evaluate` does: the share of the ranking model's best 100 among pre-
ranking's best 500. `--weights` trains the head with other weights of distillation on the same ranking model. Time:
one user's request of 5,000 candidates to `pre_rank` beside 500 to `rank` in one process by the loader that TensorFlow
Serving uses, interleaved in short blocks, on a model of the default run's size with 20,000 items.

    python benchmarks/pre_ranking.py --workdir runs
"""

import argparse
import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile

import numpy as np
import recording
import served_model

from tfmm import presets, runs, saved_model
from tfmm.ctr import model as model_lib
from tfmm.ctr import pre_ranking
from tfmm.evaluate import recall
from tfmm.export import saved_model as export_lib
from tfmm.marketplace import generator
from tfmm.pre_ranking import DEFAULT_PRE_RANKING
from tfmm.stages import examples, folders
from tfmm.training import examples as examples_lib

CANDIDATES = {"pre_rank": 5_000, "rank": 500}
OUTPUTS = ("score", "logit")


def road(seed: int, folder: pathlib.Path, run: str) -> dict[str, str]:
    """Runs the commands up to the ranking model, where they have not been run; returns what `train` takes."""
    words = {"data": folder / "tables", "snapshot": folder / "snapshot", "output": folder / "models"}
    if not (words["output"] / "run.json").is_file():
        settings = runs.load(run).with_seed(seed)
        (folder / "run.json").write_text(json.dumps(runs.config_lib.to_dict(settings)))
        if not words["data"].is_dir():
            generator.generate(settings.marketplace, words["data"])
        data, encoders = f"--data={words['data']}", folder / "encoders"
        _tfmm("pretrain", data, f"--output={encoders}", f"--run={folder / 'run.json'}")
        index = [f"--index={folder / 'items.sqlite'}", f"--snapshot={words['snapshot']}"]
        _tfmm("embed", data, f"--encoders={encoders}", *index)
        _tfmm("train", *_options(words))
    return words


def measured_recall(words: dict, weight: float) -> dict:
    """Trains a head of a weight of distillation; returns its metrics and recall."""
    _tfmm("train", *_options(words), "--head=pre-ranking", f"--set=pre_ranking.distillation_weight={weight}")
    models = pathlib.Path(words["output"])
    feature_set = runs.load(str(models / "run.json")).feature_set
    files = [examples_lib.example_files(pattern) for pattern in examples.patterns(models)]
    with saved_model.load_session(models / folders.MULTIMODAL / folders.SERVING) as loaded:
        found = recall.of_model(loaded, *files, feature_set)
    manifest = json.loads((models / folders.PRE_RANKING / folders.TRAINED / "manifest.json").read_text())
    return {**found, "metrics": manifest["metrics"]}


def measured_time(folder: pathlib.Path, repeats: int) -> dict[str, list[float]]:
    """Returns seconds per call of either signature."""
    served_model.write(folder)
    ranking = model_lib.load_model(folder / "model")
    head = pre_ranking.PreRankingModel(DEFAULT_PRE_RANKING, ranking)
    head.build()
    pre_ranking.save_model(head, folder / "head", [folder / "model"])
    types = dict.fromkeys(("user_id", "item_id", "category"), "int64")
    parts = [folder / name for name in ("model", "vocabulary", "snapshot")]
    export_lib.export(*parts, types, presets.quickstart().export, folder / "2", folder / "head")
    rng = np.random.default_rng(1)
    inputs = {name: served_model.rank_inputs(count, rng) for name, count in CANDIDATES.items()}
    with saved_model.load_session(folder / "2") as loaded:
        wanted = {name: {k: v for k, v in values.items() if k in loaded.signatures[name].inputs}
                  for name, values in inputs.items()}  # fmt: skip
        sides = {name: (lambda name=name: loaded(name, wanted[name], OUTPUTS)) for name in CANDIDATES}
        return recording.interleave(sides, repeats, warm_ups=2, block_s=0.3)


def _options(words: dict) -> list[str]:
    return [f"--{name}={value}" for name, value in words.items()]


def _tfmm(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "tfmm.cli", *words], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--weights", type=float, nargs="*", default=[], help="of distillation, beside the default")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--workdir", type=pathlib.Path, help="of the roads, which are taken up; a temporary folder")
    given = parser.parse_args()
    default = DEFAULT_PRE_RANKING.distillation_weight
    with tempfile.TemporaryDirectory() as temporary:
        seconds = measured_time(pathlib.Path(temporary), given.repeats)
        found: dict[int, dict[float, dict]] = {}
        for seed in given.seeds:
            folder = (given.workdir or pathlib.Path(temporary)) / f"seed-{seed}"
            folder.mkdir(parents=True, exist_ok=True)
            words = road(seed, folder, given.run)
            found[seed] = {weight: measured_recall(words, weight) for weight in [*given.weights, default]}
            if given.workdir is None:
                shutil.rmtree(folder)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratio = statistics.median(a / b for a, b in zip(seconds["pre_rank"], seconds["rank"]))
    lowest = min(one[default]["recall"] for one in found.values())
    bars = {
        "5,000 candidates of pre-ranking, times 500 of ranking (p50)": recording.bar(
            ratio, at_most=3.0, beside={f"{name} ms": 1e3 * value for name, value in medians.items()}),
        f"recall of ranking's best {recall.WANTED} in pre-ranking's best {recall.KEPT}, lowest of the seeds":
            recording.bar(lowest, at_least=0.9, beside={f"weight {weight:g}": one["recall"] for weight, one in
                                                        found[given.seeds[0]].items()}),
    }  # fmt: skip
    results = {"seconds": {name: recording.spread(values) for name, values in seconds.items()}, "recall": found}
    recording.write("pre_ranking", __doc__.splitlines()[0], results, seed=given.seeds[0], bars=bars)


if __name__ == "__main__":
    main()
