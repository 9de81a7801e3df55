"""Columns as they are stored, cast to the documented types."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tfmm.data import instants

ARROW_TYPES = {
    "string": pa.string(),
    "binary": pa.binary(),
    "content": pa.binary(),
    "vector": pa.list_(pa.float32()),
    "timestamp": pa.timestamp("us"),
    "integer": pa.int64(),
    "number": pa.float32(),
    "boolean": pa.bool_(),
}
_NUMBERS = (pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, pa.types.is_null)
KIND_TEXT = {
    "id": "int64 or string",
    "string": "string",
    "binary": "binary",
    "content": "binary or string",
    "vector": "list of float32",
    "timestamp": "timestamp[us]",
    "integer": "int64",
    "number": "a number",
    "boolean": "boolean",
    "ids": "list of int64 or string",
}


def cast(array: pa.ChunkedArray, name: str, kind_name: str, table: str) -> pa.ChunkedArray:
    """Returns a column in its documented type.

    Args:
        array: as it is stored.
        name, table: said in errors.
        kind_name: of `KIND_TEXT`.
    Raises:
        ValueError: it cannot be read as that.
    """
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    kind = array.type
    try:
        if kind_name == "id":
            if pa.types.is_null(kind):  # another part may say whether these are numbers or strings
                return array
            if pa.types.is_integer(kind):
                return array.cast(pa.int64())
            if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
                raise pa.ArrowInvalid(f"{kind} is no id type")
            return array.cast(pa.string())
        array = _of_any_length(array)
        if kind_name == "ids":
            return _cast_lists(array)
        if kind_name == "number":
            if not any(is_kind(kind) for is_kind in _NUMBERS):
                raise pa.ArrowInvalid(f"{kind} is no number type")
            return array.cast(pa.float64(), safe=False).cast(pa.float32(), safe=False)  # whole ones from 2^53 on, too
        if kind_name == "boolean" and not (pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise pa.ArrowInvalid(f"{kind} is no boolean type")
        if kind_name == "integer" and not (
            pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
        ):
            raise pa.ArrowInvalid(f"{kind} is no integer type")
        if kind_name == "timestamp":
            return instants.to_timestamps(array)
        return array.cast(ARROW_TYPES[kind_name])
    except pa.ArrowMemoryError:
        raise
    except pa.ArrowException as error:
        raise ValueError(
            f"Column {name!r} of table {table!r} must be {KIND_TEXT[kind_name]}. Received: {kind} ({error})."
        ) from error


def _of_any_length(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns lists of one fixed length, as NumPy, Polars and Lance write vectors, as lists; others as they are."""
    kind = array.type
    if not pa.types.is_fixed_size_list(kind):
        return array

    def as_lists(chunk: pa.FixedSizeListArray) -> pa.ListArray:
        is_null = chunk.is_null().to_numpy(zero_copy_only=False)
        lengths = np.where(is_null, 0, kind.list_size)
        ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        offsets = pa.array(ends, mask=np.append(is_null, False))  # a null offset is a null list
        return pa.ListArray.from_arrays(offsets, chunk.drop_null().flatten())

    return pa.chunked_array([as_lists(chunk) for chunk in array.chunks], pa.list_(kind.value_type))


def _cast_lists(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """Returns lists of int64 or of strings."""
    kind = array.type
    if pa.types.is_null(kind):
        return array
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        raise pa.ArrowInvalid(f"{kind} is no list type")
    values = kind.value_type
    if pa.types.is_dictionary(values):
        values = values.value_type
    if pa.types.is_integer(values):
        return array.cast(pa.list_(pa.int64()))
    if pa.types.is_string(values) or pa.types.is_large_string(values):
        return array.cast(pa.list_(pa.string()))
    raise pa.ArrowInvalid(f"{values} is no id type")
