"""The inputs of a signature that ranks, and values as rows of them."""

from __future__ import annotations

import typing

import numpy as np

Value = typing.Any  # an int, str, float or bool, or a list of these; None: missing


class Input(typing.NamedTuple):
    """One input of `rank`.

    Attributes:
        dtype: of NumPy; object: strings.
        is_list: whether a row is a list.
        is_user: whether it is the user's, not a candidate's.
        is_optional: whether the server looks it up by item id where it is left out.
    """

    dtype: type
    is_list: bool
    is_user: bool
    is_optional: bool = False


Inputs = dict[str, Input]


def as_row(values: typing.Sequence[Value], wanted: Input, name: str) -> np.ndarray:
    """Returns values as a tensor of an input's type; None is missing. Raises a ValueError at one of another type."""
    kinds: tuple[type, ...] = (str, bytes)
    words = "strings"
    if wanted.dtype is np.float32:
        kinds, words = (float, int, bool, np.floating, np.integer, np.bool_), "numbers"
    elif wanted.dtype is np.int64:
        kinds, words = (int, np.integer), "integers"
    for value in values:
        if value is not None and (not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds)):
            raise ValueError(f"`{name}` must hold {words}, as the model was exported. Received: {value!r}.")
    if wanted.dtype is np.float32:
        with np.errstate(over="ignore"):
            return np.array([_float(value) for value in values], np.float64).astype(np.float32)
    try:
        if wanted.dtype is np.int64:
            return np.array([0 if value is None else value for value in values], np.int64)
        result = np.empty(len(values), object)
        texts = ["" if value is None else value for value in values]
        result[:] = [text.encode() if isinstance(text, str) else text for text in texts]
        return result
    except (OverflowError, UnicodeEncodeError) as error:
        limit = "UTF-8" if isinstance(error, UnicodeEncodeError) else "64 bits"
        raise ValueError(f"`{name}` must hold {words} of {limit}. Received one that is not: {error}.") from error


def _float(value: Value) -> float:
    """Returns a number as a float; what none can hold is infinite, which the model takes as missing."""
    try:
        return np.nan if value is None else float(value)
    except OverflowError:
        return np.inf
