"""What does looking item features up cost a ranking request? C = 500 candidates, L = 50 behaviors, in one process.

Three sides in turn: `rank` of a version without a table of features, which is the graph of before; `rank` of one with
it, given everything; `rank_ids` of the same version, given ids. Medians of short blocks of calls through the C++
loader, and of the ratios within each round, which a busy machine meets alike.
"""

import argparse
import pathlib
import tempfile

import keras
import numpy as np
import recording

from tfmm import config as config_lib
from tfmm import preprocessing, saved_model
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model as export_lib
from tfmm.features import DEFAULT_FEATURES, DEFAULT_SEQUENCES, Feature, FeatureSet
from tfmm.index import encode, item_features, snapshot, store
from tfmm.index.rows import IndexRows

CANDIDATES, LENGTH, NUM_ITEMS, DIM = 500, 50, 20_000, 64
ITEMS = np.arange(1, NUM_ITEMS + 1, dtype=np.int64)
MORE = tuple(Feature(f"id_{n}", "item") for n in range(5)) + tuple(
    Feature(f"number_{n}", "item", "number") for n in range(5))  # fmt: skip


def catalog(feature_set, draw):
    """The items' values by feature."""
    return {f.name: draw.normal(size=NUM_ITEMS).astype(np.float32) if f.kind == "number"
            else draw.integers(1, 50, NUM_ITEMS) for f in feature_set.stored}  # fmt: skip


def export(folder, feature_set, values, draw):
    """Writes a version with the table of features and one without; returns their folders."""
    types = {f.name: "int64" for f in feature_set.features if f.kind == "id"}
    layout = item_features.Layout.of(feature_set, types)
    with store.open_store(folder / "items.sqlite") as index:
        for modality in ("image", "text"):
            rows, scales = encode.quantize(draw.normal(size=(NUM_ITEMS, DIM)))
            index.write(modality, "v1", ITEMS, rows, scales, ITEMS)
        snapshot.write_snapshot(index, folder / "without" / "snapshot")
        index.register_encoder("item_features", layout.version, layout.dim, layout.text)
        own = IndexRows(ITEMS, layout.pack(values), np.ones(NUM_ITEMS, np.float32), ITEMS, ITEMS)
        index.apply(store.IndexBatch(rows=[store.TableRows("item_features", layout.version, own)]))
        snapshot.write_snapshot(index, folder / "with" / "snapshot")
    ids = {name: np.arange(1, 50) for name in feature_set.vocabularies} | {"item_id": ITEMS}
    numbers = {f.name: np.array([0.0, 1.0], np.float32) for f in feature_set.numbers}
    preprocessing.write(folder / "vocabulary", ids, numbers)
    sizes = preprocessing.load(feature_set, folder / "vocabulary").sizes
    model = model_lib.CTRModel(config_lib.CTRConfig(), config_lib.MAKEConfig(), feature_set, sizes,
                               dict.fromkeys(("image", "text"), DIM), config_lib.DEFAULT_METHODS)  # fmt: skip
    model.build()
    model_lib.save_model(model, folder / "model")
    config = config_lib.ExportConfig(batch_buckets=(8,), candidate_buckets=(512,))
    for name in ("without", "with"):
        parts = (folder / "model", folder / "vocabulary", folder / name / "snapshot")
        export_lib.export(*parts, types, config, folder / name / "1")
    return folder / "without" / "1", folder / "with" / "1"


def requests(feature_set, values, draw):
    """The inputs of `rank` and of `rank_ids`."""
    items, clicked = draw.choice(ITEMS, CANDIDATES), draw.choice(ITEMS, (1, LENGTH))
    ids = {"user_id": np.array([3]), "item_id": items, "behavior_item_ids": clicked}
    given = {name: column[items - 1] for name, column in values.items()}
    return {**ids, **given, "behavior_categories": values["category"][clicked - 1]}, ids


def measure(before, after, whole, ids, repeats):
    """Times the sides in turn; returns spreads in seconds, and ratios of each round to the first side's."""
    sides = {
        "rank, no table": lambda: before("rank", whole, ["score"]),
        "rank": lambda: after("rank", whole, ["score"]),
        "rank_ids": lambda: after("rank_ids", ids, ["score"]),
    }
    scores = [call()["score"] for call in sides.values()]
    if not all(np.array_equal(scores[0], other) for other in scores):
        raise ValueError("All sides must give one score. Received: scores that differ.")
    seconds = recording.interleave(sides, repeats, warm_ups=5, block_s=0.05)
    base = np.array(seconds["rank, no table"])
    return {
        "seconds": {side: recording.spread(values) for side, values in seconds.items()},
        "ratio": {side: recording.spread((np.array(values) / base).tolist()) for side, values in seconds.items()},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=200)
    options = parser.parse_args()
    results = {}
    for name, more in (("default features", ()), ("10 more features", MORE)):
        keras.utils.set_random_seed(0)
        draw = np.random.default_rng(0)
        feature_set = FeatureSet((*DEFAULT_FEATURES, *more), DEFAULT_SEQUENCES).resolved(LENGTH, 1)
        values = catalog(feature_set, draw)
        with tempfile.TemporaryDirectory() as place:
            without, with_table = export(pathlib.Path(place), feature_set, values, draw)
            whole, ids = requests(feature_set, values, draw)
            with saved_model.load_session(without) as before, saved_model.load_session(with_table) as after:
                results[name] = measure(before, after, whole, ids, options.repeats)
    recording.write("item_features", __doc__.splitlines()[0], results, seed=0)


if __name__ == "__main__":
    main()
