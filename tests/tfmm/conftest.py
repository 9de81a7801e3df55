"""A shop small enough to train on in seconds, clicks following taste for vectors, and a small marketplace."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import preprocessing
from tfmm.config import MarketplaceConfig
from tfmm.features import FeatureSet
from tfmm.index import encode, item_index, snapshot
from tfmm.marketplace import generator

FEATURES = FeatureSet().resolved(max_behaviors=6, min_count=1)
NUM_USERS, NUM_ITEMS, NUM_NEW, LENGTH = 60, 240, 40, 6
DIMS = {"image": 16, "text": 8}
SMALL_MARKETPLACE = MarketplaceConfig(
    num_items=300, new_items_per_day=20, num_users=250, impressions_per_user_day=5, num_searches=400, image_size=16
)


@pytest.fixture(autouse=True)
def weights_are_those_of_seed_0():
    """How exact a comparison in float32 can be depends on the weights."""
    keras.utils.set_random_seed(0)


@dataclasses.dataclass(frozen=True)
class Shop:
    """Folders of a small shop's transformed examples, vocabularies and index snapshot."""

    folder: pathlib.Path
    features: FeatureSet = FEATURES

    @property
    def train(self):
        return str(self.folder / "examples" / "train-*")

    @property
    def eval(self):
        return str(self.folder / "examples" / "eval-*")

    @property
    def vocabularies(self):
        return self.folder / "vocabulary"

    @property
    def snapshot(self):
        return self.folder / "snapshot"


def write_shop(folder: pathlib.Path, seed: int = 0, num_train: int = 3000, num_eval: int = 1000) -> Shop:
    """Writes the shop; the newest items appear in evaluation alone, and a tenth of all lack an embedding."""
    generator = np.random.default_rng(seed)
    ids = np.arange(1000, 1000 + NUM_ITEMS + NUM_NEW, dtype=np.int64)
    categories = generator.integers(1, 6, len(ids))
    vectors = {m: generator.normal(size=(len(ids), dim)) for m, dim in DIMS.items()}
    tastes = {m: generator.normal(size=(NUM_USERS, dim)) for m, dim in DIMS.items()}
    liking = sum(tastes[m] @ vectors[m].T / np.sqrt(dim) for m, dim in DIMS.items())
    with item_index.ItemIndex(folder / "index.sqlite") as index:
        for m, values in vectors.items():
            rows, scales = encode.quantize(values)
            has = generator.random(len(ids)) > 0.1
            index.write(m, "v1", ids[has], rows[has], scales[has], np.ones(has.sum(), np.int64))
        snapshot.write_snapshot(index, folder / "snapshot")
    favorites = np.argsort(-liking[:, :NUM_ITEMS] + generator.normal(size=(NUM_USERS, NUM_ITEMS)), axis=1)
    rows = []
    for time in range(num_train + num_eval):
        user = int(generator.integers(NUM_USERS))
        item = int(generator.integers(NUM_ITEMS + (NUM_NEW if time >= num_train else 0)))
        label = int(generator.random() < 1 / (1 + np.exp(1.0 - 1.5 * liking[user, item])))
        history = favorites[user, : generator.integers(0, LENGTH + 1)]
        rows.append(
            (user + 1, ids[item], categories[item], ids[history], categories[history], time + 1, label)
        )
    seen = {
        "user_id": sorted({r[0] for r in rows[:num_train]}),
        "item_id": sorted({int(i) for r in rows[:num_train] for i in (r[1], *r[3])}),
        "category": sorted({int(c) for c in categories}),
    }
    preprocessing.write(folder / "vocabulary", {name: np.array(values) for name, values in seen.items()}, {})
    index_of = {name: {v: i + 2 for i, v in enumerate(values)} for name, values in seen.items()}
    (folder / "examples").mkdir()
    splits = {
        "train-00000-of-00002": rows[:num_train:2],
        "train-00001-of-00002": rows[1:num_train:2],
        "eval-00000-of-00001": rows[num_train:],
    }
    for name, part in splits.items():
        with tf.io.TFRecordWriter(str(folder / "examples" / f"{name}.tfrecord.gz"), "GZIP") as writer:
            for row in part:
                writer.write(_example(row, index_of))
    return Shop(folder)


def _example(row, index_of):
    user, item, category, history, history_categories, time, label = row
    padding = [0] * (LENGTH - len(history))
    values = {
        "user_id": [user],
        "item_id": [int(item)],
        "category": [int(category)],
        "timestamp": [time],
        "label": [label],
        "behavior_item_ids": history.tolist() + padding,
        "behavior_categories": history_categories.tolist() + padding,
    }
    for column in FEATURES.columns:
        lookup = index_of[column.feature.embedding]
        values[column.input] = [0 if v == 0 else lookup.get(v, 1) for v in values[column.name]]
    return tf.train.Example(
        features=tf.train.Features(
            feature={
                name: tf.train.Feature(int64_list=tf.train.Int64List(value=value))
                for name, value in values.items()
            }
        )
    ).SerializeToString()


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Shop:
    """One small shop for all tests; read-only."""
    return write_shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="session")
def small_config():
    """The settings of `small_marketplace`."""
    return SMALL_MARKETPLACE


@pytest.fixture(scope="session")
def small_marketplace(tmp_path_factory):
    """A folder with a small marketplace; read-only."""
    folder = tmp_path_factory.mktemp("marketplace")
    generator.generate(SMALL_MARKETPLACE, folder)
    return folder
