"""What `rank` takes, and how a caller's values become its tensors."""

from __future__ import annotations

import collections.abc
import typing

import numpy as np

from tfmm_client import tensors

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
RANK, PRE_RANK = "rank", "pre_rank"  # signatures, whose inputs the server says


def of_signatures(
    signatures: typing.Mapping[str, typing.Mapping[str, typing.Any]], asked: str = RANK
) -> Inputs:
    """Returns the inputs of a signature, and which of `rank`'s `rank_ids` does without.

    Args:
        signatures: by name, their inputs: by name (data type, shape).
        asked: the signature.
    Raises:
        ValueError: there is no such signature.
    """
    if asked not in signatures:
        hint = " `tfmm train --head pre-ranking` makes it." if asked == PRE_RANK else ""
        raise ValueError(f"The model must have the signature {asked!r}.{hint} Received: {sorted(signatures)}.")
    needed = set(signatures["rank_ids" if asked == RANK and "rank_ids" in signatures else asked])
    return {
        name: Input(tensors.dtype_of(data_type), len(shape) == 2, shape[0] == 1, name not in needed)
        for name, (data_type, shape) in signatures[asked].items()
    }


def rank_request(
    user: typing.Mapping[str, Value],
    candidates: typing.Mapping[str, typing.Iterable[Value]],
    wanted: Inputs,
    asked: str = RANK,
) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the signature for what is given, as `rank` or `rank_ids`, and its tensors; what is left out is empty.

    Args:
        user, candidates: as `RankingClient.rank` takes them.
        wanted: the signature's inputs.
        asked: the signature; `rank` may become `rank_ids`.
    Raises:
        ValueError: a feature is missing or unknown, of another type, or lengths differ.
    """
    for side, given, names in (
        ("user", user, {name for name, found in wanted.items() if found.is_user}),
        ("candidates", candidates, {name for name, found in wanted.items() if not found.is_user}),
    ):
        may = sorted(name for name in names if wanted[name].is_optional)
        must = names.difference(may)
        has = f"`{side}` must have {sorted(must)}" + (f", may have {may}" if may else "")
        if missing := sorted(must - set(given)):
            raise ValueError(f"{has}, as the model was exported. Missing: {missing}.")
        if unknown := sorted(set(given) - names):
            raise ValueError(f"{has}, and no others. Received: {unknown}.")
    inputs = {name: as_tensor([value], wanted[name], name) for name, value in user.items()}
    inputs |= {name: as_tensor(plain_list(v, name), wanted[name], name) for name, v in candidates.items()}
    count = len(inputs["item_id"])
    for name in candidates:
        if len(inputs[name]) != count:
            raise ValueError(f"`{name}` must have {count} entries. Received: {len(inputs[name])}.")
    optional = {name for name, found in wanted.items() if found.is_optional}
    if optional and not optional & set(inputs):
        return "rank_ids", inputs
    for name in optional & set(candidates):
        inputs[name] = _with_a_place(inputs[name], wanted[name])
    for name in optional - set(inputs):
        inputs[name] = as_tensor([[]] if wanted[name].is_list else [], wanted[name], name)
    return asked, inputs


def as_tensor(rows: typing.Sequence[Value], wanted: Input, name: str = "values") -> np.ndarray:
    """Returns rows as a tensor; None, and what pads lists of different lengths, is missing: 0, "" or NaN.

    Args:
        rows: one value per row, or one list of values.
        wanted: the input that they are for.
        name: said in errors.
    Raises:
        ValueError: a value is of another type.

    >>> as_tensor([3, None], Input(np.int64, False, False))
    array([3, 0])
    >>> as_tensor([["a"], []], Input(object, True, False))
    array([[b'a'],
           [b'']], dtype=object)
    """
    if not wanted.is_list:
        return _as_row(rows, wanted, name)
    lists = [plain_list([] if row is None else row, name) for row in rows]
    length = max((len(row) for row in lists), default=0)
    flat = _as_row([value for row in lists for value in (*row, *[None] * (length - len(row)))], wanted, name)
    return flat.reshape(len(lists), length)


def _with_a_place(values: np.ndarray, wanted: Input) -> np.ndarray:
    """Returns lists with room for a value at least: an input without any is one that is left out."""
    if not wanted.is_list or values.shape[1]:
        return values
    return as_tensor([[None]] * len(values), wanted)


def _as_row(values: typing.Sequence[Value], wanted: Input, name: str) -> np.ndarray:
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


def plain_list(values: typing.Any, name: str) -> list[typing.Any]:
    """Returns a list of Python values, out of a list, a NumPy or an Arrow array."""
    for method in ("to_pylist", "tolist"):
        if hasattr(values, method):
            values = getattr(values, method)()
    if isinstance(values, str | bytes | collections.abc.Mapping) or not isinstance(values, collections.abc.Iterable):
        raise ValueError(f"`{name}` must be a list of values, or an array. Received: {values!r}.")
    return list(values)
