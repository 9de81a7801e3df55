"""Counting under XLA, which sums in groups, for lengths that divide well and for those that do not."""

import math

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfmm.layers import packed_counts, simtier, tier_counts


@pytest.mark.parametrize("lengths", [range(1, 2101), range(2101, 100_000, 97), [10_004, 99_991]])
def test_every_length_is_counted_in_short_sums_after_little_padding(lengths):
    for length in lengths:
        padded, sizes = packed_counts.group_sizes(length)
        assert padded % math.prod(sizes) == 0 and padded // math.prod(sizes) <= 32 and max(sizes, default=1) <= 32
        filled = [math.prod(sizes[: i + 1]) < 2**bits for i, bits in enumerate((3, 6, 12)[: len(sizes)])]
        assert all(filled), "a counter could overflow"
        assert 0 <= padded - length <= max(5, 0.07 * length)


@pytest.mark.parametrize("length", [53, 68, 212, 1004, 2501, 10_004, 70_001])
def test_awkward_lengths_are_counted_right_under_xla(rng, length):
    similarity = np.concatenate([rng.uniform(-1, 1, (2, length)), np.full((1, length), 0.15)]).astype(np.float32)
    counts = tf.function(lambda s: tier_counts(s, None, 20), jit_compile=True)(similarity)
    np.testing.assert_array_equal(counts, tier_counts(similarity, None, 20))
    assert counts[2, 11] == length


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 2**32 - 1))
def test_forms_agree_on_any_shape(length, num_tiers, seed):
    rng = np.random.default_rng(seed)
    tier = tf.constant(rng.integers(0, num_tiers + 1, size=(3, length)), tf.int32)
    expected = [np.bincount(row, minlength=num_tiers + 1)[:num_tiers] for row in tier.numpy()]
    np.testing.assert_array_equal(simtier._segment_counts(tier, num_tiers), expected)
    np.testing.assert_array_equal(packed_counts.packed_counts(tier, num_tiers), expected)


@pytest.mark.parametrize("length", [997, 1000, 1024, 4096, 10_000, 40_000])
def test_counters_never_overflow(length):
    for tier in (0, 11, 19):
        expected = np.eye(20)[[tier]] * length
        np.testing.assert_array_equal(packed_counts.packed_counts(tf.fill([1, length], tier), 20), expected)
