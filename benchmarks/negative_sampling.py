"""Is the mean score that is served the same where the log keeps a tenth of the negatives and the run says so?

Per seed a marketplace of its own. Its examples are joined once; then each log keeps all negatives, or about a tenth of
them, drawn row by row: at one rate, which the run declares, or at a rate by the item's category, which a column of the
says. Each log has vocabularies, MAKE and click models of its own, with the default settings; items are known by their
true looks and words in place of encoders' vectors. The held-out rows, all of them, are scored by the exported models
as C++ loads them. `mean` is the mean score over that of the full log's model, `over_click_rate` over the click rate,
which the full log's model does not meet exactly either.

    python benchmarks/negative_sampling.py
"""

import argparse
import dataclasses
import json
import math
import pathlib
import statistics
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import recording

from tfmm import config as config_lib
from tfmm import metrics
from tfmm.ctr import train as ctr_train
from tfmm.data import join, shards, transform
from tfmm.evaluate import report
from tfmm.export import saved_model
from tfmm.features import KEYS, FeatureSet, Label
from tfmm.index import encode, item_index, snapshot
from tfmm.make import train as make_train
from tfmm.marketplace import generator
from tfmm.training import examples as examples_lib

RUN = config_lib.RunConfig(
    marketplace=config_lib.MarketplaceConfig(impressions_per_user_day=18),
    data=config_lib.DataConfig(max_behaviors=20),
    export=config_lib.ExportConfig(index_capacity=4096, batch_buckets=(512,), candidate_buckets=(32,)),
)
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776}  # two-sided, by the number of seeds
ATTRIBUTES = {"image": ("palette", "pattern"), "text": ("style", "material")}  # of the true items, by modality
DIM = 32
ID_TYPES = {"user_id": "int64", "item_id": "int64", "category": "int64"}
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Side:
    """What a log keeps of its negatives, and what the run says of it."""

    label: Label
    low: float  # rate of the negatives of categories with an even number
    high: float  # and of the others

    def rates(self, rows: Columns) -> np.ndarray:
        return np.where(rows["category"] % 2 == 0, self.low, self.high).astype(np.float32)


SIDES = {
    "full": Side(Label(), 1.0, 1.0),
    "rate of the run": Side(Label(negative_rate=0.1), 0.1, 0.1),
    "rate by row": Side(Label(negative_rate_column="rate"), 0.05, 0.15),
    "undeclared": Side(Label(), 0.1, 0.1),
    "weights in place of a rate": Side(Label(weight="weight"), 0.1, 0.1),
}


def write_snapshot(data: pathlib.Path, folder: pathlib.Path, seed: int) -> pathlib.Path:
    """Writes vectors float [n, DIM] of each item's attributes, a random direction for each value of each."""
    items = pq.read_table(data / "truth" / "items.parquet").to_pandas()
    generator = np.random.default_rng(seed)
    with item_index.ItemIndex(folder / "index.sqlite") as index:
        for modality, names in ATTRIBUTES.items():
            directions = {name: generator.normal(size=(items[name].max() + 1, DIM)) for name in names}
            rows, scales = encode.quantize(sum(directions[name][items[name]] for name in names))
            ids = items["item_id"].to_numpy(np.int64)
            index.write(modality, "true", ids, rows, scales, np.ones(len(ids), np.int64))
        snapshot.write_snapshot(index, folder / "snapshot")
    return folder / "snapshot"


def write_log(side: Side, splits: dict[str, Columns], features: FeatureSet, folder: pathlib.Path, seed: int) -> None:
    """Writes the examples that a log has, with vocabularies of its own."""
    data = folder / "data"
    data.mkdir(parents=True)
    for table in ("items.parquet", "behaviors.parquet"):
        (data / table).symlink_to(folder.parent / "data" / table)
    generator, parts = np.random.default_rng(seed), []
    for split, rows in splits.items():
        rates = side.rates(rows)
        chosen = (rows["label"] == 1) | (generator.random(len(rates)) < rates)
        more = {"negative_rate": rates, "sample_weight": np.where(rows["label"] == 1, 1, 1 / rates).astype(np.float32)}
        own = {column: (rows | more)[name] for name, column in features.label.sources.items()}
        keys = {name: rows[name] for name in KEYS} | {"timestamp": rows["timestamp"].astype("datetime64[us]")}
        columns = {name: values[chosen] for name, values in (keys | own).items()}
        parts.append(pa.table(columns | {"split": [split] * int(chosen.sum())}))
    pq.write_table(pa.concat_tables(parts), data / "impressions.parquet")
    join.write_examples(data, RUN.data, features, folder / "examples")
    transform.fit(folder / "examples", folder / "vocabulary")


def measure(side: Side, splits: dict[str, Columns], features: FeatureSet, snapshot_dir: pathlib.Path,
            eval_files: list[str], folder: pathlib.Path, seed: int, models: list[str]) -> dict[str, dict]:  # fmt: skip
    """Returns, per click model, the mean score of the held-out rows, GAUC and LogLoss, of what is served."""
    features = dataclasses.replace(features, label=side.label)
    write_log(side, splits, features, folder, seed)
    run = RUN.with_seed(seed)
    patterns = f"{folder}/examples/train-*", f"{folder}/examples/eval-*"
    vocabulary = folder / "vocabulary"
    rows = examples_lib.read_columns(eval_files, FeatureSet().resolved(20, 2), ("user_id", "label"))
    result = {}
    for name in models:
        own: dict = {}
        if name == "multimodal":
            make_train.train(run.make, *patterns, snapshot_dir, folder / "make", features)
            own = {"snapshot_dir": snapshot_dir, "make_dir": folder / "make", "modalities": tuple(ATTRIBUTES)}
        ctr_train.train(run.ctr, *patterns, vocabulary, folder / name, features, **own)
        served = folder / f"{name}-served"
        saved_model.export(folder / name, vocabulary, own.get("snapshot_dir"), ID_TYPES, run.export, served)
        score = report.score_examples(served, eval_files)["score"]
        result[name] = {
            "mean_score": float(score.mean(dtype=np.float64)),
            "gauc": metrics.gauc(rows["label"], score, rows["user_id"]).value,
            "logloss": metrics.log_loss(rows["label"], score),
        }
    return result


def measure_seed(seed: int, folder: pathlib.Path, models: list[str], sides: list[str]) -> dict[str, dict]:
    run = RUN.with_seed(seed)
    generator.generate(run.marketplace, folder / "data")
    join.write_examples(folder / "data", run.data, run.feature_set, folder / "examples")
    splits = {split: shards.read_columns(f"{folder}/examples/{split}-*") for split in ("train", "eval")}
    snapshot_dir = write_snapshot(folder / "data", folder, seed)
    eval_files = examples_lib.example_files(f"{folder}/examples/eval-*")
    found: dict = {"rows": {split: len(rows["label"]) for split, rows in splits.items()}}
    found["click_rate"] = float(splits["eval"]["label"].mean())
    for name in sides:
        place = folder / name.replace(" ", "_")
        found[name] = measure(
            SIDES[name], splits, run.feature_set, snapshot_dir, eval_files, place, seed, models
        )
        print(seed, name, json.dumps(found[name]), flush=True)
    return found


def interval(values: list[float]) -> dict[str, float]:
    mean, half = statistics.mean(values), math.inf
    if len(values) in T_95:
        half = T_95[len(values)] * statistics.stdev(values) / math.sqrt(len(values))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=["id", "multimodal"], default=["id", "multimodal"])
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = []
        for seed in range(options.seeds):
            folder = pathlib.Path(temporary) / f"seed-{seed}"
            folder.mkdir()
            runs.append(measure_seed(seed, folder, options.models, options.sides))
    over, bars = {}, {}
    for model in options.models:
        calibration = [run["full"][model]["mean_score"] / run["click_rate"] for run in runs]
        over[f"{model}, full"] = {"over_click_rate": interval(calibration)}
        for side in options.sides[1:]:
            ratios = interval([run[side][model]["mean_score"] / run["full"][model]["mean_score"] for run in runs])
            losses = interval([run[side][model]["logloss"] - run["full"][model]["logloss"] for run in runs])
            gains = interval([run[side][model]["gauc"] - run["full"][model]["gauc"] for run in runs])
            calibration = [run[side][model]["mean_score"] / run["click_rate"] for run in runs]
            over[f"{model}, {side}"] = {
                "mean": ratios,
                "over_click_rate": interval(calibration),
                "logloss_over_full": losses,
                "gauc_over_full": gains,
            }
            if side.startswith("rate"):
                bars[f"{model}, {side}: mean score / the full log's"] = recording.bar(
                    ratios["mean"], 0.97, 1.03, ratios
                )
    recording.write(
        "negative_sampling",
        "Is the mean score that is served the same where the log keeps a tenth of the negatives and the run says so?",
        {"over_seeds": over, "runs": runs},
        bars=bars,
    )


if __name__ == "__main__":
    main()
