"""Tests of reading and ordering examples."""

import pathlib
import zlib

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfmm.features import FeatureSet
from tfmm.training import examples as examples_lib
from tfmm.training import sources


def test_columns_have_the_values_that_were_written(shop):
    files = examples_lib.example_files(shop.train)
    names = ("item_id", "label", "behavior_item_ids", "item_id_index")
    columns = examples_lib.read_columns(files, shop.features, names)
    assert {name: values.shape for name, values in columns.items()} == {
        "item_id": (3000,),
        "label": (3000,),
        "behavior_item_ids": (3000, shop.features.sequences[0].length),
        "item_id_index": (3000,),
    }
    assert columns["item_id"].dtype == np.int64 and columns["item_id_index"].dtype == np.int32


def test_time_order_does_not_depend_on_the_files(shop):
    files, names = examples_lib.example_files(shop.train), ("timestamp", "user_id", "item_id", "label")
    columns = [
        examples_lib.in_time_order(examples_lib.read_columns(part, shop.features, names))
        for part in (files, files[::-1])
    ]
    assert (np.diff(columns[0]["timestamp"]) > 0).all()
    for name in columns[0]:
        np.testing.assert_array_equal(columns[0][name], columns[1][name])


@hypothesis.given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 5))
def test_blocked_order_is_a_permutation_that_keeps_blocks(num_rows, block_size, seed):
    order = examples_lib.blocked_order(num_rows, block_size, seed, epoch=0)
    assert sorted(order) == list(range(num_rows))
    assert (order // block_size == np.arange(num_rows) // block_size).all()


def test_orders_differ_between_epochs_and_seeds_and_repeat():
    orders = [examples_lib.shuffled_order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[3] == examples_lib.shuffled_order(50, 1, 1).tolist()


def test_last_batch_is_filled_and_marked():
    rows = sources.InMemory({"x": np.arange(10, 15)})
    batches = list(sources.dataset(rows, np.array([4, 3, 2, 1, 0]), batch_size=2))
    assert [batch["x"].numpy().tolist() for batch in batches] == [[14, 13], [12, 11], [10, 0]]
    assert batches[-1][examples_lib.IS_ROW].numpy().tolist() == [True, False]


def test_digest_follows_values():
    columns = {"x": np.arange(3), "y": np.zeros(2)}
    assert examples_lib.digest(columns) == examples_lib.digest({"y": np.zeros(2), "x": np.arange(3)})
    assert examples_lib.digest(columns) != examples_lib.digest({**columns, "x": np.arange(1, 4)})


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No example file matches .*train-\*"):
        examples_lib.example_files(tmp_path / "train-*")


def write(path, **values):
    feature = {n: tf.train.Feature(int64_list=tf.train.Int64List(value=v)) for n, v in values.items()}
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    return [str(path)]


def test_damaged_file_is_refused(shop, tmp_path):
    whole = pathlib.Path(examples_lib.example_files(shop.eval)[0]).read_bytes()
    damaged = tmp_path / "eval.tfrecord.gz"
    damaged.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"must be whole TFRecord files.*Write the examples again"):
        examples_lib.read_columns([str(damaged)], shop.features, ("item_id", "label", "behavior_item_ids"))


def test_file_that_ends_between_two_records_is_refused(tmp_path):
    record = pathlib.Path(write(tmp_path / "one", item_id=[1], behavior_item_ids=[1], label=[1])[0]).read_bytes()
    compressor = zlib.compressobj(wbits=31)
    ended_early = tmp_path / "early.gz"
    ended_early.write_bytes(compressor.compress(record) + compressor.flush(zlib.Z_FULL_FLUSH))
    with pytest.raises(ValueError, match=r"whole TFRecord files.*early\.gz.*Write the examples again"):
        examples_lib.read_columns([str(ended_early)], FeatureSet().resolved(1, 1), ("item_id", "label"))


def test_bad_examples_are_refused(tmp_path):
    names, one = ("item_id", "label", "behavior_item_ids"), FeatureSet().resolved(max_behaviors=1, min_count=1)
    for folder, columns in (
        ("a", {"item_id": [1]}),
        ("b", {"item_id": [1], "behavior_item_ids": [1]}),
    ):
        with pytest.raises(ValueError, match=r"Examples must have the columns .*'label'"):
            examples_lib.read_columns(write(tmp_path / folder, **columns), one, names)
    with pytest.raises(ValueError, match="`label` must be 0 or 1"):
        examples_lib.read_columns(write(tmp_path / "c", item_id=[1], behavior_item_ids=[1], label=[3]), one, names)
    with pytest.raises(ValueError, match=r"sequences with {'behavior': 5} values each"):
        examples_lib.read_columns(
            write(tmp_path / "d", item_id=[1], behavior_item_ids=[1], label=[1]),
            FeatureSet().resolved(max_behaviors=5, min_count=1),
            names,
        )
    (tmp_path / "e").touch()
    with pytest.raises(ValueError, match="hold no example"):
        examples_lib.read_columns([str(tmp_path / "e")], one, names)
