"""Predict on protocol buffers: TensorProto in, TensorProto out."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import predict_pb2

from serving.model_server import errors
from serving.model_server.limits import Limits
from serving.model_server.servable import DEFAULT_SIGNATURE, Servable, check_size

_VALUE_FIELDS = {
    tf.float32: "float_val", tf.float64: "double_val", tf.int64: "int64_val", tf.uint64: "uint64_val",
    tf.int32: "int_val", tf.int16: "int_val", tf.int8: "int_val", tf.uint8: "int_val", tf.uint16: "int_val",
    tf.uint32: "uint32_val", tf.bool: "bool_val", tf.string: "string_val",
}  # fmt: skip


def predict(
    servable: Servable, request: predict_pb2.PredictRequest, *, as_tensor_content: bool = False
) -> predict_pb2.PredictResponse:
    """Answers a PredictRequest.

    Args:
        servable: the version that the request's model_spec resolved to.
        request: signature name, inputs by name and an optional output filter.
        as_tensor_content: whether outputs travel as raw bytes instead of typed value lists.
    Raises:
        ServingError: the request does not fit the signature.
        tf.errors.OpError: as the graph raises it.
    """
    signature = request.model_spec.signature_name or DEFAULT_SIGNATURE
    inputs = {name: _decode(name, tensor, servable.limits) for name, tensor in request.inputs.items()}
    outputs = servable.run(signature, inputs, list(request.output_filter))
    response = predict_pb2.PredictResponse()
    response.model_spec.name = servable.name
    response.model_spec.signature_name = signature
    response.model_spec.version.value = servable.version
    for name, value in outputs.items():
        response.outputs[name].CopyFrom(encode(value, as_tensor_content=as_tensor_content))
    return response


def encode(value: np.ndarray, *, as_tensor_content: bool) -> tensor_pb2.TensorProto:
    """Returns an array as a TensorProto, as raw bytes or as a typed value list; strings are always a list."""
    array = np.asarray(value)
    dtype = tf.string if array.dtype.kind in "OSU" else tf.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(
        dtype=dtype.as_datatype_enum, tensor_shape=tf.TensorShape(array.shape).as_proto()
    )
    field = _VALUE_FIELDS.get(dtype)
    if field is None or (as_tensor_content and dtype != tf.string):
        proto.tensor_content = array.tobytes()
    else:
        getattr(proto, field).extend(array.ravel().tolist())
    return proto


def _decode(name: str, proto: tensor_pb2.TensorProto, limits: Limits) -> np.ndarray:
    shape = [dim.size for dim in proto.tensor_shape.dim]
    try:
        if any(size < 0 for size in shape):
            raise ValueError(f"shape {shape}")
        check_size(name, shape, tf.as_dtype(proto.dtype).size or 1, limits)  # one value may stand for all
        return tf.make_ndarray(proto)
    except (ValueError, TypeError, KeyError) as error:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT, f"tensor parsing error: {name} ({error})"
        ) from error
