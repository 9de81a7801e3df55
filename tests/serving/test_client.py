"""The ranking client against the embedded server with an exported click model: the road after a push."""

import threading
import time

import keras
import numpy as np
import pytest

from serving.client import PredictError, RankingClient, RestClient, as_ids
from tfmm import config as config_lib
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model
from tfmm.index import encode, item_index, snapshot

NEW_ITEM, CATEGORY = 77_777, 2
USER = {"user_id": 3, "behavior_item_ids": [101, 102, 103], "behavior_categories": [1, 2, 1]}
INT64 = {"user_id": "int64", "item_id": "int64", "category": "int64"}


@pytest.fixture(scope="module")
def write_version(tmp_path_factory):
    """Exports a small click model as a version folder; `seed` draws its weights."""
    folder = tmp_path_factory.mktemp("artifacts")
    items = np.arange(100, 140, dtype=np.int64)
    rows, scales = encode.quantize(np.random.default_rng(0).normal(size=(40, 8)))
    with item_index.ItemIndex(folder / "index.sqlite") as index:
        index.write("image", "v1", items, rows, scales, np.ones(40, np.int64))
        snapshot.write_snapshot(index, folder / "snapshot")
    (folder / "vocabulary").mkdir()
    for name, ids in (("user_id", range(1, 9)), ("item_id", items), ("category", range(1, 4))):
        (folder / "vocabulary" / name).write_text("".join(f"{i}\n" for i in ids))

    def write(path, seed=0):
        keras.utils.set_random_seed(seed)
        config = config_lib.CTRConfig(modalities=("image",), units=(8,), attention_units=(4,), num_tiers=8)
        make = config_lib.MAKEConfig(attention_units=(4,), units=(8, 4, 4))
        sizes = {"user_id": 10, "item_id": 42, "category": 5}
        model = model_lib.CTRModel(config, make, sizes, {"image": 8}, max_behaviors=4)
        model.build()
        for variable in model.trainable_variables:
            variable.assign(variable + keras.random.normal(variable.shape, stddev=0.2))
        model_lib.save_model(model, folder / f"model-{seed}")
        config = config_lib.ExportConfig(index_capacity=64, batch_buckets=(4,), candidate_buckets=(4, 16))
        saved_model.export(folder / f"model-{seed}", folder / "vocabulary", folder / "snapshot", INT64, config, path)

    return write


@pytest.fixture(scope="module")
def served(write_version, serving_at, tmp_path_factory):
    base = tmp_path_factory.mktemp("tfmm")
    write_version(base / "1")
    with serving_at(base, "tfmm") as addresses:
        yield base, addresses


@pytest.fixture(scope="module")
def grpc_client(served):
    with RankingClient(served[1]["grpc"], timeout_s=60) as client:
        yield client


@pytest.fixture(scope="module")
def rest_client(served):
    return RestClient(served[1]["rest"], timeout_s=60)


def pointwise(count):
    rows = {name: np.repeat(as_ids([value]), count, 0) for name, value in USER.items()}
    return rows | {"item_id": np.arange(100, 100 + count), "category": np.full(count, CATEGORY)}


def test_both_transports_give_the_same_scores(grpc_client, rest_client):
    items, categories = list(range(100, 120)), [CATEGORY] * 20
    scores = grpc_client.rank(**USER, item_ids=items, categories=categories)
    assert scores.dtype == np.float32 and scores.shape == (20,) and (scores > 0).all() and (scores < 1).all()
    np.testing.assert_allclose(rest_client.rank(**USER, item_ids=items, categories=categories), scores, rtol=1e-6)
    for client in (grpc_client, rest_client):
        np.testing.assert_allclose(client.predict(pointwise(20))["score"], scores, atol=1e-5)
        assert client.versions() == [1]
    best = grpc_client.top(3, **USER, item_ids=items, categories=categories)
    assert [score for _, score in best] == sorted(scores.tolist(), reverse=True)[:3]


def test_new_item_is_scored_with_its_embedding_after_an_upsert(grpc_client):
    ask = {**USER, "item_ids": [NEW_ITEM, 100], "categories": [CATEGORY, CATEGORY]}
    before = grpc_client.rank(**ask)
    rows, scales = encode.quantize(np.ones((1, 8)))
    upsert = {"modality": np.array(b"image"), "item_ids": np.array([NEW_ITEM]), "rows": rows, "scales": scales,
              "sequences": np.array([1000]), "encoder_version": np.array(b"v1")}  # fmt: skip
    assert grpc_client.predict(upsert, "upsert_items", version=1)["statuses"].tolist() == [0]
    after = grpc_client.rank(**ask)
    assert abs(after[0] - before[0]) > 1e-4 and after[1] == before[1]
    assert grpc_client.predict({}, "index_status")["watermark"].tolist() == [1000]


def test_upsert_and_status_work_over_rest(rest_client):
    status = rest_client.predict({}, "index_status")
    assert status["modality"].tolist() == ["image"] and status["capacity"].tolist() == [64]
    rows, scales = encode.quantize(np.ones((1, 8)))
    statuses = rest_client.predict(
        {"modality": np.array("image"), "item_ids": [NEW_ITEM + 1], "rows": rows, "scales": scales,
         "sequences": [2000], "encoder_version": np.array("other")}, "upsert_items")  # fmt: skip
    assert statuses["output"].tolist() == [3]  # another encoder's row


def test_refusals_carry_code_and_reason(grpc_client, rest_client, served):
    with pytest.raises(PredictError, match=r"INVALID_ARGUMENT: input size .* required: {.*category"):
        grpc_client.predict({"user_id": [1]})
    with pytest.raises(PredictError, match=r"400: .*required"):
        rest_client.predict({"user_id": [1]})
    with pytest.raises(PredictError, match=r"INVALID_ARGUMENT: assertion failed: .*`category` must be as long as"):
        grpc_client.predict(pointwise(3) | {"category": np.array([1])})
    with pytest.raises(PredictError, match="NOT_FOUND"):
        grpc_client.predict(pointwise(1), version=9)
    with pytest.raises(PredictError, match="404"):
        RestClient(served[1]["rest"], "other").versions()
    with pytest.raises(PredictError, match="UNAVAILABLE"):
        RestClient("http://127.0.0.1:1").versions()
    with pytest.raises(ValueError, match="`categories` must have 2 entries"):
        grpc_client.rank(**USER, item_ids=[100, 101], categories=[1])


def test_new_version_takes_over_under_load_without_a_failed_request(served, write_version, grpc_client):
    base, addresses = served
    failures, seen, done = [], set(), threading.Event()
    ask = {**USER, "item_ids": [100, 101], "categories": [CATEGORY, CATEGORY]}

    def load():
        with RankingClient(addresses["grpc"], timeout_s=60) as client:
            while not done.is_set():
                try:
                    seen.add(client.rank(**ask).tobytes())
                except PredictError as error:
                    failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        write_version(base / "2", seed=1)
        deadline = time.monotonic() + 120
        while grpc_client.versions() != [2] and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.2)
    finally:
        done.set()
        thread.join(60)
    assert grpc_client.versions() == [2]
    assert not failures and len(seen) == 2
