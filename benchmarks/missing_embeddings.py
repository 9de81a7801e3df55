"""Does the click model score rows without embeddings as often as they are clicked, and as well as the ID-only model?

Takes folders of finished quickstart runs, one per seed (or makes three), and trains the click model of each anew under
several settings. Held-out rows are then scored as they are, with the target's vectors hidden (all, or one modality's),
and with the vectors of 30 % or all of the behaviors hidden. `ratio` is the mean score over the click rate. Bars stand
on the means over seeds of the default settings; intervals are Student's.

    tfmm quickstart --seed 0 --workdir runs/seed-0   # and 1, 2
    python benchmarks/missing_embeddings.py runs/seed-0 runs/seed-1 runs/seed-2
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
import recording

from tfmm import config as config_lib
from tfmm import features, metrics, preprocessing, vectors
from tfmm.ctr import model as model_lib
from tfmm.ctr import train
from tfmm.index import item_vectors
from tfmm.training import evaluation, sources
from tfmm.training import examples as examples_lib
from tfx_pipeline import environments

MODALITIES = ("image", "text")
BEFORE = {
    "id_head": False,
    "hidden_weight": 0.0,
    "hidden_behaviors_fraction": 0.0,
    "learning_rate": 1e-3,
    "decay_from": 1.0,
}
SETTINGS: dict[str, dict] = {
    "default": {},
    "before": BEFORE,
    "no id head": {"id_head": False},
    "hidden weight 0.1": {"hidden_weight": 0.1},
    "no behaviors hidden": {"hidden_behaviors_fraction": 0.0},
    "rate held": {"learning_rate": 1e-3, "decay_from": 1.0},
}


def quickstart(seed: int, workdir: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-m", "tfmm.cli", "quickstart", "--seed", str(seed), "--workdir", str(workdir)]
    subprocess.run(command, check=True, cwd=pathlib.Path(__file__).parents[1])
    return workdir


def variants(rows: examples_lib.Columns, feature_set: features.FeatureSet) -> dict[str, examples_lib.Columns]:
    """Returns the rows as they are, and with slots taken away."""
    generator = np.random.default_rng(0)
    target, behaviors = (vectors.TARGET,), tuple(sequence.name for sequence in feature_set.sequences)

    def without(sides: tuple[str, ...], modalities: tuple[str, ...], share: float) -> examples_lib.Columns:
        names = [item_vectors.slots_name(modality, side) for modality in modalities for side in sides]
        taken = {n: generator.random(rows[n].shape) < share for n in names}
        return {**rows, **{n: np.where(taken[n], item_vectors.NO_EMBEDDING, rows[n]) for n in names}}

    return {
        "full": rows,
        "hidden all": without(target, MODALITIES, 1.0),
        **{f"hidden {modality}": without(target, (modality,), 1.0) for modality in MODALITIES},
        "30 % of behaviors hidden": without(behaviors, MODALITIES, 0.3),
        "all behaviors hidden": without(behaviors, MODALITIES, 1.0),
    }


def figures(rows: examples_lib.Columns, scores: np.ndarray) -> dict[str, dict[str, float]]:
    """Returns the figures of all rows, and of those whose item id is in the vocabulary or not."""
    is_known = rows["item_id_index"] != features.OUT_OF_VOCABULARY
    result = {}
    for group, chosen in (("all", is_known | True), ("known", is_known), ("unknown", ~is_known)):
        label, score, user = rows[features.LABEL][chosen], scores[chosen], rows["user_id"][chosen]
        result[group] = {
            "ratio": float(score.mean() / label.mean()),
            **evaluation.ranking_metrics(label, score, user),
            "logloss": metrics.log_loss(label, score),
        }
    return result


def measure(run: pathlib.Path, settings: list[str], folder: pathlib.Path) -> dict[str, dict]:
    """Trains the ID-only twin and the model under each setting on a run's artifacts; returns their figures."""
    outputs = environments.latest_outputs(run / "metadata.sqlite")
    config = config_lib.from_dict(config_lib.RunConfig, json.loads((run / "run.json").read_text()))
    snapshot, make = outputs["CatalogEmbedder.snapshot"], outputs["MAKETrainer.make"]
    vocabularies = pathlib.Path(outputs["MultimodalTrainer.model"]) / "vocabulary"
    patterns = [f"{outputs['Transform.transformed_examples']}/Split-{split}/*" for split in ("train", "eval")]
    tables, feature_set = item_vectors.load_vectors(snapshot, MODALITIES), config.feature_set
    preprocessor = preprocessing.load(feature_set, vocabularies)
    source = sources.open_source(examples_lib.example_files(patterns[1]), feature_set, tables, preprocessor)
    keys = {name: source.column(name) for name in ("user_id", "item_id")}
    rows = keys | source.gather(np.arange(source.num_rows))
    result = {}
    for name in ["id twin", *settings]:
        modalities = () if name == "id twin" else MODALITIES
        ctr = config_lib.CTRConfig(seed=config.seed, **SETTINGS.get(name, {}))
        output = folder / name.replace(" ", "_")
        own = {"modalities": modalities, "snapshot_dir": snapshot, "make_dir": make} if modalities else {}
        train.train(ctr, *patterns, vocabularies, output, feature_set, **own)
        model = model_lib.load_model(output)
        scored = variants(rows, feature_set) if modalities else {"full": rows}
        own_tables = tables if modalities else {}
        result[name] = {v: figures(rows, train.predict(model, own_tables, sources.InMemory(columns)))
                        for v, columns in scored.items()}
        shown = {v: {k: round(x, 4) for k, x in found["all"].items()} for v, found in result[name].items()}
        print(run.name, name, json.dumps(shown), flush=True)
    return result


def summary(runs: list[dict], setting: str) -> dict[str, dict]:
    """Returns, over seeds, the ratio per variant and the AUC and GAUC beside the twin's or those of `before`."""
    result = {}
    for variant in runs[0][setting]:
        found = [run[setting][variant] for run in runs]
        twins = [run["id twin"]["full"] for run in runs]
        result[variant] = {
            "ratio": recording.interval([f["all"]["ratio"] for f in found]),
            "ratio_of_known_ids": recording.interval([f["known"]["ratio"] for f in found]),
            "ratio_of_unknown_ids": recording.interval([f["unknown"]["ratio"] for f in found]),
            "auc_over_twin": recording.interval([f["all"]["auc"] - t["all"]["auc"] for f, t in zip(found, twins)]),
        }
        if "before" in runs[0]:
            before = [run["before"][variant]["all"]["gauc"] for run in runs]
            gains = [f["all"]["gauc"] - b for f, b in zip(found, before)]
            result[variant]["gauc_over_before"] = recording.interval(gains)
    return result


def bars(found: dict[str, dict]) -> dict[str, dict]:
    result = {}
    for variant in ("hidden all", *(f"hidden {modality}" for modality in MODALITIES)):
        ratio, gain = found[variant]["ratio"], found[variant]["auc_over_twin"]
        result[f"{variant}: mean score / click rate"] = recording.bar(ratio["mean"], 0.9, 1.1, ratio)
        result[f"{variant}: AUC minus the ID-only twin's"] = recording.bar(gain["mean"], -0.005, beside=gain)
    gain = found["full"].get("gauc_over_before")
    if gain is not None:
        result["no vector hidden: GAUC minus that of before"] = recording.bar(gain["high"], 0.0, beside=gain)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=pathlib.Path, nargs="*", help="finished quickstarts; none: makes three")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    options = parser.parse_args()
    if options.runs and not 2 <= len(options.runs) <= 5:
        parser.error(f"name 2 to 5 runs, not {len(options.runs)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        workdirs = options.runs or [quickstart(seed, folder / f"seed-{seed}") for seed in range(3)]
        runs = [measure(run, options.settings, folder / f"models-{i}") for i, run in enumerate(workdirs)]
    found = {setting: summary(runs, setting) for setting in options.settings}
    recording.write(
        "missing_embeddings",
        "Does the click model score rows without embeddings as often as they are clicked, and as well as the ID-only "
        "model?",
        {"over_seeds": found, "runs": runs},
        bars=bars(found["default"]) if "default" in found else None,
    )


if __name__ == "__main__":
    main()
