"""Checks on labels, scores and weights where they enter a metric."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def binary_labels(labels: npt.ArrayLike) -> np.ndarray:
    """Returns bool [n], True where the label is 1.

    Raises:
        ValueError: not one-dimensional, or a value other than 0 and 1.
    """
    array = _column("labels", labels)
    clicked = array.astype(bool)
    if array.dtype != np.bool_ and not np.array_equal(clicked, array):
        wrong = array[clicked != array][0]
        raise ValueError(
            f"`labels` must be 0 or 1. Received: {wrong}. Turn graded or missing labels into 0 and 1 "
            "first, or drop those rows."
        )
    return clicked


def finite_scores(name: str, scores: npt.ArrayLike, size: int) -> np.ndarray:
    """Returns floats [n] (float32 stays float32, all else is float64).

    Raises:
        ValueError: another length than `size`, NaN or infinity.
    """
    array = _column(name, scores)
    if array.shape != (size,):
        raise ValueError(f"`{name}` must have one value per label, {size}. Received: {array.shape[0]}.")
    if array.dtype != np.float32:
        array = array.astype(np.float64)
    if not np.isfinite(array).all():
        row = int(np.argmin(np.isfinite(array)))
        raise ValueError(
            f"`{name}` must be finite. Received: {array[row]} in row {row}. Find the example that "
            "makes the model overflow, or drop that row."
        )
    return array


def probabilities(scores: npt.ArrayLike, size: int) -> np.ndarray:
    """Returns float64 [n] in [0, 1].

    Raises:
        ValueError: NaN, or a value outside [0, 1] (a logit, say).
    """
    array = finite_scores("scores", scores, size).astype(np.float64)
    outside = (array < 0.0) | (array > 1.0)
    if outside.any():
        raise ValueError(
            "`scores` must be probabilities in [0, 1]. "
            f"Received: {array[outside][0]}. Apply the sigmoid to logits first."
        )
    return array


def sample_weights(weights: npt.ArrayLike | None, size: int) -> np.ndarray | None:
    """Returns float64 [n] >= 0, or None where no weights were given.

    Raises:
        ValueError: another length than `size`, a negative weight or NaN.
    """
    if weights is None:
        return None
    array = finite_scores("weights", weights, size).astype(np.float64)
    if (array < 0.0).any():
        raise ValueError(f"`weights` must not be negative. Received: {array.min()}.")
    return array


def id_column(user_ids: npt.ArrayLike, size: int) -> np.ndarray:
    """Returns integers or strings [n].

    Raises:
        ValueError: another length than `size`, or ids that are neither integers nor strings.
    """
    array = _column("user_ids", user_ids)
    if array.shape != (size,):
        raise ValueError(f"`user_ids` must have one id per label, {size}. Received: {array.shape[0]}.")
    if array.dtype.kind not in "iuUSO":
        raise ValueError(
            f"`user_ids` must be integers or strings. Received: {array.dtype}. Floats cannot hold "
            "64-bit ids; keep them integers."
        )
    return array


def _column(name: str, values: npt.ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        raise ValueError(f"`{name}` must be one-dimensional, [n] or [n, 1]. Received: shape {array.shape}.")
    return array
