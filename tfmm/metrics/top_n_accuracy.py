"""Top-N accuracy of an encoder: is the positive among the N most similar of all positives (equation 6)."""

from __future__ import annotations

import typing

import keras
import numpy as np
import numpy.typing as npt

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
    every item the same vector scores 0, not 1. Cosines closer than 1e-6 are a tie.

    Args:
        queries: float [D, dim], D here the size of the test set; the cosine normalizes.
        positives: float [D, dim]; row i belongs to query i.
        ns: the N to report, each >= 1.
        chunk: queries per similarity block; memory is chunk x D x 4 bytes.
        positive_ids: optional ids [D]. The candidates are a set: an item that is the positive of several
            queries counts once. Without ids every row is its own item, and a repeated item ties with itself.
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
    check_ns(ns)
    ranks = positive_ranks(queries, positives, chunk, positive_ids)
    return {int(n): float(np.mean(ranks <= n)) for n in ns}


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
    query_rows, candidates = _unit_rows("queries", queries), _unit_rows("positives", positives)
    if query_rows.shape != candidates.shape or query_rows.shape[0] == 0:
        raise ValueError(
            "`queries` and `positives` must both be [D, dim] with D >= 1, one positive per query. "
            f"Received: {query_rows.shape} and {candidates.shape}."
        )
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1. Received: {chunk!r}.")
    own = np.arange(query_rows.shape[0])
    if positive_ids is not None:
        candidates, own = _distinct(candidates, np.asarray(positive_ids))
    ranks = np.empty(query_rows.shape[0], np.int64)
    for start in range(0, ranks.size, chunk):
        rows = slice(start, start + chunk)
        similarity = query_rows[rows] @ candidates.T  # [chunk, candidates]
        own_similarity = np.take_along_axis(similarity, own[rows, None], axis=1)
        ranks[rows] = np.count_nonzero(
            similarity >= own_similarity - np.float32(TIE), axis=1
        )  # counts itself: + 1
    return ranks


def check_ns(ns: typing.Sequence[int]) -> None:
    """Refuses an N that is not a whole number of at least 1."""
    for n in ns:
        if int(n) != n or n < 1:
            raise ValueError(f"`ns` must hold whole numbers >= 1. Received: {n!r}.")


def _unit_rows(name: str, vectors: npt.ArrayLike) -> np.ndarray:
    rows = np.asarray(vectors, np.float32)
    if rows.ndim != 2:
        raise ValueError(f"`{name}` must be [D, dim]. Received: shape {rows.shape}.")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        raise ValueError(
            f"`{name}` must be finite. Received: NaN or infinity in row "
            f"{int(np.argmin(np.isfinite(norms)))}. Find the input that the encoder fails on."
        )
    return rows / np.maximum(norms, 1e-12)


def _distinct(candidates: np.ndarray, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keeps one candidate per id; returns them, and for each row the place of its own."""
    if ids.shape != (candidates.shape[0],):
        raise ValueError(
            f"`positive_ids` must have one id per positive, {candidates.shape[0]}. "
            f"Received: shape {ids.shape}."
        )
    _, first, own = np.unique(ids, return_index=True, return_inverse=True)
    distinct = candidates[first]
    apart = np.abs(distinct[own] - candidates).max(axis=1) > 1e-3
    if apart.any():
        row = int(np.argmax(apart))
        raise ValueError(
            "One id must have one vector. Received: different vectors in `positives` for id "
            f"{ids[row].item()!r} (row {row}). Embed each item once, without augmentation."
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
    """

    def __init__(
        self,
        ns: typing.Sequence[int] = (1, 5),
        chunk: int = 1024,
        name: str = "top_n_accuracy",
        dtype: typing.Any = None,
    ) -> None:
        super().__init__(name=name, dtype=dtype)
        check_ns(ns)
        self.ns = tuple(int(n) for n in ns)
        self.chunk = chunk

    def update_state(self, queries, positives, positive_ids=None) -> None:
        """Adds a batch: queries and positives float [B, dim], optionally the item ids of the positives."""
        way_out = "Encode the test set first and call `top_n_accuracy`."
        batch = {
            "queries": host_array(self, queries, way_out),
            "positives": host_array(self, positives, way_out),
        }
        if batch["queries"].shape != batch["positives"].shape or batch["queries"].ndim != 2:
            raise ValueError(
                "`queries` and `positives` must both be [B, dim], one positive per query. "
                f"Received: {batch['queries'].shape} and {batch['positives'].shape}."
            )
        if positive_ids is not None:
            batch["positive_ids"] = host_array(self, positive_ids, way_out)
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
