"""Checks on labels, scores and weights where they enter a metric."""

from __future__ import annotations

import typing

import numpy as np
import numpy.typing as npt


def binary_labels(labels: npt.ArrayLike) -> np.ndarray:
    """Returns bool [n], True where the label is 1.

    Raises:
        ValueError: not one-dimensional, or a value other than 0 and 1.
    """
    array = _column("labels", labels)
    if array.dtype == np.bool_:
        return array
    array = _numbers("labels", array)
    clicked = array.astype(bool)
    if not np.array_equal(clicked, array):
        wrong = array[clicked != array][0]
        raise ValueError(
            f"`labels` must be 0 or 1. Received: {wrong}. Turn graded or missing labels into 0 and 1 "
            "first, or drop those rows."
        )
    return clicked


def finite_scores(name: str, scores: npt.ArrayLike, size: int) -> np.ndarray:
    """Returns numbers [n]; integers stay integers, as float64 would make ties of those above 2^53.

    Raises:
        ValueError: another length than `size`, no numbers, NaN or infinity.
    """
    array = _numbers(name, _column(name, scores))
    check_length(name, array.shape[0], size)
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
        raise ValueError(f"`weights` must not be negative. Received: {array.min()}. Give rows to leave out 0.")
    return array


def id_column(name: str, ids: npt.ArrayLike, size: int) -> np.ndarray:
    """Returns integers or strings [n]; an object column stays one, its elements all of one kind.

    Raises:
        ValueError: another length than `size`, or ids that are not all integers, all str, or all bytes.
    """
    array = _column(name, ids)
    check_length(name, array.shape[0], size)
    if array.dtype == object:
        _check_id_elements(name, array)
    elif array.size and array.dtype.kind not in "iuUS":
        raise ValueError(
            f"`{name}` must be integers or strings. Received: {array.dtype}. Floats cannot hold "
            "64-bit ids; keep them integers."
        )
    return array


def check_column(name: str, shape: typing.Sequence[int | None]) -> None:
    """Refuses a shape other than [n] and [n, 1]; None is a size that is not known yet."""
    if len(shape) not in (1, 2) or (len(shape) == 2 and shape[1] not in (1, None)):
        raise ValueError(
            f"`{name}` must be one-dimensional, [n] or [n, 1]. Received: shape {tuple(shape)}. "
            "Give each output of a model a metric of its own."
        )


def check_length(name: str, length: int | None, size: int | None) -> None:
    """Refuses a length other than `size`; None is one that is not known yet."""
    if length != size and length is not None and size is not None:
        raise ValueError(
            f"`{name}` must have one value per row, {size}. Received: {length}. "
            "Take all columns from the same rows."
        )


def as_array(values: npt.ArrayLike) -> np.ndarray:
    """Returns `np.asarray(values)`; a list with strings as objects, where 1 does not become "1"."""
    array = np.asarray(values)
    is_list_of_strings = array.dtype.kind in "US" and isinstance(values, (list, tuple))
    return np.array(values, dtype=object) if is_list_of_strings else array


def _column(name: str, values: npt.ArrayLike) -> np.ndarray:
    array = as_array(values)
    check_column(name, array.shape)
    return array[:, 0] if array.ndim == 2 else array


def _numbers(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype == object:
        array = np.array(array.tolist())  # NumPy finds the type of the elements: whole numbers stay whole
    if array.dtype.kind in "iuf":
        return array
    if array.dtype.kind in "bV":  # bfloat16 is a V
        return array.astype(np.float64)
    raise ValueError(f"`{name}` must be numbers. Received: {array.dtype}. Convert them to float first.")


def _check_id_elements(name: str, array: np.ndarray) -> None:
    example_of = {type(each): each for each in array}
    for kind in ((int, np.integer), str, bytes):
        if all(issubclass(found, kind) and found is not bool for found in example_of):
            return
    raise ValueError(
        f"`{name}` must be all integers or all strings. Received: {', '.join(map(repr, example_of.values()))}. "
        "Give rows without an id one of their own, or drop them."
    )
