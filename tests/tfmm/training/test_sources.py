"""Tests of examples as trainers read them: from shards as from TFRecords, batch by batch."""

import numpy as np
import pytest
import tensorflow as tf

from tfmm import preprocessing
from tfmm.config import DataConfig
from tfmm.data import examples, join, shards, transform
from tfmm.features import Feature, FeatureSet, Sequence
from tfmm.index import item_vectors
from tfmm.training import sources
from tfmm.training.examples import IS_ROW, example_files

FEATURES = FeatureSet(
    features=(
        *FeatureSet().features,
        Feature("weekday", "context", "time", source="impressions.timestamp", part="weekday"),
        Feature("age", "behavior", "number", scaling="log", source="behaviors.age"),
    ),
    sequences=(Sequence("acts", features=("item_id", "category", "age")),),
).resolved(max_behaviors=6, min_count=2)


@pytest.fixture(scope="module")
def folder(small_marketplace, tmp_path_factory):
    path = tmp_path_factory.mktemp("examples")
    join.write_examples(small_marketplace, DataConfig(max_behaviors=6), FEATURES, path / "raw")
    transform.fit(path / "raw", path / "vocabulary")
    preprocessor = preprocessing.load(FEATURES, path / "vocabulary")
    columns = shards.read_columns(str(path / "raw" / "eval-*"))
    inputs = preprocessor({name: tf.constant(values) for name, values in columns.items()})
    with tf.io.TFRecordWriter(str(path / "eval-0.tfrecord")) as writer:
        for record in examples.serialize(columns | {name: values.numpy() for name, values in inputs.items()}):
            writer.write(record)
    return path


@pytest.fixture
def tables(folder):
    ids = np.unique(np.load(folder / "raw" / "items.npy")["item_id"][1:])[::2]  # half of the items have a vector
    rows = np.random.default_rng(0).integers(-127, 128, (len(ids), 4)).astype(np.int8)
    return {"image": item_vectors.ItemVectors(ids, rows, np.ones(len(ids), np.float32))}


def test_shards_give_what_transformed_records_give(folder, tables):
    preprocessor = preprocessing.load(FEATURES, folder / "vocabulary")
    on_disk, spooled = (
        sources.open_source(example_files(folder / pattern), FEATURES, tables, preprocessor)
        for pattern in ("raw/eval-*", "eval-0.tfrecord")
    )
    assert isinstance(on_disk, sources.OnDisk) and isinstance(spooled, sources.Spooled)
    assert on_disk.num_rows == spooled.num_rows
    places = np.random.default_rng(0).permutation(on_disk.num_rows)
    found, expected = on_disk.gather(places), spooled.gather(places)
    assert set(found) == set(expected) - {"user_id", "item_id", "timestamp"}
    for name, values in found.items():
        np.testing.assert_array_equal(values, expected[name], name)
        assert values.dtype == expected[name].dtype, name
    for name in ("user_id", "item_id", "timestamp", "label"):
        np.testing.assert_array_equal(on_disk.column(name), spooled.column(name))
    assert (found["image_acts_slots"] > 0).any() and (found["acts_age_value"] > 0).any()


def test_without_a_preprocessor_a_source_gives_labels_and_slots_alone(folder, tables):
    source = sources.open_source(example_files(folder / "raw/eval-*"), FEATURES, tables)
    assert set(source.gather(np.arange(3))) == {"label", "image_target_slots", "image_acts_slots"}


def test_batches_follow_from_their_number_so_that_training_goes_on_at_any_step(folder, tables):
    source = sources.open_source(example_files(folder / "raw/train-*"), FEATURES, tables)
    order = np.random.default_rng(1).permutation(source.num_rows)[:1000]

    def change(columns, number):
        return columns | {"number": np.full(len(columns["label"]), number)}

    whole = list(sources.dataset(source, order, 64, change).as_numpy_iterator())
    assert len(whole) == 16 and int(sources.dataset(source, order, 64).cardinality()) == 16
    assert whole[-1][IS_ROW].tolist() == [True] * 40 + [False] * 24
    assert not whole[-1]["image_acts_slots"][40:].any()
    for i, batch in enumerate(sources.dataset(source, order, 64, change).skip(9).as_numpy_iterator()):
        for name, values in batch.items():
            np.testing.assert_array_equal(values, whole[9 + i][name])
    shown = np.concatenate([batch["label"][batch[IS_ROW]] for batch in whole])
    np.testing.assert_array_equal(shown, source.column("label")[order])


def test_the_preprocessor_is_traced_once_however_many_behaviors_a_batch_has(folder, tables, monkeypatch):
    preprocessor, traced = preprocessing.load(FEATURES, folder / "vocabulary"), []

    def counted(raw, columns, *rest):
        if isinstance(next(iter(raw.values())), tf.__internal__.SymbolicTensor):
            traced.append(sorted(raw))
        return preprocess(raw, columns, *rest)

    preprocess = preprocessing.preprocess
    source = sources.open_source(example_files(folder / "raw/train-*"), FEATURES, tables, preprocessor)
    monkeypatch.setattr(preprocessing, "preprocess", counted)
    for number in range(5):
        source.gather(np.arange(64 * number, 64 * number + 50 + number))
    assert sorted(traced) == [["acts_age"], ["user_id", "weekday"]]


def test_a_part_of_the_declaration_can_be_read_and_another_one_is_refused(folder):
    files = example_files(folder / "raw/train-*")
    assert sources.open_source(files, FeatureSet(FEATURES.features[:3], ()).resolved(6, 2), {}).num_rows
    longer = FeatureSet(FEATURES.features, FEATURES.sequences).resolved(6, 2)
    for wrong in (FeatureSet().resolved(6, 2), FeatureSet(sequences=(Sequence("acts"),)).resolved(9, 2)):
        with pytest.raises(ValueError, match=r"Examples must have the columns .*differ. Write the examples again"):
            sources.open_source(files, wrong, {})
    assert longer == FEATURES


def test_labels_of_an_empty_order_are_no_batch(folder):
    source = sources.open_source(example_files(folder / "raw/train-*"), FEATURES, {})
    assert not list(sources.dataset(source, np.zeros(0, np.int64), 8))
