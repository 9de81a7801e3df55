"""What the server tells Prometheus: under TensorFlow Serving's names where it has them."""

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from prometheus_client import parser
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server import metrics
from serving.model_server.errors import ServingError
from tfmm import saved_model

PATH = metrics.DEFAULT_PATH


class WithIndex(tf.Module):
    """A model that tells of an item index."""

    @tf.function(input_signature=[])
    def status(self):
        return {
            "modality": tf.constant(["image", "text"]),
            "encoder_version": tf.constant(["v1", "v2"]),
            "watermark": tf.constant([7, 9], tf.int64),
            "size": tf.constant([3, 4], tf.int64),
            "capacity": tf.constant([64, 64], tf.int64),
        }

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x):
        return {"y": 2.0 * x}


@pytest.fixture(scope="module")
def addresses(tmp_path_factory, serving_at):
    base = tmp_path_factory.mktemp("indexed")
    module = WithIndex()
    saved_model.save(module, {"serving_default": module.double, "index_status": module.status}, base / "5")
    with serving_at(base, name="m", metrics_path=PATH, metrics_port=0) as result:
        yield result


def read(text):
    """Returns the samples by name and labels."""
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def named(name, **labels):
    return (name, *sorted(labels.items()))


@pytest.fixture
def page(addresses):
    def get():
        response = httpx.get(addresses["rest"] + PATH, timeout=60)
        assert response.headers["content-type"].startswith("text/plain")
        return read(response.text)

    return get


def test_requests_are_counted_by_status_and_timed_by_model_and_signature(addresses, page):
    before = page()
    url = addresses["rest"] + "/v1/models/m:predict"
    assert httpx.post(url, json={"instances": [1.0]}, timeout=60).status_code == 200
    assert httpx.post(url, json={"instances": ["a"]}, timeout=60).status_code == 400
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1])))
    with grpc.insecure_channel(addresses["grpc"]) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        stub.Predict(request, timeout=60)
        request.model_spec.signature_name = "none"
        with pytest.raises(grpc.RpcError, match="FAILED_PRECONDITION"):
            stub.Predict(request, timeout=60)
    after = page()

    def grown(name, **labels):
        return after.get(named(name, **labels), 0) - before.get(named(name, **labels), 0)

    count = ":tensorflow:serving:request_count"
    assert grown(count, model_name="m", status="OK") == 2
    assert grown(count, model_name="m", status="INVALID_ARGUMENT") == 1
    assert grown(count, model_name="m", status="FAILED_PRECONDITION") == 1
    latency = ":tensorflow:serving:request_latency_count"
    assert grown(latency, model_name="m", API="predict", entrypoint="REST") == 1
    assert grown(latency, model_name="m", API="Predict", entrypoint="GRPC") == 1
    assert grown("tfmm_request_latency_seconds_count", model_name="m", signature="serving_default") == 2
    assert after[named("tfmm_requests_waiting")] == 0


def test_names_that_callers_make_up_are_no_labels(addresses, page):
    for number in range(3):
        httpx.get(f"{addresses['rest']}/v1/models/made_up_{number}", timeout=60)
    found = page()
    assert found[named(":tensorflow:serving:request_count", model_name="", status="NOT_FOUND")] >= 3
    assert not [key for key in found if "made_up" in str(key)]


def test_versions_and_their_index_are_told(page):
    found = page()
    assert found[named("tfmm_model_version_state", model_name="m", version="5", state="AVAILABLE")] == 1
    labels = {"model_name": "m", "version": "5", "modality": "text", "encoder_version": "v2"}
    assert found[named("tfmm_index_watermark", **labels)] == 9
    assert found[named("tfmm_index_items", **labels)] == 4
    assert found[named("tfmm_index_capacity", **labels)] == 64


def test_metrics_have_a_port_of_their_own(addresses, page):
    response = httpx.get(addresses["metrics"] + "/metrics", timeout=60)
    assert "process_resident_memory_bytes" in response.text
    assert read(response.text).keys() >= {key for key in page() if key[0].startswith("tfmm_index")}


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("prometheus_config { enable: true }", PATH),
        ('prometheus_config { enable: true path: "/metrics" }', "/metrics"),
        ('prometheus_config { path: "/metrics" }', ""),
        ("", ""),
    ],
)
def test_monitoring_config_says_where(tmp_path, text, path):
    file = tmp_path / "monitoring.config"
    file.write_text(text)
    assert metrics.monitored_path(str(file)) == path


@pytest.mark.parametrize(
    ("text", "message"),
    [("nonsense", "monitoring.config"), ('prometheus_config { enable: true path: "metrics" }', "begin with /")],
)
def test_monitoring_config_that_is_none_is_refused(tmp_path, text, message):
    file = tmp_path / "monitoring.config"
    file.write_text(text)
    with pytest.raises(ServingError, match=message):
        metrics.monitored_path(str(file))
