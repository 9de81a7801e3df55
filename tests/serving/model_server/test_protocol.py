"""TensorFlow Serving's protocol, case by case: the table is protocol.toml, the reasons are in docs/protocol.md.

`make test-tf-serving` asks the same of a real tensorflow_model_server.
"""

import gzip
import json
import pathlib
import sys

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf import text_format, wrappers_pb2
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
    regression_pb2,
)

from serving.model_server.config import ModelConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TABLE = tomllib.loads(pathlib.Path(__file__).with_name("protocol.toml").read_text("utf-8"))
PREDICTION, MODELS = "/tensorflow.serving.PredictionService/", "/tensorflow.serving.ModelService/"
CALLS = {
    "Predict": (PREDICTION, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
    "Classify": (PREDICTION, classification_pb2.ClassificationRequest, classification_pb2.ClassificationResponse),
    "Regress": (PREDICTION, regression_pb2.RegressionRequest, regression_pb2.RegressionResponse),
    "MultiInference": (PREDICTION, inference_pb2.MultiInferenceRequest, inference_pb2.MultiInferenceResponse),
    "GetModelMetadata": (
        PREDICTION, get_model_metadata_pb2.GetModelMetadataRequest, get_model_metadata_pb2.GetModelMetadataResponse
    ),
    "SessionRun": (PREDICTION, predict_pb2.PredictRequest, predict_pb2.PredictResponse),
    "GetModelStatus": (
        MODELS, get_model_status_pb2.GetModelStatusRequest, get_model_status_pb2.GetModelStatusResponse
    ),
    "HandleReloadConfigRequest": (
        MODELS, model_management_pb2.ReloadConfigRequest, model_management_pb2.ReloadConfigResponse
    ),
    "Check": ("/grpc.health.v1.Health/", wrappers_pb2.StringValue, wrappers_pb2.Int32Value),
}  # fmt: skip


OURS, THEIRS = "ours", "tensorflow_model_server"


@pytest.fixture(scope="module", params=[OURS, pytest.param(THEIRS, marks=pytest.mark.tf_serving)])
def server(request):
    """Which server is asked."""
    return request.param


@pytest.fixture(scope="module")
def addresses(server, tmp_path_factory, serving_at, tf_serving_at, write_protocol_model):
    base = tmp_path_factory.mktemp("half")
    write_protocol_model(base / "00000123")
    models = (ModelConfig("half", str(base), labels=(("stable", 123),)),)
    with serving_at(base, models=models) if server == OURS else tf_serving_at(*models) as result:
        yield result


def wanted(case, server):
    """The case as a server is to answer it: where we differ, TensorFlow Serving's own code, whatever it says."""
    if server == OURS or "differs" not in case:
        return case
    code = "status" if "status" in case else "code"
    return {key: value for key, value in case.items() if key not in ("says", "answer", "holds")} | {code: case["there"]}


@pytest.fixture(scope="module")
def rest(addresses):
    with httpx.Client(base_url=addresses["rest"], timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def channel(addresses):
    with grpc.insecure_channel(addresses["grpc"]) as channel:
        yield channel


def same(found, wanted, *, float32=False):
    """Whether two JSON values are equal; NaN is itself, and whole floats are no integers."""
    if isinstance(wanted, dict):
        return found.keys() == wanted.keys() and all(same(found[k], wanted[k], float32=float32) for k in wanted)
    if isinstance(wanted, list):
        return len(found) == len(wanted) and all(same(f, w, float32=float32) for f, w in zip(found, wanted))
    if isinstance(wanted, float):
        kind = np.float32 if float32 else np.float64
        return isinstance(found, float) and np.array_equal(kind(found), kind(wanted), equal_nan=True)
    return type(found) is type(wanted) and found == wanted


def written(case):
    depth = case.get("nest", 0)
    nested = "[" * depth + "]" * depth
    body = case.get("body", "").replace("REPEAT", "0" * case.get("repeat", 0)).replace("NESTED", nested)
    content = body.encode("latin-1" if case.get("latin") else "utf-8")
    if case.get("bom"):
        content = b"\xef\xbb\xbf" + content
    return gzip.compress(content) if case.get("gzip") else content


@pytest.mark.parametrize("case", TABLE["rest"], ids=lambda c: f"{c.get('path', '')} {c.get('body', '')}"[:80])
def test_rest(rest, server, case):
    case = wanted(case, server)
    method, path = case.get("path", "POST /v1/models/half:predict").split(" ", 1)
    response = rest.request(method, path, content=written(case), headers=case.get("headers"))
    assert response.status_code == case["status"], response.text[:500]
    if "says" in case:
        assert case["says"] in response.json()["error"]
        assert response.json().keys() == {"error"}
    if "answer" in case:
        assert same(response.json(), json.loads(case["answer"]), float32=case.get("float32", False)), response.text
        assert response.headers["content-type"] == "application/json"
    assert set(case.get("holds", ())) <= (response.json().keys() if "holds" in case else set())


@pytest.mark.parametrize("case", TABLE["grpc"], ids=lambda c: f"{c['call']} {c['from']}")
def test_grpc(channel, server, case):
    case = wanted(case, server)
    service, request_class, response_class = CALLS[case["call"]]
    if "raw" in case:
        raw = bytes.fromhex(case["raw"])
    else:
        text = case["request"].replace("REPEAT", case.get("repeated", "") * case.get("repeat", 0))
        raw = text_format.Parse(text, request_class()).SerializeToString()
    call = channel.unary_unary(service + case["call"], response_deserializer=response_class.FromString)
    if case["code"] != "OK":
        with pytest.raises(grpc.RpcError, match=case["code"]) as caught:
            call(raw, timeout=60)
        assert case.get("says", "") in caught.value.details()
        assert len(caught.value.details()) <= 1024 + len("...TRUNCATED")
        return
    response = call(raw, timeout=60)
    if "answer" in case:
        assert response == text_format.Parse(case["answer"], response_class())


def test_every_difference_is_in_the_docs_with_its_reason(root):
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (root / "docs" / "protocol.md").read_text("utf-8").splitlines()
        if line.startswith("|")
    ]
    reasons = {row[0]: row[-1] for row in rows}
    differing = {case["differs"] for case in TABLE["rest"] + TABLE["grpc"] if "differs" in case}
    assert all(len(reasons.get(name, "")) > 20 for name in differing), differing - reasons.keys()
    assert all("there" in case for case in TABLE["rest"] + TABLE["grpc"] if "differs" in case)
