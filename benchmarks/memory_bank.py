"""What does the memory bank of lone positives give the click model, beyond what the probe of vectors alone sees?

Per seed another marketplace, other weights: encoders with the default settings and without a bank, and on each MAKE and
the click model of the default settings. GAUC, AUC and LogLoss are those of held-out rows, and of those whose item no
training row shows (`new`); the interval is Student's, over seeds, of the difference on equal seeds.

    python benchmarks/memory_bank.py --seeds 0 1 2
"""

import argparse
import dataclasses
import json
import pathlib
import tempfile

import numpy as np
import recording

from tfmm import metrics, preprocessing
from tfmm.config import RunConfig
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as ctr_train
from tfmm.features import LABEL
from tfmm.index import item_vectors
from tfmm.make import train as make_train
from tfmm.marketplace import generator
from tfmm.stages import catalog, encoders, examples, pairs
from tfmm.training import examples as examples_lib
from tfmm.training import sources

MODALITIES = ("image", "text")
SIDES = {"default": {}, "no bank": {"memory_bank_size": 0}}
METRICS = ("gauc", "auc", "logloss", "new_gauc", "new_auc", "new_logloss")


def figures(rows: examples_lib.Columns, scores: np.ndarray, seen: np.ndarray) -> dict[str, float]:
    found, is_new = {}, ~np.isin(rows["item_id"], seen)
    for prefix, chosen in (("", is_new | True), ("new_", is_new)):
        label, score, user = rows[LABEL][chosen], scores[chosen], rows["user_id"][chosen]
        gauc = metrics.user_aucs(label, score, user).gauc()
        found |= {f"{prefix}gauc": gauc.value, f"{prefix}users": gauc.users, f"{prefix}auc": metrics.auc(label, score),
                  f"{prefix}logloss": metrics.log_loss(label, score)}
    return found


def measure(seed: int, folder: pathlib.Path) -> dict[str, dict]:
    run, data = RunConfig().with_seed(seed), folder / "data"
    generator.generate(run.marketplace, data)
    pairs.make_pairs(run, data, folder / "pairs", print)
    examples.make_examples(run, data, folder / "examples", print)
    patterns = examples.patterns(folder / "examples")
    vocabulary = folder / "examples" / examples.VOCABULARY
    preprocessor = preprocessing.load(run.feature_set, vocabulary)
    seen, result = None, {}
    for side, changes in SIDES.items():
        own = folder / side.replace(" ", "_")
        settings = {name: dataclasses.replace(getattr(run, name), **changes) for name in MODALITIES}
        side_run = dataclasses.replace(run, **settings)
        made = encoders.train_encoders(side_run, MODALITIES, folder / "pairs", own, own / "checkpoints", print)
        snapshot = own / "snapshot"
        catalog.embed_catalog(side_run, MODALITIES, data, own, str(own / "items.sqlite"), snapshot, print)
        make_train.train(run.make, *patterns, snapshot, own / "make", run.feature_set)
        ctr_train.train(run.ctr, *patterns, vocabulary, own / "model", run.feature_set, modalities=MODALITIES,
                        snapshot_dir=snapshot, make_dir=own / "make")
        tables = item_vectors.load_vectors(snapshot, MODALITIES)
        shown, rows = (
            sources.open_source(examples_lib.example_files(pattern), run.feature_set, tables, preprocessor)
            for pattern in patterns
        )
        seen = np.unique(shown.column("item_id"))
        scores = ctr_train.predict(model_lib.load_model(own / "model"), tables, rows)
        columns = {name: rows.column(name) for name in ("user_id", "item_id", "label")}
        result[side] = figures(columns, scores, seen) | {
            name: {m["modality"]: m[name] for m in made.values()} for name in ("acc_at_1", "memory_bank_size", "steps")
        }
        print(seed, side, json.dumps(result[side]), flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    runs: dict[int, dict] = {}
    for seed in options.seeds:
        with tempfile.TemporaryDirectory() as temporary:
            runs[seed] = measure(seed, pathlib.Path(temporary))
    gains = {
        metric: recording.interval([found["default"][metric] - found["no bank"][metric] for found in runs.values()])
        for metric in METRICS
    }
    bars = {f"default over no bank: {name}": recording.bar(gains[name]["mean"], 0.0, beside=gains[name])
            for name in ("gauc", "new_gauc")}
    recording.write("memory_bank", __doc__.splitlines()[0], {"default - no bank": gains, "seeds": runs}, bars=bars)


if __name__ == "__main__":
    main()
