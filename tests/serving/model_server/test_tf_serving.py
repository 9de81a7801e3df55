"""What we rely on in TensorFlow Serving, by a real tensorflow_model_server: `make test-tf-serving`."""

import json
import shutil
import time
import urllib.request

import numpy as np
import pytest

from serving import replicator
from serving.deploy import started
from serving.model_server.config import ModelConfig
from tfmm import saved_model
from tfmm.export import trial
from tfmm.index import encode, graph_table, item_index, snapshot
from tfmm_client import RankingClient

pytestmark = pytest.mark.tf_serving
DIM = 4


def write(index, ids, seed):
    rows, scales = encode.quantize(np.random.default_rng(seed).normal(size=[len(ids), DIM]))
    index.write("image", "v1", np.asarray(ids), rows, scales, [seed] * len(ids))


@pytest.fixture
def index(tmp_path):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as opened:
        write(opened, range(1, 11), 1)
        yield opened


@pytest.fixture
def push(index, write_table, tmp_path):
    """Returns a function that pushes a version which is the index as it is."""

    def push(version):
        table = snapshot.take_snapshot(index, {"image": "v1"})["image"]
        write_table(graph_table.GraphTable("image", table, DIM, 64, "v1"), tmp_path / "staged")
        shutil.move(tmp_path / "staged", tmp_path / "tfmm" / str(version))
        return ModelConfig("tfmm", str(tmp_path / "tfmm"))

    (tmp_path / "tfmm").mkdir()
    return push


def wait_until_served(client, index, version):
    """Waits until every row of the index is what the version answers."""
    wanted, deadline = index.embeddings("image", "v1"), time.monotonic() + 60
    while True:
        found = client.predict({"item_ids": wanted.ids}, version=version)
        if found["mask"].all() and np.array_equal(found["rows"], wanted.rows):
            np.testing.assert_array_equal(found["scales"], wanted.scales)
            return
        assert time.monotonic() < deadline, "rows are missing, or others"
        time.sleep(0.05)


def test_an_upsert_is_seen_by_the_next_request_and_lives_in_one_version(push, tf_serving_at):
    model = push(1)
    rows, scales = encode.quantize(np.ones((1, DIM)))
    first = time.time_ns() // 1000  # after all that the index has
    upsert = {"modality": np.array(b"image"), "item_ids": np.array([77]), "rows": rows, "scales": scales,
              "sequences": np.array([first]), "encoder_version": np.array(b"v1")}  # fmt: skip
    with tf_serving_at(model) as server, RankingClient(server["grpc"], server["rest"], timeout_s=60) as client:
        assert not client.predict({"item_ids": np.array([77])})["mask"].any()
        assert client.predict(upsert, "upsert_items", version=1)["statuses"].tolist() == [0]
        found = client.predict({"item_ids": np.array([77])})
        assert found["mask"].all() and found["rows"].tolist() == rows.tolist()
        assert client.predict({}, "index_status")["watermark"].tolist() == [first]
        later = upsert | {"item_ids": np.array([78]), "sequences": np.array([first + 1])}
        assert client.predict_rest(later, "upsert_items", version=1)["output"].tolist() == [0]
        other = upsert | {"encoder_version": np.array(b"v2"), "sequences": np.array([first + 2])}
        assert client.predict(other, "upsert_items", version=1)["statuses"].tolist() == [3]


def test_changes_are_replayed_into_a_server_that_starts_anew_and_a_version_that_is_pushed(push, index, tf_serving_at):
    model, (port,) = push(1), started.free_ports(1)
    write(index, range(5, 20), 2)
    target = f"127.0.0.1:{port}"
    with replicator.Replicator(index.path, [target], "tfmm"):
        for seed in (3, 4):
            with tf_serving_at(model, grpc=port), RankingClient(target, timeout_s=60) as client:
                wait_until_served(client, index, 1)
                write(index, range(15, 20 + 5 * seed), seed)
                wait_until_served(client, index, 1)
        with tf_serving_at(model, grpc=port), RankingClient(target, timeout_s=60) as client:
            push(2)
            while client.versions() != [2]:
                time.sleep(0.05)
            write(index, range(28, 50), 5)
            wait_until_served(client, index, 2)


def test_compiled_click_model_answers_each_signature_as_in_python(write_click_model, tf_serving_at, tmp_path):
    base = write_click_model(tmp_path)
    requests = trial.requests(base / "1")
    with saved_model.load_session(base / "1") as loaded:
        wanted = {name: loaded(name, inputs) for name, inputs in requests.items()}
    with tf_serving_at(ModelConfig("tfmm", str(base))) as server:
        with RankingClient(server["grpc"], server["rest"], timeout_s=120) as client:
            assert trial.fault(base / "1", lambda name, inputs: client.predict(inputs, name)) is None
            for name in ("rank", "rank_ids", "serving_default", "score_vectors"):
                found = client.predict(requests[name], name)
                np.testing.assert_allclose(found["score"], wanted[name]["score"], atol=1e-5)
        page = f"{server['rest']}/v1/models/tfmm/metadata"
        with urllib.request.urlopen(page, timeout=30) as answer:
            signatures = json.load(answer)["metadata"]["signature_def"]["signature_def"]
        assert set(signatures) >= set(requests) == set(wanted)
