"""What a server logs of its rankings: every one, as it was served, in files that are whole, by gRPC and REST alike."""

import asyncio
import dataclasses
import json
import shutil
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving import served_log
from serving.client import PredictError
from serving.logging_client import AsyncLoggingClient, LoggingClient
from serving.model_server.config import ModelConfig
from serving.model_server.logged import Logs
from serving.model_server.servable import Servable
from serving.served_record import REQUEST_ID
from tfmm.data import served
from tfmm.export import warmup as export_warmup

USER = {"user_id": [3], "device": [5], "clicks_item_id": [[101, 102, 0]], "clicks_age": [[50.0, np.nan, 3.0]]}
ITEMS = [100, 139, 7]
WITHIN_S = 300.0  # the first answer of a server that was not warmed, on whatever machine


@pytest.fixture(scope="module")
def click_model(tmp_path_factory, write_click_model):
    one_bucket = {"batch_buckets": (4,), "candidate_buckets": (4,)}  # most tests load it anew
    return write_click_model(tmp_path_factory.mktemp("logged"), jit_compile=False, **one_bucket)


@pytest.fixture(scope="module")
def cold_model(click_model, tmp_path_factory):
    """The model without requests for its warm-up, so that its server is up sooner and the first answer takes longer."""
    folder = tmp_path_factory.mktemp("cold")
    shutil.copytree(click_model / "1", folder / "1", ignore=shutil.ignore_patterns(export_warmup.FILE))
    return folder


def request(**columns):
    """A request of ids alone, or of what else is given."""
    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = "tfmm", "rank" if columns else "rank_ids"
    for name, values in (USER | {"item_id": ITEMS} | columns).items():
        dtype = tf.float32 if "age" in name or "price" in name else None
        message.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(values), dtype))
    return message


def call(address, message, request_id=None):
    """Returns the scores, and the id that the answer names."""
    metadata = [(REQUEST_ID, request_id)] if request_id else []
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        answer, ended = stub.Predict.with_call(message, metadata=metadata, timeout=WITHIN_S)
    named = dict(ended.trailing_metadata()).get(REQUEST_ID)
    return tf.make_ndarray(answer.outputs["score"]), sorted(answer.outputs), named


def records(folder):
    return {one.request_id: one for path in served.files(folder) for one in map(served.parse, served.payloads(path))}


def test_every_ranking_is_logged_as_it_was_served(serving_at, cold_model, tmp_path):
    logs = Logs(
        (
            served_log.Log("served", f"folder://{tmp_path / 'log'}"),
            served_log.Log("inspection", str(tmp_path / "sample"), sample_rate=0.5),
        )
    )
    with serving_at(cold_model, "tfmm", logs=logs) as server:
        began = time.time()
        scores, outputs, named = call(server["grpc"], request(), "first")
        assert outputs == ["logit", "score"] and named == "first"
        body = {"signature_name": "rank_ids", "inputs": USER | {"item_id": ITEMS}}
        body["inputs"]["clicks_age"] = [[50.0, 1.0, 3.0]]
        url = f"{server['rest']}/v1/models/tfmm:predict"
        answer = httpx.post(url, json=body, headers={REQUEST_ID: "rest"}, timeout=WITHIN_S)
        assert answer.headers[REQUEST_ID] == "rest" and set(answer.json()["outputs"]) == {"score", "logit"}
        assert len(call(server["grpc"], request())[2]) == 32  # one that the server makes
        with pytest.raises(grpc.RpcError, match="1 to 200 printable"):
            call(server["grpc"], request(), "x" * 201)
        for number in range(40):
            call(server["grpc"], request(), f"more-{number}")
    found = records(tmp_path / "log")
    assert len(found) == 43
    first = found["first"]
    np.testing.assert_array_equal(np.float32(first.scores), scores)
    assert (first.model, first.version, first.items) == ("tfmm", 1, ITEMS) and began < first.time < time.time()
    assert first.features["user_id"] == 3 and first.features["clicks_item_id"] == [101, 102, 0]
    assert first.features["clicks_age"] == [50.0, None, 3.0]  # a missing number is null
    assert set(first.index) == set(first.encoders) == {"item_features", "vector"}
    assert len(first.features["clicks_category"]) == 3  # what was looked up of behaviors' items
    assert set(first.item_features) == {"category", "brand", "price", "tags", "in_stock", "launched"}
    assert first.item_features["price"][2] is None and first.item_features["price"][0] > 0  # no such item: missing
    assert found["rest"].scores == pytest.approx(answer.json()["outputs"]["score"], abs=1e-6)
    sampled = records(tmp_path / "sample")
    assert 0 < len(sampled) < 43 and set(sampled) <= set(found)
    assert {one.sample_rate for one in sampled.values()} == {0.5}


def test_what_a_request_gives_is_no_item_feature_that_was_looked_up(serving_at, cold_model, tmp_path):
    log = served_log.Log("served", str(tmp_path / "log"))
    brands, empty = np.array([b"brand 1", b"", b"\xff"], object), np.zeros([0], np.int64)
    given = {"price": [1.0, 2.0, np.nan], "brand": brands, "category": empty, "in_stock": np.zeros(0, np.float32),
             "tags": np.zeros([1, 0], object), "launched": empty, "clicks_category": np.zeros([1, 0], np.int64),
             "clicks_price": [[1.0, 2.0, np.nan]]}  # fmt: skip
    with serving_at(cold_model, "tfmm", logs=Logs((log,))) as server:
        call(server["grpc"], request(**given), "given")
    one = records(tmp_path / "log")["given"]
    assert one.features["price"] == [1.0, 2.0, None] and one.features["clicks_price"] == [1.0, 2.0, None]
    assert one.features["brand"][:2] == ["brand 1", ""] and isinstance(one.features["brand"][2], int)
    assert set(one.item_features) == {"category", "in_stock", "tags", "launched"}


def test_a_training_log_that_is_behind_refuses_and_loses_nothing(serving_at, cold_model, tmp_path):
    """The disk is away: what finds no place is refused before it costs anything; the others are written later."""
    log = served_log.Log("served", str(tmp_path / "log"), max_waiting=3)
    append, is_away = log._sink.append, threading.Event()
    is_away.set()

    def failing(payloads):
        if is_away.is_set():
            raise OSError(28, "No space left on device")
        append(payloads)

    log._sink.append = failing
    answered = []
    with serving_at(cold_model, "tfmm", logs=Logs((log,)), metrics_port=0) as server:
        for number in range(6):
            try:
                call(server["grpc"], request(), f"r{number}")
                answered.append(f"r{number}")
            except grpc.RpcError as error:
                assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED and "takes every one" in error.details()
        text = httpx.get(f"{server['metrics']}/metrics", timeout=WITHIN_S).text
        assert 'tfmm_served_log_records_total{log="served",state="refused"} 3.0' in text
        is_away.clear()
    assert answered == ["r0", "r1", "r2"]
    assert sorted(records(tmp_path / "log")) == answered and log.counts["lost"] == 0


def test_a_version_that_cannot_say_what_it_scored_by_is_refused(serving_at, tmp_path, write_models):
    """Where something must be logged, nothing is served unlogged."""
    from tfmm import saved_model
    from tfmm.export.signatures import RANK

    module = tf.Module()
    rank = tf.function(lambda x: {"score": x}).get_concrete_function(x=tf.TensorSpec([None], tf.float32, name="x"))
    saved_model.save(module, {RANK: rank}, tmp_path / "model" / "1")
    message = predict_pb2.PredictRequest()
    message.model_spec.name, message.model_spec.signature_name = "old", RANK
    message.inputs["x"].CopyFrom(tf.make_tensor_proto([1.0]))
    log = served_log.Log("served", str(tmp_path / "log"))
    with serving_at(tmp_path / "model", "old", logs=Logs((log,))) as server:
        with pytest.raises(grpc.RpcError, match="Export it again"):
            call(server["grpc"], message)
    log = served_log.Log("inspection", str(tmp_path / "sample"), sample_rate=0.5)  # a sample drops it instead
    with serving_at(tmp_path / "model", "old", logs=Logs((log,))) as server:
        for number in range(20):
            assert call(server["grpc"], message, f"r{number}")[0].tolist() == [1.0]
    assert log.counts["dropped"] == sum(log.takes(f"r{number}") for number in range(20)) > 0


def test_what_is_not_of_the_sample_is_not_scored_for_it(click_model, tmp_path, monkeypatch):
    from serving.model_server import warmup
    from serving.model_server.logged import Recording

    log = served_log.Log("inspection", str(tmp_path / "sample"), sample_rate=0.5)
    servable = Servable("tfmm", 1, str(click_model / "1"))
    run, signatures = servable.run, []

    def seen(signature, *arguments):
        signatures.append(signature)
        return run(signature, *arguments)

    monkeypatch.setattr(servable, "run", seen)
    inputs = {name: tf.make_ndarray(value) for name, value in request().inputs.items()}
    for number in range(20):
        request_id = f"r{number}"
        Recording(servable, Logs((log,)), request_id).run("rank_ids", inputs)
        assert signatures.pop() == ("rank_ids_logged" if log.takes(request_id) else "rank_ids")
    assert warmup.warm(servable, is_logged=True) and {"rank_ids", "rank_ids_logged"} <= set(signatures)  # as both serve
    log.close()
    servable.close()


def test_changes_of_the_index_are_logged_as_they_were_taken(click_model, tmp_path):
    from serving.model_server.logged import Recording, changes_table

    log = served_log.Log("changes", str(tmp_path / "changes"), table=changes_table)
    servable = Servable("tfmm", 1, str(click_model / "1"))
    status = servable.run("index_status", {})
    encoder = dict(zip(status["modality"].tolist(), status["encoder_version"].tolist()))[b"vector"]
    rows, now_us = np.arange(12, dtype=np.int8).reshape(2, 6), time.time_ns() // 1000
    inputs = {
        "modality": np.array(b"vector", object), "item_ids": np.array([100, 101]), "rows": rows,
        "scales": np.ones(2, np.float32), "sequences": np.array([now_us, now_us + 1]),
        "encoder_version": np.array(encoder, object),
    }  # fmt: skip
    assert Recording(servable, Logs((), log), "x").run("upsert_items", inputs)["statuses"].tolist() == [0, 0]
    log.close()
    servable.close()
    (path,) = served.files(tmp_path / "changes")
    (change,) = map(json.loads, served.payloads(path))
    assert change["ids"] == [100, 101] and change["sequences"] == [now_us, now_us + 1]


def test_a_client_logs_for_a_server_that_does_not(serving_at, cold_model, tmp_path):
    """The record is that of the server's own log, but for its time."""
    logs = [served_log.Log("served", str(tmp_path / name)) for name in ("server", "client", "awaited")]
    user = {name: values[0] for name, values in USER.items()}

    async def awaited(address):
        async with AsyncLoggingClient(address, log=logs[2], timeout_s=WITHIN_S) as client:
            return await client.rank(user, {"item_id": ITEMS}, request_id="awaited")

    with serving_at(cold_model, "tfmm", logs=Logs((logs[0],))) as server:
        for log, request_id in ((None, "by-the-server"), (logs[1], "by-the-client")):
            with LoggingClient(server["grpc"], log=log, timeout_s=WITHIN_S) as client:
                scores = client.rank(user, {"item_id": ITEMS}, request_id=request_id)
        np.testing.assert_array_equal(asyncio.run(awaited(server["grpc"])), scores)
    for log in logs[1:]:
        log.close()
    (theirs,), *of_clients = (records(tmp_path / log).values() for log in ("server", "client", "awaited"))
    for (ours,), request_id in zip(of_clients, ("by-the-client", "awaited"), strict=True):
        assert (theirs.request_id, ours.request_id) == ("by-the-server", request_id)
        np.testing.assert_array_equal(np.float32(ours.scores), scores)
        assert dataclasses.replace(ours, request_id=theirs.request_id, time=theirs.time) == theirs


def test_a_client_that_logs_asks_for_a_version_by_its_label(serving_at, cold_model, tmp_path):
    log = served_log.Log("served", str(tmp_path / "log"))
    models = (ModelConfig("tfmm", str(cold_model), labels=(("stable", 1),)),)
    user = {name: values[0] for name, values in USER.items()}
    with serving_at(cold_model, models=models) as server:
        with LoggingClient(server["grpc"], log=log, timeout_s=WITHIN_S) as client:
            scores = client.rank(user, {"item_id": ITEMS}, version="stable", request_id="labelled")
            with pytest.raises(PredictError, match="canary"):
                client.rank(user, {"item_id": ITEMS}, version="canary")
    log.close()
    one = records(tmp_path / "log")["labelled"]
    assert one.version == 1
    np.testing.assert_array_equal(np.float32(one.scores), scores)
