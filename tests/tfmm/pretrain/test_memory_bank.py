"""The ring: always the newest K, in whatever batches they came, also over a restart."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmm.pretrain.memory_bank import MemoryBank, ring_slots
from tfmm.training.checkpoint import Checkpoint

DIM = 2


def fill(bank, batches, start=1):
    """Enqueues batches of rows 1, 2, ...: key (n, -n) of item n."""
    for count in batches:
        ids = np.arange(start, start + count)
        bank.enqueue(tf.constant(np.stack([ids, -ids], 1), tf.float32), tf.constant(ids, tf.int64))
        start += count
    return start


def contents(bank):
    ids = bank.item_ids.numpy()
    keys = bank.keys.numpy()
    np.testing.assert_array_equal(keys[:, 0], ids)  # a key never parts from its id
    np.testing.assert_array_equal(keys[:, 1], -ids)
    return sorted(ids[ids != 0].tolist())


@settings(max_examples=60, deadline=None)
@given(size=st.integers(1, 9), batches=st.lists(st.integers(1, 12), max_size=6))
def test_holds_the_newest_keys(size, batches):
    bank = MemoryBank(size, DIM)
    end = fill(bank, batches)
    assert contents(bank) == list(range(max(1, end - size), end))
    assert int(bank.position) == sum(batches) % size
    assert bank.filled.numpy().sum() == min(size, end - 1)


@settings(max_examples=25, deadline=None)
@given(size=st.integers(1, 7), before=st.lists(st.integers(1, 9), max_size=3), after=st.integers(1, 9))
def test_restart_changes_nothing(tmp_path_factory, size, before, after):
    straight, stopped, resumed = (MemoryBank(size, DIM) for _ in range(3))
    start = fill(straight, before)
    fill(stopped, before)
    folder = tmp_path_factory.mktemp("bank")
    Checkpoint(folder, "k", {"bank": [stopped.keys, stopped.item_ids, stopped.position]}).save(1)
    Checkpoint(folder, "k", {"bank": [resumed.keys, resumed.item_ids, resumed.position]}).restore()
    fill(straight, [after], start)
    fill(resumed, [after], start)
    for name in ("keys", "item_ids", "position"):
        np.testing.assert_array_equal(getattr(straight, name), getattr(resumed, name))


def test_paper_size_wraps_inside_a_batch():
    """196,800 is not a multiple of 512: the batch that crosses the end is split."""
    slots = ring_slots(tf.constant(196_800 - 200, tf.int64), tf.constant(512), 196_800).numpy()
    assert slots[:200].tolist() == list(range(196_600, 196_800)) and slots[200:].tolist() == list(range(312))


def test_no_gradient_flows_back():
    bank, keys = MemoryBank(4, DIM), tf.Variable(tf.ones([2, DIM]))
    with tf.GradientTape() as tape:
        bank.enqueue(keys * 2.0, tf.constant([1, 2], tf.int64))
        total = tf.reduce_sum(bank.keys)
    assert tape.gradient(total, keys) is None


def test_size_zero_is_refused():
    with pytest.raises(ValueError, match="`size` must be at least 1"):
        MemoryBank(0, DIM)
