"""Counting under XLA, which sums in groups, for lengths that divide well and for those that do not."""

import math

import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import simtier, tier_counts


@pytest.mark.parametrize("lengths", [range(1, 2101), range(2101, 100_000, 97), [10_004, 99_991]])
def test_every_length_is_counted_in_short_sums_after_little_padding(lengths):
    for length in lengths:
        padded, sizes = simtier._group_sizes(length)
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
