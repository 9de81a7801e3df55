"""gRPC through the official stubs."""

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format, wrappers_pb2
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server["grpc"]) as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request(inputs, signature="", name="half_plus_two", output_filter=(), version=None):
    result = predict_pb2.PredictRequest(output_filter=output_filter)
    result.model_spec.name = name
    result.model_spec.signature_name = signature
    if version is not None:
        result.model_spec.version.value = version
    for key, value in inputs.items():
        result.inputs[key].CopyFrom(
            value if isinstance(value, tensor_pb2.TensorProto) else tf.make_tensor_proto(value)
        )
    return result


SEVERAL = {
    "x": np.ones([3, 2], np.float32),
    "n": np.arange(3, dtype=np.int64),
    "text": np.array([b"a", b"", b"\xff"]),
}


def test_predict_echoes_the_version(prediction):
    response = prediction.Predict(request({"x": np.float32([1, 2])}), timeout=60)
    assert list(response.outputs["y"].float_val) == [2.5, 3.0]
    assert response.model_spec.version.value == 123
    assert response.model_spec.signature_name == "serving_default"


def test_typed_value_lists_are_read(prediction):
    proto = tensor_pb2.TensorProto(dtype=tf.float32.as_datatype_enum, float_val=[4.0])
    proto.tensor_shape.dim.add(size=3)
    response = prediction.Predict(request({"x": proto}), timeout=60)
    assert tf.make_ndarray(response.outputs["y"]).tolist() == [4.0, 4.0, 4.0]


def test_every_dtype_comes_back(prediction):
    response = prediction.Predict(request(SEVERAL, "several"), timeout=60)
    outputs = {name: tf.make_ndarray(proto).tolist() for name, proto in response.outputs.items()}
    assert outputs == {
        "sum": [2.0, 3.0, 4.0],
        "n": [0, 1, 2],
        "text": [b"a", b"", b"\xff"],
        "raw_bytes": [b"a", b"", b"\xff"],
        "scalar": 3,
    }


def test_output_filter_picks(prediction):
    response = prediction.Predict(request(SEVERAL, "several", output_filter=["n"]), timeout=60)
    assert list(response.outputs) == ["n"]


def wrong_size():
    proto = tf.make_tensor_proto(np.float32([1, 2, 3]))
    proto.tensor_shape.dim[0].size = 5
    return proto


@pytest.mark.parametrize(
    ("message", "code", "text"),
    [
        (request({}, name=""), "INVALID_ARGUMENT", "ModelSpec has no name"),
        (request({}, name="nowhere"), "NOT_FOUND", "Servable not found"),
        (request({"x": np.float32([1])}, version=9), "NOT_FOUND", "Specific"),
        (request({"x": np.float32([1])}, "nothing"), "FAILED_PRECONDITION", "not found"),
        (request({"z": np.float32([1])}), "INVALID_ARGUMENT", "Sent extra: {z}. Missing but required: {x}"),
        (request({"x": np.int64([1])}), "INVALID_ARGUMENT", "expects float32, got int64"),
        (request({"x": np.float32([[1]])}), "INVALID_ARGUMENT", "expects shape"),
        (request({"x": wrong_size()}), "INVALID_ARGUMENT", "tensor parsing error: x"),
        (request(SEVERAL, "several", output_filter=["w"]), "INVALID_ARGUMENT", "alias not found"),
        (request(SEVERAL, "several", output_filter=["n", "n"]), "INVALID_ARGUMENT", "duplicate"),
    ],
)
def test_bad_requests(prediction, message, code, text):
    with pytest.raises(grpc.RpcError, match=code) as caught:
        prediction.Predict(message, timeout=60)
    assert text in caught.value.details()


def test_status_and_metadata(prediction, models):
    status = get_model_status_pb2.GetModelStatusRequest()
    status.model_spec.name = "half_plus_two"
    answer = models.GetModelStatus(status, timeout=60)
    assert [(v.version, v.state) for v in answer.model_version_status] == [(123, 30)]
    metadata = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
    metadata.model_spec.name = "half_plus_two"
    signatures = get_model_metadata_pb2.SignatureDefMap()
    prediction.GetModelMetadata(metadata, timeout=60).metadata["signature_def"].Unpack(signatures)
    assert sorted(signatures.signature_def) == ["serving_default", "several"]
    del metadata.metadata_field[:]
    with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
        prediction.GetModelMetadata(metadata, timeout=60)


def test_health(channel):
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        wrappers_pb2.StringValue.SerializeToString,
        wrappers_pb2.Int32Value.FromString,
    )
    assert check(wrappers_pb2.StringValue(value=""), timeout=60).value == 1
    with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
        check(wrappers_pb2.StringValue(value="other"), timeout=60)
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        wrappers_pb2.StringValue.SerializeToString,
        wrappers_pb2.Int32Value.FromString,
    )
    stream = watch(wrappers_pb2.StringValue(value="PredictionService"), timeout=60)
    assert next(stream).value == 1
    stream.cancel()


def test_reload_swaps_models_and_labels_versions(tmp_path, half_plus_two_dir, write_models, serving_at):
    write_models["counter"](tmp_path / "counter" / "5")
    with serving_at(half_plus_two_dir) as addresses, grpc.insecure_channel(addresses["grpc"]) as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        predict = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        reload = model_management_pb2.ReloadConfigRequest()
        text_format.Parse(
            f"""model_config_list {{
            config {{ name: "half_plus_two" base_path: "{half_plus_two_dir}" model_platform: "tensorflow"
                      version_labels {{ key: "stable" value: 123 }} }}
            config {{ name: "counter" base_path: "{tmp_path / "counter"}" model_platform: "tensorflow" }}
        }}""",
            reload.config,
        )
        assert stub.HandleReloadConfigRequest(reload, timeout=60).status.error_code == 0
        labelled = request({"x": np.float32([1])})
        labelled.model_spec.version_label = "stable"
        assert predict.Predict(labelled, timeout=60).outputs["y"].float_val[0] == 2.5
        count = request({"keys": np.array([b"a"])}, name="counter")
        assert [predict.Predict(count, timeout=60).outputs["counts"].int64_val[0] for _ in range(2)] == [1, 2]
        with pytest.raises(grpc.RpcError, match="it failed"):
            predict.Predict(request({"fail": True}, "boom", name="counter"), timeout=60)

        reload.config.model_config_list.config[0].version_labels["stable"] = 9
        with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
            stub.HandleReloadConfigRequest(reload, timeout=60)
        del reload.config.model_config_list.config[0]
        assert stub.HandleReloadConfigRequest(reload, timeout=60).status.error_code == 0
        with pytest.raises(grpc.RpcError, match="NOT_FOUND"):
            predict.Predict(labelled.__class__.FromString(request({}).SerializeToString()), timeout=60)
        reload.config.model_config_list.config[0].base_path = ""
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            stub.HandleReloadConfigRequest(reload, timeout=60)
        reload.config.model_config_list.config[0].base_path = str(tmp_path / "nowhere")
        reload.config.model_config_list.config[0].name = "other"
        with pytest.raises(grpc.RpcError, match="UNKNOWN"):
            stub.HandleReloadConfigRequest(reload, timeout=60)
