"""TensorFlow Serving's messages, made of their descriptors when imported, so that TensorFlow is not needed.

They live in a pool of their own: TensorFlow's own, of whatever version, may be in the same process. The descriptors
are those of tensorflow-serving-api; `python requirements/descriptors.py` writes them.
"""

from __future__ import annotations

import pathlib
import typing

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

FILE = pathlib.Path(__file__).with_name("tensorflow_serving.binpb")


def _pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for file in descriptor_pb2.FileDescriptorSet.FromString(FILE.read_bytes()).file:  # each after those that it needs
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()


def _message(name: str) -> typing.Any:
    """Returns the class of a message."""
    descriptor = _POOL.FindMessageTypeByName(name)
    if hasattr(message_factory, "GetMessageClass"):
        return message_factory.GetMessageClass(descriptor)
    return message_factory.MessageFactory(_POOL).GetPrototype(descriptor)  # protobuf before 4.22


PredictRequest = _message("tensorflow.serving.PredictRequest")
PredictResponse = _message("tensorflow.serving.PredictResponse")
GetModelMetadataRequest = _message("tensorflow.serving.GetModelMetadataRequest")
GetModelMetadataResponse = _message("tensorflow.serving.GetModelMetadataResponse")
GetModelStatusRequest = _message("tensorflow.serving.GetModelStatusRequest")
GetModelStatusResponse = _message("tensorflow.serving.GetModelStatusResponse")
SignatureDefMap = _message("tensorflow.serving.SignatureDefMap")
TensorProto = _message("tensorflow.TensorProto")


def _enum(name: str) -> dict[str, int]:
    return {one.name: one.number for one in _POOL.FindEnumTypeByName(name).values}


DATA_TYPES = _enum("tensorflow.DataType")
AVAILABLE = _enum("tensorflow.serving.ModelVersionStatus.State")["AVAILABLE"]


class Method(typing.NamedTuple):
    """A method of a service: its path, and the classes of request and answer."""

    path: str
    request: typing.Any
    response: typing.Any


PREDICT = Method("/tensorflow.serving.PredictionService/Predict", PredictRequest, PredictResponse)
METADATA = Method(
    "/tensorflow.serving.PredictionService/GetModelMetadata", GetModelMetadataRequest, GetModelMetadataResponse
)
STATUS = Method("/tensorflow.serving.ModelService/GetModelStatus", GetModelStatusRequest, GetModelStatusResponse)
METHODS = (PREDICT, METADATA, STATUS)
