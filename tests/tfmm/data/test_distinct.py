"""Distinct ids of a stream."""

import collections

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tfmm.data import distinct

PIECES = st.lists(st.lists(st.tuples(st.integers(-4, 9), st.integers(0, 3)), max_size=8), max_size=12)


@given(PIECES)
def test_counts_are_those_of_all_pieces_together(pieces):
    seen, expected = distinct.Distinct(), collections.Counter()
    for piece in pieces:
        rows = np.array(piece, np.int64).reshape(-1, 2)
        seen.add(rows[:, 0], rows[:, 1])
        for value, count in piece:
            expected[value] += count
    ids, counts = seen.counted()
    assert dict(zip(ids.tolist(), counts.tolist())) == dict(expected) and ids.tolist() == sorted(expected)


def test_lists_of_ids_count_as_their_row_does():
    seen = distinct.Distinct()
    seen.add(np.array([[1, 2], [2, 0]]), np.array([3, 5]))
    assert [values.tolist() for values in seen.counted()] == [[0, 1, 2], [5, 3, 8]]


def test_many_small_pieces_are_merged_a_logarithmic_number_of_times(monkeypatch):
    merged, seen = [], distinct.Distinct()
    merge = distinct.Distinct._merge
    monkeypatch.setattr(distinct.Distinct, "_merge", lambda self: merged.append(1) or merge(self))
    for piece in range(1_000):
        seen.add(np.arange(piece * 10, piece * 10 + 10))
    assert len(seen.counted()[0]) == 10_000 and len(merged) < 20
