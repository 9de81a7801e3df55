"""Top-N accuracy of an encoder: is the positive among the N most similar of all positives (equation 6)."""

from __future__ import annotations

import typing

import keras
import numpy as np
import numpy.typing as npt

from tfmm.layers.checks import require_int, require_ints
from tfmm.metrics.inputs import id_column
from tfmm.metrics.state import RowsMetric, host_array

TIE = 1e-6  # cosines closer than this tie: one dot differs by about 1e-7 between two GEMMs


def top_n_accuracy(
    queries: npt.ArrayLike,
    positives: npt.ArrayLike,
    ns: typing.Sequence[int] = (1, 5),
    chunk: int = 1024,
    positive_ids: npt.ArrayLike | None = None,
) -> dict[int, float]:
    """Computes Acc@N: the share of queries whose positive is among the N most similar positives (equation 6).

    Ties cannot flatter: what ties with the positive counts as ranked before it, so that an encoder that gives
    every item the same vector scores 0, not 1. Cosines closer than 1e-6 are a tie. A query whose vector is zero,
    or whose positive's is (an image that cannot be read), ranks its positive last.

    Args:
        queries: float [D, dim], D here the size of the test set; the cosine normalizes.
        positives: float [D, dim]; row i belongs to query i.
        ns: the N to report, each >= 1.
        chunk: queries per similarity block; memory is chunk x D x 4 bytes.
        positive_ids: optional integers or strings [D]. The candidates are a set: an item that is the positive of
            several queries counts once. Without ids every row is its own item, and a repeated item ties with itself.
    Returns:
        {N: accuracy in [0, 1]}.
    Raises:
        ValueError: shapes that differ, no rows, NaN, N < 1, or one id with different vectors.

    >>> queries, positives = [[1.0, 0.0], [0.0, 1.0]], [[0.8, 0.6], [0.6, 0.8]]
    >>> top_n_accuracy(queries, positives, ns=(1, 2))
    {1: 1.0, 2: 1.0}
    >>> top_n_accuracy(queries, [[1.0, 1.0], [1.0, 1.0]], ns=(1,))       # collapsed: all tie
    {1: 0.0}
    """
    ns = require_ints("ns", ns)
    ranks = positive_ranks(queries, positives, chunk, positive_ids)
    return {n: float(np.mean(ranks <= n)) for n in ns}


def positive_ranks(
    queries: npt.ArrayLike,
    positives: npt.ArrayLike,
    chunk: int = 1024,
    positive_ids: npt.ArrayLike | None = None,
) -> np.ndarray:
    """Ranks each query's positive among all positives, 1 the most similar, a tie ranked before it.

    Args:
        queries, positives, chunk, positive_ids: as in `top_n_accuracy`.
    Returns:
        int64 [D], at least 1.
    Raises:
        ValueError: as `top_n_accuracy`.
    """
    chunk = require_int("chunk", chunk)
    query_rows, candidates = _unit_rows("queries", queries), _unit_rows("positives", positives)
    _check_pairs(query_rows, candidates)
    if query_rows.shape[0] == 0:
        raise ValueError("Top-N accuracy needs at least one query. Received: 0 rows. Widen the test set.")
    own = np.arange(query_rows.shape[0])
    if positive_ids is not None:
        candidates, own = _distinct(candidates, id_column("positive_ids", positive_ids, own.size))
    tie = np.where(candidates.any(axis=1), np.float32(TIE), np.float32(np.inf))[own]  # all beat a zero positive
    ranks = np.empty(query_rows.shape[0], np.int64)
    for start in range(0, ranks.size, chunk):
        rows = slice(start, start + chunk)
        similarity = query_rows[rows] @ candidates.T  # [chunk, candidates]
        own_similarity = np.take_along_axis(similarity, own[rows, None], axis=1)
        ranks[rows] = np.count_nonzero(similarity >= own_similarity - tie[rows, None], axis=1)  # itself: + 1
    return ranks


def _check_pairs(queries: np.ndarray, positives: np.ndarray) -> None:
    if queries.shape != positives.shape:
        raise ValueError(
            "`queries` and `positives` must both be [D, dim], one positive per query. "
            f"Received: {queries.shape} and {positives.shape}. Repeat an item that is the positive of several."
        )


def _finite_rows(name: str, vectors: npt.ArrayLike) -> np.ndarray:
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2:
        raise ValueError(f"`{name}` must be [D, dim]. Received: shape {rows.shape}. Give one vector per query.")
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"`{name}` must be finite. Received: NaN or infinity in row {int(np.argmin(finite))}. "
            "Find the input that the encoder fails on."
        )
    return rows


def _unit_rows(name: str, vectors: npt.ArrayLike) -> np.ndarray:
    """Returns the vectors at length 1, float32 [D, dim]; zero vectors stay zero."""
    rows = _finite_rows(name, vectors)
    largest = np.abs(rows).max(axis=1, keepdims=True, initial=0.0)
    rows = rows / np.where(largest > 0, largest, 1)  # so that no square leaves the range of float32
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1)


def _distinct(candidates: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keeps one candidate per id; returns them, and for each row the place of its own."""
    _, first, own = np.unique(ids, return_index=True, return_inverse=True)
    distinct = candidates[first]
    apart = np.abs(distinct[own] - candidates).max(axis=1) > 1e-3
    if apart.any():
        row = int(np.argmax(apart))
        raise ValueError(
            "One id must have one vector. Received: different vectors in `positives` for id "
            f"{ids.tolist()[row]!r} (row {row}). Embed each item once, without augmentation."
        )
    return distinct, own


@keras.saving.register_keras_serializable("tfmm")
class TopNAccuracy(RowsMetric):
    """Acc@N over all batches: every positive of every batch is a candidate; keeps the vectors in host memory.

    Call `update_state(queries, positives, positive_ids=None)` eagerly. `result()` is {"acc_at_1": ..., ...},
    NaN while there are no rows.

    Args:
        ns: the N to report.
        chunk: queries per similarity block.

    >>> metric = TopNAccuracy(ns=(1, 2))
    >>> metric.update_state([[1.0, 0.0]], [[0.8, 0.6]])       # cosines 0.8 and 0: its own is first
    >>> metric.update_state([[1.0, 0.1]], [[0.0, 1.0]])       # 0.86 and 0.10: its own is second
    >>> metric.result()
    {'acc_at_1': 0.5, 'acc_at_2': 1.0}
    """

    def __init__(
        self,
        ns: typing.Sequence[int] = (1, 5),
        chunk: int = 1024,
        name: str = "top_n_accuracy",
        dtype: typing.Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        self.ns = require_ints("ns", ns)
        self.chunk = require_int("chunk", chunk)

    def update_state(self, queries, positives, positive_ids=None) -> None:
        """Adds a batch: queries and positives float [B, dim], optionally the item ids of the positives."""
        way_out = "Encode the test set first and call `top_n_accuracy`."
        batch = {
            "queries": _finite_rows("queries", host_array(self, queries, way_out)),
            "positives": _finite_rows("positives", host_array(self, positives, way_out)),
        }
        _check_pairs(**batch)
        if positive_ids is not None:
            ids = host_array(self, positive_ids, way_out)
            batch["positive_ids"] = id_column("positive_ids", ids, batch["positives"].shape[0])
        self.add_state(batch)

    def result(self) -> dict[str, float]:
        state = self.state()
        if not state:
            return {f"acc_at_{n}": float("nan") for n in self.ns}
        accuracy = top_n_accuracy(
            state["queries"], state["positives"], self.ns, self.chunk, state.get("positive_ids")
        )
        return {f"acc_at_{n}": value for n, value in accuracy.items()}

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "ns": self.ns, "chunk": self.chunk}
