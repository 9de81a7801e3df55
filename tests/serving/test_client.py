"""The ranking client against the embedded server with an exported click model: the road after a push."""

import threading
import time

import keras
import numpy as np
import pyarrow as pa
import pytest

from serving.client import PredictError, RankingClient
from tfmm import config as config_lib
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model
from tfmm.features import FeatureSet
from tfmm.index import encode, item_index, snapshot

NEW_ITEM, CATEGORY = 77_777, 2
FEATURES = FeatureSet().resolved(max_behaviors=4, min_count=1)
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
        config = config_lib.CTRConfig(units=(8,), attention_units=(4,))
        methods = (config_lib.Method("simtier", {"num_tiers": 8}), config_lib.Method("make"))
        make = config_lib.MAKEConfig(attention_units=(4,), units=(8, 4, 4))
        sizes = {"user_id": 10, "item_id": 42, "category": 5}
        model = model_lib.CTRModel(config, make, FEATURES, sizes, {"image": 8}, methods)
        model.build()
        seeds = keras.random.SeedGenerator(seed)  # keras's own goes on from what other tests have drawn
        for variable in model.trainable_variables:
            variable.assign(variable + keras.random.normal(variable.shape, stddev=0.2, seed=seeds))
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
def client(served):
    with RankingClient(served[1]["grpc"], served[1]["rest"], timeout_s=120) as client:
        yield client


def pointwise(count):
    rows = {name: np.repeat(np.array([value]), count, 0) for name, value in USER.items()}
    return rows | {"item_id": np.arange(100, 100 + count), "category": np.full(count, CATEGORY)}


def test_both_transports_give_the_same_scores(client):
    candidates = {"item_id": list(range(100, 120)), "category": [CATEGORY] * 20}
    scores = client.rank(USER, candidates)
    assert scores.dtype == np.float32 and scores.shape == (20,) and (scores > 0).all() and (scores < 1).all()
    over_rest = client.rank_rest(USER, candidates)
    np.testing.assert_allclose(over_rest, scores, rtol=1e-6)
    for predict in (client.predict, client.predict_rest):
        np.testing.assert_allclose(predict(pointwise(20))["score"], scores, atol=1e-5)
    best = client.top(3, USER, candidates)
    assert [score for _, score in best] == sorted(scores.tolist(), reverse=True)[:3]
    assert client.versions() == [1]


def test_missing_ids_and_arrow_arrays_are_taken(client):
    scores = client.rank(USER, {"item_id": pa.array([100, 101]), "category": pa.array([CATEGORY, None])})
    zeros = client.rank(USER, {"item_id": np.array([100, 101]), "category": [CATEGORY, 0]})
    np.testing.assert_array_equal(scores, zeros)
    nobody = {"user_id": 7, "behavior_item_ids": [], "behavior_categories": []}
    assert client.rank(nobody, {"item_id": [100], "category": [1]}).shape == (1,)  # a user without behaviors


def test_new_item_is_scored_with_its_embedding_after_an_upsert(client):
    ask = {"item_id": [NEW_ITEM, 100], "category": [CATEGORY, CATEGORY]}
    before = client.rank(USER, ask)
    rows, scales = encode.quantize(np.ones((1, 8)))
    sequence = time.time_ns() // 1000
    upsert = {"modality": np.array(b"image"), "item_ids": np.array([NEW_ITEM]), "rows": rows, "scales": scales,
              "sequences": np.array([sequence]), "encoder_version": np.array(b"v1")}  # fmt: skip
    assert client.predict(upsert, "upsert_items", version=1)["statuses"].tolist() == [0]
    after = client.rank(USER, ask)
    assert abs(after[0] - before[0]) > 1e-4 and after[1] == before[1]
    assert client.predict({}, "index_status")["watermark"].tolist() == [sequence]


def test_upsert_and_status_work_over_rest(client):
    status = client.predict_rest({}, "index_status")
    assert status["modality"].tolist() == ["image"] and status["capacity"].tolist() == [64]
    rows, scales = encode.quantize(np.ones((1, 8)))
    statuses = client.predict_rest(
        {"modality": np.array("image"), "item_ids": [NEW_ITEM + 1], "rows": rows, "scales": scales,
         "sequences": [2000], "encoder_version": np.array("other")}, "upsert_items")  # fmt: skip
    assert statuses["output"].tolist() == [3]  # another encoder's row


def test_refusals_carry_code_and_reason(client, served):
    with pytest.raises(PredictError, match=r"INVALID_ARGUMENT: input size .* required: {.*category"):
        client.predict({"user_id": [1]})
    with pytest.raises(PredictError, match=r"400: Missing named input"):
        client.predict_rest({"user_id": [1]})
    with pytest.raises(PredictError, match=r"INVALID_ARGUMENT: assertion failed: .*`category` must be as long as"):
        client.predict(pointwise(3) | {"category": np.array([1])})
    with pytest.raises(PredictError, match="NOT_FOUND"):
        client.predict(pointwise(1), version=9)
    with RankingClient(served[1]["grpc"], served[1]["rest"], "other", timeout_s=60) as other:
        with pytest.raises(PredictError, match="NOT_FOUND"):
            other.versions()
        with pytest.raises(PredictError, match="404"):
            other.predict_rest({})
    with RankingClient("127.0.0.1:1", "http://127.0.0.1:1", timeout_s=60) as nowhere:
        with pytest.raises(PredictError, match=r"UNAVAILABLE|DEADLINE_EXCEEDED"):
            nowhere.versions()
        with pytest.raises(PredictError, match="UNAVAILABLE"):
            nowhere.predict_rest({})
    with RankingClient(served[1]["grpc"]) as without_rest, pytest.raises(ValueError, match="`rest_url`"):
        without_rest.predict_rest({})
    with pytest.raises(ValueError, match="`category` must have 2 entries"):
        client.rank(USER, {"item_id": [100, 101], "category": [1]})
    with pytest.raises(ValueError, match="`item_id` must hold integers"):
        client.rank(USER, {"item_id": ["a"], "category": [1]})


def test_new_version_takes_over_under_load_without_a_failed_request(served, write_version, client):
    base, addresses = served
    failures, seen, done = [], set(), threading.Event()
    ask = {"item_id": [100, 101], "category": [CATEGORY, CATEGORY]}

    def load():
        with RankingClient(addresses["grpc"], timeout_s=120) as own:
            while not done.is_set():
                try:
                    seen.add(own.rank(USER, ask).tobytes())
                except PredictError as error:
                    failures.append(error)

    thread = threading.Thread(target=load)
    thread.start()
    deadline = time.monotonic() + 400
    try:
        while not seen and time.monotonic() < deadline:  # a score of version 1
            assert not failures
            time.sleep(0.1)
        write_version(base / "2", seed=1)
        while (client.versions() != [2] or len(seen) < 2) and time.monotonic() < deadline:
            assert not failures
            time.sleep(0.1)
    finally:
        done.set()
        thread.join(60)
    assert client.versions() == [2]
    assert not failures and len(seen) == 2


def test_features_that_are_missing_or_unknown_are_named(client):
    candidates = {"item_id": [100], "category": [1]}
    with pytest.raises(ValueError, match=r"`user` must have .*Missing: \['behavior_categories'\]"):
        client.rank({name: USER[name] for name in ("user_id", "behavior_item_ids")}, candidates)
    with pytest.raises(ValueError, match=r"`candidates` must have .*Received: \['price'\]"):
        client.rank(USER, {**candidates, "price": [1.0]})
