"""Tensors as the JSON of TensorFlow Serving's REST API: row (`instances`) and columnar (`inputs`) format."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
import string
import typing

import numpy as np
import tensorflow as tf

from serving.model_server.errors import INVALID_ARGUMENT, UNIMPLEMENTED, ServingError

MAX_RANK = 32  # dimensions of a NumPy array
SIGNATURE_NAME = "signature_name"
_INTEGERS = (tf.int8, tf.uint8, tf.int16, tf.uint16, tf.int32, tf.uint32, tf.int64, tf.uint64)
_FLOATS = (tf.float32, tf.float64)
# The objects that these words are read as; an infinity that is another object is a number that no double holds.
_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_DECODER = json.JSONDecoder(parse_constant=_WORDS.__getitem__)


def parse_object(body: bytes) -> dict[str, typing.Any]:
    """Reads the object at the start of a body; NaN and Infinity are numbers, what follows the object is not read.

    Raises:
        ServingError: INVALID_ARGUMENT where there is none.

    >>> parse_object(b'\\xef\\xbb\\xbf {"inputs": [NaN]} and more')
    {'inputs': [nan]}
    """
    try:
        text = body.decode("utf-8-sig").lstrip(" \t\r\n")
        request, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError) as error:
        raise ServingError(INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
    if not isinstance(request, dict):
        raise ServingError(INVALID_ARGUMENT, "JSON Value: must be an object.")
    return request


def to_float(value: int | float) -> float:
    """Returns a number of a request as a double.

    Raises:
        ValueError: a double cannot hold it.

    >>> to_float(json.loads("1e400"))
    Traceback (most recent call last):
    ...
    ValueError: a double cannot hold a number of the request
    """
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if math.isinf(result) and not any(value is word for word in _WORDS.values()):
        raise ValueError("a double cannot hold a number of the request")
    return result


def signature_name(request: dict[str, typing.Any]) -> str:
    """Returns the signature that a request names; "" where it names none.

    Raises:
        ServingError: INVALID_ARGUMENT where it is no string, or holds half a pair of surrogates.
    """
    name = request.get(SIGNATURE_NAME, "")
    if not isinstance(name, str):
        raise ServingError(INVALID_ARGUMENT, f"'{SIGNATURE_NAME}' must be a string value.")
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise ServingError(INVALID_ARGUMENT, f"'{SIGNATURE_NAME}' must be text of Unicode: {error}") from error
    return name


def predict_values(request: dict[str, typing.Any]) -> tuple[str, typing.Any]:
    """Returns the format of a predict request ("row" or "columnar") and its values.

    Raises:
        ServingError: INVALID_ARGUMENT where the request has neither or both.

    >>> predict_values({"signature_name": "rank", "inputs": {"x": [1]}})
    ('columnar', {'x': [1]})
    """
    if ("instances" in request) == ("inputs" in request):
        raise ServingError(INVALID_ARGUMENT, "The request must hold exactly one of 'instances' and 'inputs'.")
    if "inputs" in request:
        return "columnar", request["inputs"]
    if not isinstance(request["instances"], list) or not request["instances"]:
        raise ServingError(INVALID_ARGUMENT, "'instances' must be a non-empty list.")
    return "row", request["instances"]


def decode(kind: str, value: typing.Any, definition: typing.Any) -> dict[str, np.ndarray]:
    """Returns the named arrays of a predict request.

    Args:
        kind: "row" or "columnar".
        value: what stood under "instances" or "inputs".
        definition: the SignatureDef; with one input its name may be left out.
    Raises:
        ServingError: INVALID_ARGUMENT for values that do not fit.
    """
    names = sorted(definition.inputs)
    if _is_named(value if kind == "columnar" else value[0]):
        columns = _named_columns(value, names) if kind == "columnar" else _named_rows(value, names)
    else:
        if len(names) != 1:
            raise ServingError(
                INVALID_ARGUMENT, f"Inputs must be named, as the signature has {len(names)}: {names}."
            )
        if kind == "row" and any(map(_is_named, value)):
            raise ServingError(INVALID_ARGUMENT, "Instances must be all named or all without a name.")
        columns = {names[0]: value}
    return {name: to_array(name, column, definition.inputs[name].dtype) for name, column in columns.items()}


def _is_named(value: typing.Any) -> bool:
    return isinstance(value, dict) and not _is_base64(value)


def _named_columns(columns: dict[str, typing.Any], names: list[str]) -> dict[str, typing.Any]:
    """Takes the signature's inputs; further ones are not looked at, as in TensorFlow Serving."""
    missing = [name for name in names if name not in columns]
    if missing:
        raise ServingError(
            INVALID_ARGUMENT, f"Missing named input: {missing} in 'inputs'. The signature has {names}.", inputs=missing
        )
    return {name: columns[name] for name in names}


def _named_rows(rows: list[typing.Any], names: list[str]) -> dict[str, typing.Any]:
    wanted = set(names)
    for position, row in enumerate(rows):
        if not _is_named(row) or row.keys() != wanted:
            raise ServingError(
                INVALID_ARGUMENT,
                f"Every instance must be an object with the keys {names}. Instance {position} is not.",
                inputs=wanted - row.keys() if _is_named(row) else (),
            )
    return {name: [row[name] for row in rows] for name in names}


def to_array(name: str, value: typing.Any, dtype: int) -> np.ndarray:
    """Returns nested lists as an array of the dtype that a signature wants.

    Integers are accepted for float tensors; floats, and integers out of its range, are refused for integer tensors.
    """
    kind = tf.as_dtype(dtype)
    if kind not in (tf.string, tf.bool, *_INTEGERS, *_FLOATS):
        raise ServingError(UNIMPLEMENTED, f"input {name}: {kind.name} is not supported in JSON.")
    shape, leaves = _flatten(name, value)
    if kind == tf.string:
        result = np.empty(len(leaves), object)
        result[:] = [_to_bytes(name, leaf) for leaf in leaves]
        return result.reshape(shape)
    allowed = {bool} if kind.is_bool else {int} if kind.is_integer else {int, float}
    wrong = set(map(type, leaves)) - allowed
    if wrong:
        raise ServingError(
            INVALID_ARGUMENT,
            f"input {name}: a value of JSON type {sorted(t.__name__ for t in wrong)} "
            f"is not of expected type: {kind.name}.",
            inputs=(name,),
        )
    if kind.is_integer and leaves:
        for extreme in (min(leaves), max(leaves)):
            if not kind.min <= extreme <= kind.max:
                raise ServingError(
                    INVALID_ARGUMENT, f"input {name}: {extreme} is not of expected type: {kind.name}.", inputs=(name,)
                )
    if not kind.is_floating:
        return np.array(leaves, kind.as_numpy_dtype).reshape(shape)
    with np.errstate(over="ignore"):  # what float32 cannot hold is infinite there, as in TensorFlow Serving
        return _doubles(name, leaves).astype(kind.as_numpy_dtype).reshape(shape)


def _doubles(name: str, leaves: list[typing.Any]) -> np.ndarray:
    try:
        result = np.array(leaves, np.float64)
        if np.isinf(result).any():
            result = np.array([to_float(leaf) for leaf in leaves])
    except (OverflowError, ValueError) as error:
        raise ServingError(INVALID_ARGUMENT, f"input {name}: {error}") from error
    return result


def _flatten(name: str, value: typing.Any) -> tuple[list[int], list[typing.Any]]:
    """Returns the shape and the leaves of nested lists of equal sizes."""
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        size = len(level[0])
        if any(not isinstance(element, list) or len(element) != size for element in level):
            raise ServingError(
                INVALID_ARGUMENT, f"input {name}: lists at level {len(shape)} must all have {size} elements."
            )
        shape.append(size)
        if len(shape) > MAX_RANK:
            raise ServingError(INVALID_ARGUMENT, f"input {name}: must have at most {MAX_RANK} dimensions.")
        level = list(itertools.chain.from_iterable(level))
    return shape, level


def _is_base64(value: typing.Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str)


def from_base64(text: str) -> bytes:
    """Returns decoded base64, with or without padding; white space in it does not count.

    Raises:
        ValueError: it is no base64.

    >>> from_base64("aGVsbG8"), from_base64("aGVs bG8=")
    (b'hello', b'hello')
    """
    text = text.translate(_NO_SPACE)
    if "=" not in text:
        text += "=" * (-len(text) % 4)
    return base64.b64decode(text, validate=True)


_NO_SPACE = dict.fromkeys(map(ord, string.whitespace))


def to_bytes(value: typing.Any) -> bytes | None:
    """Returns the bytes of a string or of a {"b64": ...} object; None for other values.

    Raises:
        ValueError: no base64, or half a pair of surrogates.
    """
    if isinstance(value, str):
        return value.encode()
    return from_base64(value["b64"]) if _is_base64(value) else None


def _to_bytes(name: str, value: typing.Any) -> bytes:
    try:
        result = to_bytes(value)
    except binascii.Error as error:
        raise ServingError(INVALID_ARGUMENT, f"input {name}: unable to base64 decode ({error})") from error
    except ValueError as error:
        raise ServingError(INVALID_ARGUMENT, f"input {name}: {error}") from error
    if result is None:
        raise ServingError(
            INVALID_ARGUMENT, f'input {name}: a string tensor takes strings and {{"b64": ...}} objects.'
        )
    return result


def encode_response(kind: str, outputs: dict[str, np.ndarray]) -> bytes:
    """Returns the JSON of a predict response in the format of its request.

    Raises:
        ServingError: INVALID_ARGUMENT where outputs in row format do not share a first dimension, or JSON has no
            form for their dtype.
    """
    values = {name: _to_json(name, np.asarray(array)) for name, array in outputs.items()}
    result: typing.Any
    if kind == "columnar":
        result = next(iter(values.values())) if len(values) == 1 else values
        return dump({"outputs": result})
    sizes = {name: np.shape(array)[0] if np.ndim(array) else None for name, array in outputs.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        raise ServingError(
            INVALID_ARGUMENT, f"Outputs have no common batch size: {sizes}. Use the columnar format."
        )
    if len(values) == 1:
        result = next(iter(values.values()))
    else:
        result = [dict(zip(values, row)) for row in zip(*values.values())]
    return dump({"predictions": result})


def dump(value: typing.Any) -> bytes:
    """Returns a value as JSON in UTF-8; NaN and Infinity are written as such."""
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


def shortest(value: np.floating | float) -> float:
    """Returns the double whose text is the shortest that gives the same float32, not its expansion.

    >>> shortest(np.float32(0.2))
    0.2
    """
    return float(str(np.float32(value)))


def _to_json(name: str, array: np.ndarray) -> typing.Any:
    if array.dtype.kind in "OSU":
        flat = [v if isinstance(v, bytes) else str(v).encode() for v in array.ravel().tolist()]
        if name.endswith("_bytes"):
            texts: list = [{"b64": base64.b64encode(v).decode()} for v in flat]
        else:
            texts = [v.decode("utf-8", "replace") for v in flat]
        result = np.empty(len(texts), object)
        result[:] = texts
        return result.reshape(array.shape).tolist()
    dtype = tf.as_dtype(array.dtype)
    if dtype == tf.float64 or dtype == tf.bool or dtype in _INTEGERS:
        return array.tolist()
    if not dtype.is_floating:
        raise ServingError(INVALID_ARGUMENT, f"output {name}: {dtype.name} is not supported in JSON.")
    narrow = array.astype(np.float32)
    return np.array([shortest(v) for v in narrow.ravel()], np.float64).reshape(array.shape).tolist()
