"""Tests of weighted rows and sampled negatives in the click model: its losses, its training, what it serves."""

import dataclasses
import pathlib

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import preprocessing, saved_model
from tfmm.config import Method
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.data import examples as data_examples
from tfmm.evaluate import report
from tfmm.export import saved_model as export_lib
from tfmm.features import FeatureSet, Label
from tfmm.index import item_vectors
from tfmm.make import train as make_train
from tfmm.training import examples as examples_lib
from tfmm.training import sources

SMALL = {"batch_size": 128, "learning_rate": 5e-3, "attention_units": (8,), "units": (16,)}
LONG = config_lib.CTRConfig(  # until the mean score of training rows is their click rate: few steps leave it some % off
    epochs=16, batch_size=512, learning_rate=1e-2, embedding_learning_rate=1e-3, attention_units=(8,), units=(16,)
)
METHODS = (Method("simtier", {"num_tiers": 8}), Method("make"))
MAKE = config_lib.MAKEConfig(epochs=1, batch_size=256, attention_units=(8,), units=(16, 8, 4))
INT64 = {"user_id": "int64", "item_id": "int64", "category": "int64"}
EXPORT = config_lib.ExportConfig(index_capacity=400, batch_buckets=(512,), candidate_buckets=(4,), jit_compile=False)


@pytest.fixture(scope="module")
def rows(shop):
    """Columns of two splits: a log so large, beside its 12 users and 15 items, that a tenth says nearly as much."""
    generator = np.random.default_rng(0)
    ids = np.unique(examples_lib.read_columns(examples_lib.example_files(shop.train), shop.features)["item_id"])[:15]
    of_user, of_item = generator.normal(size=12), generator.normal(size=15)
    result = {}
    for split, count in (("train", 40_000), ("eval", 4_000)):
        user, item = generator.integers(0, 12, count), generator.integers(0, 15, count)
        history = (user[:, None] + np.arange(6)) % 15  # a user's own: nothing tells one row from another
        click = generator.random(count) < 1 / (1 + np.exp(1.5 - 0.6 * of_user[user] - 0.6 * of_item[item]))
        result[split] = {
            "user_id": user + 1,
            "item_id": ids[item],
            "category": item % 5 + 1,
            "behavior_item_ids": ids[history],
            "behavior_categories": history % 5 + 1,
            "timestamp": np.arange(count),
            "label": click.astype(np.int64),
        }
    return result


@dataclasses.dataclass(frozen=True)
class Log:
    """Examples of a log, the vocabularies of its training rows, and what it declares of labels."""

    folder: pathlib.Path
    features: FeatureSet

    @property
    def vocabularies(self):
        return self.folder / "vocabulary"

    @property
    def patterns(self):
        return str(self.folder / "train-*"), str(self.folder / "eval-*")


def vocabularies_of(columns, features):
    """All ids of each vocabulary, those of padding apart."""
    result = {}
    for name in features.vocabularies:
        sharing = [columns[c.name].ravel() for c in features.columns if c.feature.embedding == name]
        result[name] = np.setdiff1d(np.concatenate(sharing), [0])
    return result


def write_log(folder, shop, rows, label, rates) -> Log:
    """Writes the clicks of `rows`, and a share of the negatives in a drawn order; rates: float [5], by category."""
    features, generator, kept = dataclasses.replace(shop.features, label=label), np.random.default_rng(1), {}
    folder.mkdir()
    for split, columns in rows.items():
        rate = np.float32(rates)[columns["category"] - 1]
        chosen = columns["label"] == 1
        for category in range(1, 6):
            negatives = np.flatnonzero((columns["label"] == 0) & (columns["category"] == category))
            count = round(len(negatives) * rates[category - 1])
            chosen[generator.permutation(negatives)[:count]] = True
        columns = columns | ({"negative_rate": rate} if label.negative_rate_column else {})
        kept[split] = {name: values[chosen] for name, values in columns.items()}
    preprocessing.write(folder / "vocabulary", vocabularies_of(kept["train"], features), {})
    preprocessor = preprocessing.load(features, folder / "vocabulary")
    for split, columns in kept.items():
        inputs = preprocessor({name: tf.constant(values) for name, values in columns.items()})
        columns |= {name: values.numpy() for name, values in inputs.items()}
        with tf.io.TFRecordWriter(str(folder / f"{split}-0.tfrecord.gz"), "GZIP") as writer:
            for record in data_examples.serialize(columns):
                writer.write(record)
    return Log(folder, features)


def build(shop, label=None):
    tables = item_vectors.load_vectors(shop.snapshot, ["image", "text"])
    features = dataclasses.replace(shop.features, label=label or Label())
    preprocessor = preprocessing.load(features, shop.vocabularies)
    sizes = preprocessor.sizes
    model = model_lib.CTRModel(
        config_lib.CTRConfig(**SMALL), MAKE, features, sizes, {m: t.dim for m, t in tables.items()}, METHODS
    )
    keras.utils.set_random_seed(0)
    model.build()
    files = examples_lib.example_files(shop.eval)
    columns = sources.open_source(files, shop.features, tables, preprocessor).gather(np.arange(1000))
    return model, train_lib.model_inputs({n: v[:60] for n, v in columns.items()}, tables, features), columns["label"]


def test_each_loss_counts_weights_and_rates(shop):
    model, inputs, label = build(shop)
    generator = np.random.default_rng(0)
    weight = generator.integers(0, 3, 60)
    rate, is_row = generator.choice([0.1, 0.5], 60).astype(np.float32), np.arange(60) < 55
    found = model.losses(inputs, label[:60], is_row, weight.astype(np.float32), rate * is_row)
    assert set(found) == {"loss", "loss_hidden", "loss_id"}
    rows = np.repeat(np.arange(55), weight[:55])
    repeated = {name: tf.gather(values, rows) for name, values in inputs.items()}
    expected = model.losses(repeated, label[rows], np.ones(len(rows), bool), negative_rate=rate[rows])
    plain = model.losses(repeated, label[rows], np.ones(len(rows), bool))
    for name, value in found.items():
        assert float(value) == pytest.approx(float(expected[name]), rel=1e-5)
        assert float(value) != pytest.approx(float(plain[name]), rel=1e-2)


def test_a_trainers_metrics_count_weights_and_rates(shop, tmp_path):
    rows = examples_lib.example_files(shop.eval)
    columns = examples_lib.read_columns(rows, shop.features, preprocessing.transformed_spec(shop.features))
    weight = np.random.default_rng(0).integers(0, 3, len(columns["label"]))
    times = weight * np.where(columns["label"] == 1, 1, 5)
    model, _, _ = build(shop, Label(weight="w", negative_rate=0.2))
    tables = item_vectors.load_vectors(shop.snapshot, ["image", "text"])
    columns = item_vectors.add_slots(columns, tables, shop.features)
    found = train_lib.evaluate(model, tables, sources.InMemory(columns | {"sample_weight": weight.astype(np.float32)}))
    plain, _, _ = build(shop)
    plain.set_weights(model.get_weights())
    repeated = {name: np.repeat(values, times, 0) for name, values in columns.items()}
    expected = train_lib.evaluate(plain, tables, sources.InMemory(repeated))
    assert found == pytest.approx(expected, abs=1e-6)
    assert found != pytest.approx(train_lib.evaluate(plain, tables, sources.InMemory(columns)), abs=1e-3)


def served_scores(log, files, shop, folder, modalities):
    """Trains on a log, exports, and returns what C++ serves for the rows of `files`, float32 [n]."""
    own = {}
    if modalities:
        make_train.train(MAKE, *log.patterns, shop.snapshot, folder / "make", log.features, modalities=modalities)
        own = {"snapshot_dir": shop.snapshot, "make_dir": folder / "make"}
    train_lib.train(
        LONG, *log.patterns, log.vocabularies, folder / "ctr", log.features,
        modalities=modalities, methods=METHODS, **own)  # fmt: skip
    export_lib.export(folder / "ctr", log.vocabularies, own.get("snapshot_dir"), INT64, EXPORT, folder / "1")
    with saved_model.load_session(folder / "1") as loaded:
        for name in ("serving_default", "rank"):
            assert set(loaded.signatures[name].inputs) == {column.name for column in log.features.served}
    return report.score_examples(folder / "1", files)["score"]


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [(), ("image",)])
def test_a_tenth_of_the_negatives_with_their_rate_declared_serves_the_full_logs_mean(shop, rows, tmp_path, modalities):
    means, files = {}, None
    for name, label, rates in (
        ("full", Label(), [1.0] * 5),
        ("of the run", Label(negative_rate=0.1), [0.1] * 5),
        ("by row", Label(negative_rate_column="rate"), [0.05, 0.05, 0.1, 0.15, 0.15]),
        ("undeclared", Label(), [0.1] * 5),
    ):
        log = write_log(tmp_path / name, shop, rows, label, rates)
        files = files or examples_lib.example_files(log.patterns[1])  # all held-out rows, of every model
        means[name] = served_scores(log, files, shop, tmp_path / f"{name} model", modalities).mean(dtype=np.float64)
    for name in ("of the run", "by row"):
        assert means[name] == pytest.approx(means["full"], rel=0.03), means  # the project's bar
    assert means["undeclared"] > 2 * means["full"]
