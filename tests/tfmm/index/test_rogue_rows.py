"""Rows that no index writes: scales that are none, sequences out of an index's range. One bad row, none is written."""

import time

import numpy as np
import pytest
import tensorflow as tf

from tfmm import saved_model
from tfmm.index import encode, graph_table, item_index

DIM = 4


class Table(tf.Module):
    """A SavedModel that is one table, empty at first."""

    def __init__(self):
        super().__init__()
        self.table = graph_table.GraphTable("image", None, DIM, 16, "v1")

    def signatures(self):
        def upsert(**values):
            return {"statuses": self.table.upsert(**values)}

        def lookup(ids):
            return dict(zip(("rows", "scales", "mask"), self.table.lookup(ids)))

        specs = {
            "ids": tf.TensorSpec([None], tf.int64),
            "rows": tf.TensorSpec([None, DIM], tf.int8),
            "scales": tf.TensorSpec([None], tf.float32),
            "sequences": tf.TensorSpec([None], tf.int64),
            "encoder_version": tf.TensorSpec([], tf.string),
        }
        return {
            "upsert": tf.function(upsert).get_concrete_function(**specs),
            "lookup": tf.function(lookup).get_concrete_function(ids=specs["ids"]),
            "status": tf.function(self.table.status).get_concrete_function(),
        }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    module = Table()
    return saved_model.save(module, module.signatures(), tmp_path_factory.mktemp("table") / "1")


@pytest.fixture
def table(folder):
    with saved_model.load_session(folder) as loaded:
        yield loaded


def upsert(table, scales, sequences):
    rows, _ = encode.quantize(np.random.default_rng(0).normal(size=[len(scales), DIM]))
    inputs = {
        "ids": np.arange(1, len(scales) + 1),
        "rows": rows,
        "scales": np.float32(scales),
        "sequences": np.int64(sequences),
        "encoder_version": "v1",
    }
    return table("upsert", inputs)["statuses"].tolist()


@pytest.mark.parametrize("scale", [np.inf, -np.inf, np.nan, -0.5])
def test_one_scale_that_is_none_and_nothing_is_written(table, scale):
    with pytest.raises(tf.errors.InvalidArgumentError, match="finite and not negative"):
        upsert(table, [0.5, scale, 0.5], [1, 2, 3])
    assert not table("lookup", {"ids": [1, 2, 3]})["mask"].any()
    assert (table("status", {})["watermark"], table("status", {})["size"]) == (0, 0)
    assert upsert(table, [0.5, 0.0], [1, 2]) == [graph_table.WRITTEN, graph_table.WITHDRAWN]  # and it goes on


@pytest.mark.parametrize("sequence", [2**62, 2**63 - 1, -1, 0])
def test_sequence_that_no_index_gives_does_not_move_the_watermark(table, sequence):
    with pytest.raises(tf.errors.InvalidArgumentError, match="sequences"):
        upsert(table, [0.5, 0.5], [1, sequence])
    assert (table("status", {})["watermark"], table("status", {})["size"]) == (0, 0)


def test_sequences_that_an_index_gives_now_are_taken(table, tmp_path):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        rows, scales = encode.quantize(np.random.default_rng(0).normal(size=[3, DIM]))
        index.write("image", "v1", [1, 2, 3], rows, scales, [1, 1, 1])
        found = index.changes("image", "v1", 0)
    inputs = {
        "ids": found.ids,
        "rows": found.rows,
        "scales": found.scales,
        "sequences": found.sequences,
        "encoder_version": "v1",
    }
    assert table("upsert", inputs)["statuses"].tolist() == [graph_table.WRITTEN] * 3
    assert 0 < table("status", {})["watermark"] <= time.time_ns() // 1000 + 1_000_000


@pytest.mark.parametrize("scale", [np.inf, np.nan, -1.0])
def test_index_takes_no_such_scale_either(tmp_path, scale):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        with pytest.raises(ValueError, match="`scales` must be finite and not negative"):
            index.write("image", "v1", [1, 2], np.ones([2, DIM], np.int8), [0.5, scale], [1, 1])
        assert not index.encoders()
