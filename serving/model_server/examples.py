"""The examples of classify and regress requests: as JSON, and as the serialized strings that a model parses."""

from __future__ import annotations

import binascii
import typing

import numpy as np
from tensorflow.core.example import example_pb2, feature_pb2
from tensorflow_serving.apis import input_pb2

from serving.model_server import json_tensors
from serving.model_server.errors import INVALID_ARGUMENT, ServingError

_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def read(request: dict[str, typing.Any], into: input_pb2.Input) -> None:
    """Reads "examples", and a "context" that all of them share, from the JSON of a request.

    Raises:
        ServingError: INVALID_ARGUMENT for a value that no feature holds.
    """
    rows = request.get("examples")
    if not isinstance(rows, list) or not rows:
        raise ServingError(INVALID_ARGUMENT, "'examples' must be a non-empty list.")
    target = into.example_list
    if "context" in request:
        target = into.example_list_with_context
        _fill(request["context"], target.context)
    for row in rows:
        _fill(row, target.examples.add())


def _fill(row: typing.Any, example: example_pb2.Example) -> None:
    if not isinstance(row, dict):
        raise ServingError(INVALID_ARGUMENT, f"An example must be an object, not {_json_type(row)}.")
    for name, value in row.items():
        feature = feature_pb2.Feature()
        for element in value if isinstance(value, list) else [value]:
            _add(name, element, feature)
        try:
            example.features.feature[name].CopyFrom(feature)
        except ValueError as error:  # half a pair of surrogates in its name
            raise ServingError(INVALID_ARGUMENT, f"Feature {name!a}: {error}") from error


def _add(name: str, value: typing.Any, feature: feature_pb2.Feature) -> None:
    try:
        content = json_tensors.to_bytes(value)
    except binascii.Error as error:
        raise ServingError(INVALID_ARGUMENT, f"Feature {name}: unable to base64 decode ({error})") from error
    except ValueError as error:
        raise ServingError(INVALID_ARGUMENT, f"Feature {name!a}: {error}") from error
    if content is not None:
        kind, number = "bytes_list", content
    elif isinstance(value, int) and value < 1 << 64:  # false and true are 0 and 1
        kind, number = "int64_list", int(value)
    elif isinstance(value, (int, float)):
        kind, number = "float_list", float(value)
    else:
        raise ServingError(INVALID_ARGUMENT, f"Feature {name} has an element of type {_json_type(value)}.")
    present = feature.WhichOneof("kind")
    if present not in (None, kind):
        raise ServingError(
            INVALID_ARGUMENT, f"Feature {name} has elements of types {_KINDS[present]} and {_KINDS[kind]}."
        )
    try:
        getattr(feature, kind).value.append(number)
    except ValueError as error:
        raise ServingError(INVALID_ARGUMENT, f"Feature {name}: {value} is no int64.") from error


def _json_type(value: typing.Any) -> str:
    return {dict: "object", list: "array", type(None): "null"}.get(type(value), type(value).__name__)


def serialized(source: input_pb2.Input) -> np.ndarray:
    """Returns a request's examples as an object array [B] of serialized tf.Example, each with the shared context.

    Raises:
        ServingError: INVALID_ARGUMENT where there is none.
    """
    context = b""
    if source.WhichOneof("kind") == "example_list_with_context":
        context = source.example_list_with_context.context.SerializeToString()
        found = source.example_list_with_context.examples
    else:
        found = source.example_list.examples
    if not found:
        raise ServingError(INVALID_ARGUMENT, "Input is empty.")
    result = np.empty(len(found), object)
    result[:] = [context + example.SerializeToString() for example in found]  # concatenation merges messages
    return result
