"""Distinct ids of a stream of them, with how often each came."""

from __future__ import annotations

import numpy as np


class Distinct:
    """Counts ids that come in pieces; each is sorted a logarithmic number of times, however many pieces there are.

    >>> seen = Distinct()
    >>> seen.add(np.array([7, 5, 7]))
    >>> seen.add(np.array([5, 9]), np.array([10, 0]))
    >>> [values.tolist() for values in seen.counted()]
    [[5, 7, 9], [11, 2, 0]]
    """

    def __init__(self) -> None:
        self._ids, self._counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []  # each id once in a piece
        self._num_waiting = 0

    def add(self, ids: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Adds ids int64 [n], or [n, k], of which each of a row counts int64 [n]; None: once."""
        often = np.ones(ids.size, np.int64) if counts is None else np.repeat(counts, ids.size // max(len(ids), 1))
        piece = _summed(ids.ravel(), often)
        self._waiting.append(piece)
        self._num_waiting += len(piece[0])
        if self._num_waiting >= len(self._ids):
            self._merge()

    def counted(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the ids, ascending, and how often each came, int64 both."""
        self._merge()
        return self._ids, self._counts

    def _merge(self) -> None:
        ids, counts = zip((self._ids, self._counts), *self._waiting)
        self._ids, self._counts = _summed(np.concatenate(ids), np.concatenate(counts))
        self._waiting, self._num_waiting = [], 0


def _summed(ids: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distinct, places = np.unique(ids, return_inverse=True)
    return distinct.astype(np.int64), np.bincount(places, counts, len(distinct)).astype(np.int64)
