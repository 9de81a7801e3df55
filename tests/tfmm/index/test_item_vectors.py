"""Tests of the int8 item vectors of one modality."""

import numpy as np
import pytest
import tensorflow as tf

from tfmm.index import encode
from tfmm.index.item_vectors import ItemVectors


def make_vectors():
    rows, scales = encode.quantize(np.random.default_rng(0).normal(size=(3, 4)))
    scales[1] = 0  # withdrawn
    return ItemVectors(np.array([9, -5, 7]), rows, scales), rows, scales


def test_lookup_gives_the_row_of_each_id():
    vectors, rows, scales = make_vectors()
    found = vectors.lookup(tf.constant(vectors.slots(np.array([[7, 9], [9, 7]]))))
    np.testing.assert_array_equal(found[0], rows[[[2, 0], [0, 2]]])
    np.testing.assert_array_equal(found[1], scales[[[2, 0], [0, 2]]])
    assert found[2].numpy().all()


def test_padding_unknown_and_withdrawn_items_are_masked():
    vectors, _, _ = make_vectors()
    slots = vectors.slots(np.array([0, 123, -5, 10**18]))
    assert slots.tolist() == [0, 0, 0, 0]
    rows, scales, mask = vectors.lookup(tf.constant(slots))
    assert not mask.numpy().any() and not rows.numpy().any() and not scales.numpy().any()


def test_an_empty_table_has_no_slot():
    vectors = ItemVectors(np.zeros(0, np.int64), np.zeros((0, 4), np.int8), np.zeros(0, np.float32))
    assert vectors.slots(np.array([3])).tolist() == [0]


@pytest.mark.parametrize(
    ("ids", "scales", "message"),
    [
        ([1, 1], [1.0, 1.0], "`ids` must be unique"),
        ([0, 1], [1.0, 1.0], "not 0"),
        ([1, 2], [1.0, np.nan], "`scales` must be finite"),
        ([1, 2, 3], [1.0, 1.0], "must have one length"),
    ],
)
def test_bad_tables_are_refused(ids, scales, message):
    with pytest.raises(ValueError, match=message):
        ItemVectors(np.array(ids), np.ones((2, 4), np.int8), np.array(scales))
