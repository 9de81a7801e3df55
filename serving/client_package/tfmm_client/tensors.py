"""Arrays as TensorProto and back, without TensorFlow."""

from __future__ import annotations

import math
import typing

import numpy as np

from tfmm_client import messages

_BFLOAT16 = messages.DATA_TYPES["DT_BFLOAT16"]
_STRING = messages.DATA_TYPES["DT_STRING"]
# By data type: NumPy's type, and the field that holds values one by one.
_KINDS: dict[int, tuple[type, str]] = {
    messages.DATA_TYPES[name]: (kind, field)
    for name, kind, field in (
        ("DT_FLOAT", np.float32, "float_val"),
        ("DT_DOUBLE", np.float64, "double_val"),
        ("DT_HALF", np.float16, "half_val"),
        ("DT_INT8", np.int8, "int_val"),
        ("DT_INT16", np.int16, "int_val"),
        ("DT_INT32", np.int32, "int_val"),
        ("DT_INT64", np.int64, "int64_val"),
        ("DT_UINT8", np.uint8, "int_val"),
        ("DT_UINT16", np.uint16, "int_val"),
        ("DT_UINT32", np.uint32, "uint32_val"),
        ("DT_UINT64", np.uint64, "uint64_val"),
        ("DT_BOOL", np.bool_, "bool_val"),
        ("DT_COMPLEX64", np.complex64, "scomplex_val"),
        ("DT_COMPLEX128", np.complex128, "dcomplex_val"),
        ("DT_STRING", object, "string_val"),
    )
}
_DATA_TYPES: dict[np.dtype, int] = {np.dtype(kind): number for number, (kind, _) in _KINDS.items()}


def dtype_of(data_type: int) -> type:
    """Returns NumPy's type of a tensor's data type; strings are objects, bfloat16 becomes float32.

    Raises:
        ValueError: NumPy has none.
    """
    if data_type == _BFLOAT16:
        return np.float32
    if data_type not in _KINDS:
        raise ValueError(f"A tensor must be of a type that NumPy has. Received: data type {data_type}.")
    return _KINDS[data_type][0]


def to_proto(values: typing.Any) -> typing.Any:
    """Returns an array as TensorProto, numbers as their bytes.

    Args:
        values: what `np.asarray` takes; strings as str or bytes.
    Raises:
        ValueError: TensorFlow has no such type.
    """
    array = np.asarray(values)
    result = messages.TensorProto()
    for size in array.shape:
        result.tensor_shape.dim.add().size = size
    if array.dtype.kind in "OSU":
        result.dtype = _STRING
        result.string_val.extend(v.encode() if isinstance(v, str) else v for v in array.ravel().tolist())
        return result
    if array.dtype.newbyteorder("=") not in _DATA_TYPES:
        raise ValueError(f"An input must be of a type that TensorFlow has. Received: {array.dtype}.")
    result.dtype = _DATA_TYPES[array.dtype.newbyteorder("=")]
    result.tensor_content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return result


def to_array(proto: typing.Any) -> np.ndarray:
    """Returns a TensorProto as an array; where it holds fewer values than its shape, the last stands for the rest.

    Raises:
        ValueError: NumPy has no such type.
    """
    kind, shape = dtype_of(proto.dtype), [dim.size for dim in proto.tensor_shape.dim]
    is_bfloat16 = proto.dtype == _BFLOAT16
    stored: typing.Any = np.uint16 if is_bfloat16 else kind
    if proto.tensor_content:
        flat = np.frombuffer(proto.tensor_content, np.dtype(stored).newbyteorder("<")).astype(stored)
    else:
        flat = _listed(proto, "half_val" if is_bfloat16 else _KINDS[proto.dtype][1], stored)
    if is_bfloat16:
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    size = math.prod(shape)
    if 0 < flat.size < size:
        flat = np.concatenate([flat, np.repeat(flat[-1:], size - flat.size)])
    elif not flat.size:
        flat = np.full(size, b"", object) if kind is object else np.zeros(size, kind)
    return flat.reshape(shape)


def _listed(proto: typing.Any, field: str, kind: typing.Any) -> np.ndarray:
    values = list(getattr(proto, field))
    if field == "half_val":
        return np.array(values, np.uint16).view(kind)
    if field in ("scomplex_val", "dcomplex_val"):
        return np.array(values[::2], kind) + 1j * np.array(values[1::2], kind)
    result = np.empty(len(values), kind)
    result[:] = values
    return result


def plain(array: np.ndarray) -> typing.Any:
    """Returns an array as lists that JSON takes."""
    if array.dtype.kind in "OSU":
        flat = [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
        result = np.empty(len(flat), object)
        result[:] = flat
        return result.reshape(array.shape).tolist()
    return array.tolist()
