"""The k-th smallest of values that are read in pieces, exactly, in memory that does not grow with their number."""

from __future__ import annotations

import typing

import numpy as np

_BITS = 16  # of a digit: one pass over the values finds one digit of each result
Pieces = typing.Callable[[], typing.Iterable[tuple[np.ndarray, np.ndarray | None]]]


def select(pieces: Pieces, ranks: np.ndarray, dtype: np.dtype | type) -> np.ndarray:
    """Returns the values of some ranks, by radix selection.

    Args:
        pieces: called once per digit; yields values [n] of the dtype, no NaN, and how often each counts, whole numbers
            [n], or None: once.
        ranks: int64 [r], from 0, below the values' number.
        dtype: int64 or float32.
    Returns:
        The values [r]. 4 passes for int64, 2 for float32; memory of r histograms.

    >>> select(lambda: [(np.array([50, 10]), None), (np.array([-20]), None)], np.array([0, 2]), np.int64)
    array([-20,  50])
    """
    kind, left = np.dtype(dtype), np.array(ranks, np.int64)
    prefixes = np.zeros(len(left), np.uint64)
    for shift in range(8 * kind.itemsize - _BITS, -1, -_BITS):
        distinct, slots = np.unique(prefixes, return_inverse=True)
        counts = np.zeros((len(distinct) + 1) << _BITS, np.int64)  # the last row: values of no prefix
        for values, weights in pieces():
            keys = _keys(np.asarray(values, kind))
            above = (keys >> np.uint64(shift)) >> np.uint64(_BITS)
            slot = np.minimum(np.searchsorted(distinct, above), len(distinct) - 1)
            slot = np.where(distinct[slot] == above, slot, len(distinct))
            digits = ((keys >> np.uint64(shift)) & np.uint64(2**_BITS - 1)).astype(np.int64)
            counts += np.bincount((slot << _BITS) + digits, weights, len(counts)).astype(np.int64)
        for i, slot_of_rank in enumerate(slots):
            reached = np.cumsum(counts[slot_of_rank << _BITS : (slot_of_rank + 1) << _BITS])
            digit = int(np.searchsorted(reached, left[i], side="right"))
            left[i] -= reached[digit - 1] if digit else 0
            prefixes[i] = (prefixes[i] << np.uint64(_BITS)) | np.uint64(digit)
    return _values(prefixes, kind)


def _keys(values: np.ndarray) -> np.ndarray:
    """Returns uint64 that are ordered as the values are."""
    if values.dtype == np.int64:
        return values.view(np.uint64) ^ np.uint64(2**63)
    bits = (values + np.float32(0)).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31)).astype(np.uint64)


def _values(keys: np.ndarray, kind: np.dtype) -> np.ndarray:
    if kind == np.int64:
        return (keys ^ np.uint64(2**63)).view(np.int64)
    bits = keys.astype(np.uint32)
    return np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits).astype(np.uint32).view(np.float32)
