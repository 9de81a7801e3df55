"""Tensors as the JSON of TensorFlow Serving's REST API: row (`instances`) and columnar (`inputs`) format."""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import typing

import numpy as np
import tensorflow as tf

from serving.model_server.errors import INVALID_ARGUMENT, UNIMPLEMENTED, ServingError

Row = typing.Literal["row", "columnar"]


def parse_request(body: bytes) -> tuple[str, str, typing.Any]:
    """Reads a predict request.

    Returns:
        The signature name ("" if none is given), the format ("row" or "columnar") and its value.
    Raises:
        ServingError: INVALID_ARGUMENT where the body is no such request.

    >>> parse_request(b'{"signature_name": "rank", "inputs": {"x": [1]}}')
    ('rank', 'columnar', {'x': [1]})
    """
    try:
        text = body.decode("utf-8").lstrip()
        request, _ = json.JSONDecoder().raw_decode(
            text
        )  # NaN and Infinity are read; trailing bytes are not looked at
    except (ValueError, RecursionError) as error:
        raise ServingError(INVALID_ARGUMENT, f"JSON Parse error: {error}") from error
    if not isinstance(request, dict):
        raise ServingError(INVALID_ARGUMENT, "JSON Value: must be an object.")
    signature = request.get("signature_name", "")
    if not isinstance(signature, str):
        raise ServingError(INVALID_ARGUMENT, "'signature_name' key must be a string value.")
    if ("instances" in request) == ("inputs" in request):
        raise ServingError(
            INVALID_ARGUMENT, "Request must hold exactly one of the keys 'instances' and 'inputs'."
        )
    if "inputs" in request:
        return signature, "columnar", request["inputs"]
    if not isinstance(request["instances"], list) or not request["instances"]:
        raise ServingError(INVALID_ARGUMENT, "Excepting 'instances' to be a non-empty list/array.")
    return signature, "row", request["instances"]


def decode(kind: str, value: typing.Any, definition: typing.Any) -> dict[str, np.ndarray]:
    """Returns the named arrays of a predict request.

    Args:
        kind: "row" or "columnar".
        value: what stood under "instances" or "inputs".
        definition: the SignatureDef; with one input its name may be left out.
    Raises:
        ServingError: INVALID_ARGUMENT for values that do not fit.
    """
    named = value if kind == "columnar" else value[0]
    if not isinstance(named, dict) or _is_base64(named):
        if len(definition.inputs) != 1:
            raise ServingError(
                INVALID_ARGUMENT,
                f"Inputs must be named, as the signature has "
                f"{len(definition.inputs)}: {sorted(definition.inputs)}.",
            )
        columns = {next(iter(definition.inputs)): value}
    elif kind == "columnar":
        columns = value
    else:
        for position, row in enumerate(value):
            if not isinstance(row, dict) or row.keys() != named.keys():
                raise ServingError(
                    INVALID_ARGUMENT,
                    f"Every instance must be an object with the keys {sorted(named)}. "
                    f"Instance {position} is not.",
                )
        columns = {name: [row[name] for row in value] for name in named}
    unknown = sorted(set(columns) - set(definition.inputs))
    if unknown:
        raise ServingError(
            INVALID_ARGUMENT,
            f"JSON object: does not have named input: {unknown}. The signature has "
            f"{sorted(definition.inputs)}.",
        )
    return {name: to_array(name, column, definition.inputs[name].dtype) for name, column in columns.items()}


def to_array(name: str, value: typing.Any, dtype: int) -> np.ndarray:
    """Returns nested lists as an array of the dtype that a signature wants.

    Integers are accepted for float tensors; floats are refused for integer tensors.
    """
    kind = tf.as_dtype(dtype)
    if kind in (tf.float16, tf.bfloat16):
        raise ServingError(UNIMPLEMENTED, f"input {name}: {kind.name} is not supported in JSON.")
    shape: list[int] = []
    level = [value]
    while level and isinstance(level[0], list):
        size = len(level[0])
        if any(not isinstance(element, list) or len(element) != size for element in level):
            raise ServingError(
                INVALID_ARGUMENT, f"input {name}: lists at level {len(shape)} must all have {size} elements."
            )
        shape.append(size)
        level = list(itertools.chain.from_iterable(level))
    if kind == tf.string:
        level = [_to_bytes(name, element) for element in level]
        result = np.empty(len(level), object)
        result[:] = level
        return result.reshape(shape)
    allowed = {bool} if kind.is_bool else {int} if kind.is_integer else {int, float}
    wrong = set(map(type, level)) - allowed
    if wrong:
        raise ServingError(
            INVALID_ARGUMENT,
            f"input {name}: a value of JSON type {sorted(t.__name__ for t in wrong)} "
            f"is not of expected type: {kind.name}.",
        )
    try:
        wide = (
            np.array(level, np.uint64 if kind == tf.uint64 else np.int64)
            if kind.is_integer
            else np.array(level)
        )
    except OverflowError as error:
        raise ServingError(INVALID_ARGUMENT, f"input {name}: {error}") from error
    return wide.astype(kind.as_numpy_dtype).reshape(shape)


def _is_base64(value: typing.Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"b64"}


def _to_bytes(name: str, value: typing.Any) -> bytes:
    if isinstance(value, str):
        return value.encode("utf-8", "surrogatepass")
    if _is_base64(value) and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except binascii.Error as error:
            raise ServingError(
                INVALID_ARGUMENT, f"input {name}: unable to base64 decode ({error})"
            ) from error
    raise ServingError(
        INVALID_ARGUMENT, f'input {name}: a string tensor takes strings and {{"b64": ...}} objects.'
    )


def encode_response(kind: str, outputs: dict[str, np.ndarray]) -> bytes:
    """Returns the JSON of a predict response in the format of its request.

    Raises:
        ServingError: INVALID_ARGUMENT where outputs in row format do not share a first dimension.
    """
    values = {name: _to_json(name, np.asarray(array)) for name, array in outputs.items()}
    result: typing.Any
    if kind == "columnar":
        result = next(iter(values.values())) if len(values) == 1 else values
        return _dump({"outputs": result})
    sizes = {name: np.shape(array)[0] if np.ndim(array) else None for name, array in outputs.items()}
    if None in sizes.values() or len(set(sizes.values())) > 1:
        raise ServingError(
            INVALID_ARGUMENT, f"Outputs have no common batch size: {sizes}. Use the columnar format."
        )
    if len(values) == 1:
        result = next(iter(values.values()))
    else:
        result = [dict(zip(values, row)) for row in zip(*values.values())]
    return _dump({"predictions": result})


def _dump(value: typing.Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")


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
    if array.dtype.kind not in "iub" and array.dtype != np.float64:
        # the shortest text that gives the same float32, not its expansion as a double
        narrow = array.astype(np.float32)
        return np.array([float(str(v)) for v in narrow.ravel()], np.float64).reshape(array.shape).tolist()
    return array.tolist()
