"""What a server logs and an application tells is learned near-line as `tfmm train --served` learns it, row by row."""

import dataclasses
import functools
import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving import served_log
from serving.model_server.logged import Logs
from serving.nearline import joining, records, rows
from serving.nearline.logs_of_records import Logs as NearlineLogs
from serving.served_record import REQUEST_ID
from serving.streaming import event_log
from tfmm import config as config_lib
from tfmm import fingerprints
from tfmm.data import served, served_examples, shards
from tfmm.export import saved_model
from tfmm.features import Feature, FeatureSet
from tfmm.index import item_features, item_index, live_vectors
from tfmm.training.examples import split_pattern

REQUESTS, WINDOW_S = 24, 300.0


@pytest.fixture(scope="module")
def click_model(tmp_path_factory, write_click_model):
    plain = {"batch_buckets": (4,), "candidate_buckets": (8,), "jit_compile": False}
    return write_click_model(tmp_path_factory.mktemp("learned"), **plain)


@pytest.fixture(scope="module")
def declared(click_model):
    """The model's features and a position, which events tell; the types of ids."""
    manifest = saved_model.read_manifest(click_model / "1")
    features = config_lib.as_config(FeatureSet, manifest["feature_set"])
    position = Feature("position", "context", "number", source="impressions.position", serving_value=1.0)
    return dataclasses.replace(features, features=(*features.features, position)), manifest["id_types"]


def rank(address, number):
    """Asks for scores of items, some of which have no features; of every third request the prices are given."""
    draw = np.random.default_rng(number)
    items = draw.choice(np.arange(100, 144), 5, replace=False)
    message = predict_pb2.PredictRequest()
    message.model_spec.name = "tfmm"
    message.model_spec.signature_name = "rank_ids"
    columns = {"user_id": [1 + number % 8], "device": [number % 3], "clicks_item_id": [[*draw.choice(items, 3), 0]],
               "clicks_age": np.float32([[50, np.nan, 3, 0]]), "item_id": items}  # fmt: skip
    if number % 3 == 0:
        message.model_spec.signature_name = "rank"
        left_out = np.zeros(0, np.int64)  # the model looks it up
        columns |= {"price": np.float32([1.5, np.nan, 2, 3, 4]), "brand": ["brand 1", "", "x", "y", "z"],
                    "category": left_out, "in_stock": np.zeros(0, np.float32), "tags": np.zeros([1, 0], object),
                    "launched": left_out, "clicks_category": left_out[None],
                    "clicks_price": np.float32([[1, 2, np.nan, np.nan]])}  # fmt: skip
    for name, values in columns.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(np.asarray(values)))
    with grpc.insecure_channel(address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        stub.Predict(message, metadata=[(REQUEST_ID, f"r{number}")], timeout=60)
    return items.tolist()


@pytest.fixture(scope="module")
def told(serving_at, click_model, tmp_path_factory):
    """A server's requests in a folder within a folder and in a log of events; of the application, the events."""
    folder = tmp_path_factory.mktemp("told")
    logs = [served_log.Log("served", url) for url in (f"{folder}/served/a", f"sqlite:///{folder}/served.sqlite")]
    with serving_at(click_model, "tfmm", logs=Logs(tuple(logs))) as server:
        asked = {f"r{number}": rank(server["grpc"], number) for number in range(REQUESTS)}
    times = {one.request_id: one.time for one in map(served.parse, payloads(folder / "served"))}
    events = []
    for place, (name, items) in enumerate(asked.items()):
        for position, item in enumerate(items[:3]):
            event = {"request_id": name, "item_id": item}
            at = {"position": position} if place % 4 else {}
            events.append({**event, "time": times[name] + 0.5, "shown": True, "label": None, **at})
            if (place + item) % 3 == 0:
                events.append({**event, "time": times[name] + 60.0, "label": True})
    lines = [json.dumps(event).encode() for event in [*events, {"request_id": "r0", "item_id": 7, "time": 1.7e9}]]
    (folder / "events" / "b").mkdir(parents=True)
    (folder / "events" / "b" / "part.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with event_log.SQLiteEventLog(folder / "events.sqlite") as log:
        log.append(lines)
    return folder, max(times.values())


def payloads(folder):
    return [payload for path in served.files(folder) for payload in served.payloads(path)]


def batch_rows(folder, until, feature_set, output):
    """Returns what `tfmm train --served` reads, in time order, and its dead letters' reasons."""
    log = served_examples.Log(folder / "served", folder / "events", WINDOW_S, until)
    served_examples.write_examples(log, config_lib.DataConfig(max_bad_fraction=1.0), feature_set, output)
    parts = [shards.read_columns(split_pattern(output, split)) for split in ("train", "eval")]
    letters = served.payloads(output / "dead_letter-00000-of-00001.parquet")
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return found, [json.loads(letter)["reason"] for letter in letters]


def nearline_rows(urls, until, feature_set, id_types, folder):
    """Returns what the near-line trainer reads, in time order, and its dead letters' reasons."""
    join = joining.Join(joining.Rules("label", round(WINDOW_S * joining.SECOND_US), columns=("position",)))
    logs = NearlineLogs(urls, {}, 0.0, functools.partial(records.time_of, label="label"))
    while (read := logs.read(join.newest_us, join.room)) is not None:
        name, events = read
        for event in events:
            join.add(name, event)
    logs.close()
    with item_index.ItemIndex(folder / "empty.sqlite") as index:  # the record has all that was looked up
        stored = live_vectors.LiveFeatures(index, item_features.Layout.of(feature_set, id_types))
        reader = rows.Reader(feature_set, id_types, stored)
        found = rows.concatenate([reader.read(one) for one in join.advance(round(until * joining.SECOND_US))])
    return found, [letter.reason for letter in join.letters]


@pytest.mark.parametrize("requests, events", [("served.sqlite", "events.sqlite"), ("served", "folder://events")])
def test_rows_and_dead_letters_are_those_of_training(told, requests, events, declared, tmp_path):
    (folder, newest), (feature_set, id_types) = told, declared
    until = newest + 2 * WINDOW_S
    wanted, reasons = batch_rows(folder, until, feature_set, tmp_path / "examples")
    urls = [str(folder / requests), events.replace("events", str(folder / "events"))]
    found, said = nearline_rows(urls, until, feature_set, id_types, tmp_path)
    assert len(found["label"]) == 3 * REQUESTS and 0 < found["label"].sum() < 3 * REQUESTS
    assert said == reasons == ["`shown` or `label` must be there"]
    orders = [np.lexsort((one["item_id"], one["timestamp"])) for one in (wanted, found)]
    assert set(wanted) == set(found) - {rows.AT}
    for name, values in wanted.items():
        np.testing.assert_array_equal(found[name][orders[1]], values[orders[0]], err_msg=name)
    assert int(fingerprints.fingerprint(["brand 1"])[0]) in found["brand"] and np.isnan(found["price"]).any()
