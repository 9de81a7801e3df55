"""Tensors that the client writes and reads are TensorFlow's own, by its own functions."""

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from tfmm_client import messages, tensors

DTYPES = ["float32", "float64", "float16", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64",
          "bool", "complex64", "complex128"]  # fmt: skip


def theirs(ours):
    return tensor_pb2.TensorProto.FromString(ours.SerializeToString())


def ours(theirs):
    return messages.TensorProto.FromString(theirs.SerializeToString())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 3), (2, 0)])
def test_numbers_there_and_back(dtype, shape):
    values = np.random.default_rng(0).normal(size=shape) * 10 + (1j if dtype.startswith("complex") else 0)
    array = np.abs(values).astype(dtype) if dtype.startswith("uint") else values.astype(dtype)
    np.testing.assert_array_equal(tf.make_ndarray(theirs(tensors.to_proto(array))), array, strict=True)
    by_content = tensors.to_array(ours(tf.make_tensor_proto(array)))
    np.testing.assert_array_equal(by_content, array, strict=True)
    np.testing.assert_array_equal(tensors.to_array(ours(as_fields(array))), array, strict=True)


def as_fields(array):
    """A proto that holds values one by one, as a server may answer."""
    proto = tf.make_tensor_proto(array)
    if array.dtype.kind == "c":
        field = "scomplex_val" if array.dtype.itemsize == 8 else "dcomplex_val"
        values = [part for value in array.ravel().tolist() for part in (value.real, value.imag)]
    elif array.dtype == np.float16:
        field, values = "half_val", array.ravel().view(np.uint16).tolist()
    else:
        field = {"float32": "float_val", "float64": "double_val", "int64": "int64_val", "bool": "bool_val",
                 "uint32": "uint32_val", "uint64": "uint64_val"}.get(array.dtype.name, "int_val")  # fmt: skip
        values = array.ravel().tolist()
    proto.tensor_content = b""
    del getattr(proto, field)[:]
    getattr(proto, field).extend(values)
    return proto


def test_strings_there_and_back():
    array = np.array([["é", b"\xff"], ["", "b"]], object)
    as_bytes = np.array([["é".encode(), b"\xff"], [b"", b"b"]], object)
    np.testing.assert_array_equal(tf.make_ndarray(theirs(tensors.to_proto(array))), as_bytes)
    np.testing.assert_array_equal(tensors.to_array(ours(tf.make_tensor_proto(as_bytes))), as_bytes)
    for one in ("text", np.array("text"), np.bytes_("text")):
        assert tf.make_ndarray(theirs(tensors.to_proto(one))) == b"text"


def test_values_that_are_left_out_are_the_last():
    proto = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[1, 2])
    proto.tensor_shape.dim.add().size = 4
    assert tensors.to_array(ours(proto)).tolist() == tf.make_ndarray(proto).tolist() == [1, 2, 2, 2]
    for dtype, zero in ((tf.float32, 0.0), (tf.string, b"")):
        proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
        proto.tensor_shape.dim.add().size = 2
        assert tensors.to_array(ours(proto)).tolist() == [zero, zero]


def test_bfloat16_is_read_as_float32():
    values = tf.constant([1.5, -2.0, 3e38], tf.bfloat16)
    by_content = tensors.to_array(ours(tf.make_tensor_proto(values)))
    np.testing.assert_array_equal(by_content, tf.cast(values, tf.float32).numpy(), strict=True)


def test_types_that_there_are_not_are_named():
    with pytest.raises(ValueError, match=r"must be of a type that TensorFlow has\. Received: datetime64"):
        tensors.to_proto(np.array(["2024-01-01"], "datetime64[D]"))
    with pytest.raises(ValueError, match=r"must be of a type that NumPy has\. Received: data type 20"):
        tensors.to_array(messages.TensorProto(dtype=20))
    swapped = np.arange(3, dtype=np.int64).astype(">i8")
    assert tf.make_ndarray(theirs(tensors.to_proto(swapped))).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("PredictRequest", predict_pb2),
        ("PredictResponse", predict_pb2),
        ("GetModelMetadataRequest", get_model_metadata_pb2),
        ("GetModelMetadataResponse", get_model_metadata_pb2),
        ("SignatureDefMap", get_model_metadata_pb2),
        ("GetModelStatusRequest", get_model_status_pb2),
        ("GetModelStatusResponse", get_model_status_pb2),
    ],
)
def test_messages_are_those_of_the_installed_api(name, module):
    """Names, numbers and kinds of fields, of a message and of those that it holds."""

    def fields(descriptor, seen):
        if descriptor.full_name in seen:
            return
        seen[descriptor.full_name] = {
            one.number: (one.name, one.type, one.label, one.message_type and one.message_type.full_name)
            for one in descriptor.fields
        }
        for one in descriptor.fields:
            if one.message_type is not None:
                fields(one.message_type, seen)

    known, installed = {}, {}
    fields(getattr(messages, name).DESCRIPTOR, known)
    fields(getattr(module, name).DESCRIPTOR, installed)
    assert {key: installed[key].items() >= found.items() for key, found in known.items()} == dict.fromkeys(known, True)
