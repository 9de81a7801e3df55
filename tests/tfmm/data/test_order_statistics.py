"""Tests of the k-th smallest of values read in pieces."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tfmm.data import order_statistics

KINDS = {
    np.float32: st.floats(width=32, allow_nan=False),
    np.int64: st.integers(-(2**63), 2**63 - 1),
}


@pytest.mark.parametrize("kind", KINDS)
@hypothesis.given(data=st.data())
def test_it_is_the_place_in_the_sorted_values(kind, data):
    drawn = st.lists(st.one_of(KINDS[kind], st.sampled_from([kind(0), kind(1)])), min_size=1, max_size=30)
    values = np.array(data.draw(drawn), kind)
    weights = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values))))
    hypothesis.assume(weights.sum() > 0)
    cut = data.draw(st.integers(0, len(values)))
    whole = np.sort(np.repeat(values, weights))
    ranks = np.array(data.draw(st.lists(st.integers(0, len(whole) - 1), min_size=1, max_size=5)))
    pieces = [(values[:cut], weights[:cut]), (values[cut:], weights[cut:])]
    found = order_statistics.select(lambda: pieces, ranks, kind)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, whole[ranks])
