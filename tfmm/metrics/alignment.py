"""What an encoder's vectors look like on the sphere: how close pairs lie, and how evenly the rest is spread."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

CHUNK = 1024  # rows compared with all others at once


def alignment(queries: npt.ArrayLike, positives: npt.ArrayLike) -> float:
    """Returns the mean squared distance of the pairs' unit vectors, in [0, 4]; 0 where each finds its own exactly.

    Wang and Isola, Understanding contrastive representation learning (2020), with their alpha = 2; float64.

    Args:
        queries, positives: float [n, D], a pair a row, of any length; pairs with a vector of zeros are left out.
    Returns:
        NaN where there is no pair.
    Raises:
        ValueError: shapes that differ.

    >>> alignment([[1.0, 0.0], [0.0, 2.0]], [[1.0, 0.0], [3.0, 0.0]])  # (0 + 2) / 2
    1.0
    """
    rows, others = np.asarray(queries, np.float64), np.asarray(positives, np.float64)
    if rows.ndim != 2 or rows.shape != others.shape:
        raise ValueError(
            f"`queries` and `positives` must both be [n, D], a pair a row. Received: {rows.shape} and {others.shape}."
        )
    known = rows.any(axis=1) & others.any(axis=1)
    if not known.any():
        return float("nan")
    return float(np.mean(np.sum((_unit(rows[known]) - _unit(others[known])) ** 2, axis=1)))


def uniformity(vectors: npt.ArrayLike, temperature: float = 2.0) -> float:
    """Returns log(mean(exp(-t |u - v|^2))) over all pairs of different rows, at most 0; the lower, the more even.

    Wang and Isola (2020), with their t = 2; float64, in memory of 1,024 x n values. 0 is a collapse: all rows in one
    place. Evenly over the sphere of many dimensions lies about -2 t.

    Args:
        vectors: float [n, D], a row per item, of any length; rows of zeros are left out.
        temperature: t, above 0; however large, since sums are of logarithms.
    Returns:
        NaN where there are fewer than two rows.
    Raises:
        ValueError: another shape or temperature.

    >>> round(uniformity([[1.0, 0.0], [-5.0, 0.0]]), 6)  # -2 x 4
    -8.0
    """
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2:
        raise ValueError(f"`vectors` must be [n, D], a row per item. Received: shape {rows.shape}.")
    if not 0.0 < temperature < np.inf:
        raise ValueError(f"`temperature` must be a number above 0; the paper's is 2. Received: {temperature}.")
    rows = _unit(rows[rows.any(axis=1)])
    count, total, peak = len(rows), 0.0, -np.inf
    if count < 2:
        return float("nan")
    for start in range(0, count, CHUNK):
        squared = np.maximum(2.0 - 2.0 * (rows[start : start + CHUNK] @ rows.T), 0.0)
        logs = -temperature * squared
        logs[np.arange(len(logs)), np.arange(start, start + len(logs))] = -np.inf
        highest = max(peak, float(logs.max()))  # so that the largest term is 1, and not all are lost
        total = total * float(np.exp(peak - highest)) + float(np.exp(logs - highest).sum())
        peak = highest
    return float(peak + np.log(total / (count * (count - 1))))


def _unit(rows: np.ndarray) -> np.ndarray:
    rows = rows / np.abs(rows).max(axis=1, keepdims=True, initial=0.0)  # so that no square leaves the range
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
