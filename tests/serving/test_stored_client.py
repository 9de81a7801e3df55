"""Vectors and features looked up by the client: the scores of a model that holds them, and never of two encoders."""

import asyncio
import shutil
import threading

import keras
import numpy as np
import pytest

from serving.client import RankingClient
from serving.stored_client import AsyncStoredRankingClient, StoredRankingClient
from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model
from tfmm.features import DEFAULT_FEATURES, DEFAULT_SEQUENCES, STORED, Feature, FeatureSet
from tfmm.index import encode, item_features, snapshot, store
from tfmm.index.rows import IndexRows
from tfmm_client.replicas import Deadline

FEATURES = FeatureSet((*DEFAULT_FEATURES, Feature("price", "item", "number")), DEFAULT_SEQUENCES).resolved(4, 1)
TYPES = {"user_id": "int64", "item_id": "int64", "category": "int64"}
ITEMS = np.arange(100, 140, dtype=np.int64)
NEW_ITEM = 777
USER = {"user_id": 3, "behavior_item_ids": [101, 102, 103]}
LAYOUT = item_features.Layout.of(FEATURES, TYPES)


def write(index, version, ids, seed):
    rows, scales = encode.quantize(np.random.default_rng(seed).normal(size=(len(ids), 8)))
    index.write("image", version, ids, rows, scales, np.full(len(ids), seed + 1))


def fill(index):
    write(index, "v1", ITEMS, 1)
    write(index, "v2", ITEMS, 2)
    index.register_encoder(STORED, LAYOUT.version, LAYOUT.dim, LAYOUT.text)
    draw = np.random.default_rng(0)
    values = {"category": draw.integers(1, 4, 40), "price": draw.normal(size=40).astype(np.float32)}
    own = IndexRows(ITEMS, LAYOUT.pack(values), np.ones(40, np.float32), ITEMS, ITEMS)
    index.apply(store.IndexBatch([store.TableRows(STORED, LAYOUT.version, own)]))


def known(client, refresh_s):
    """What the client knows of the newest version at its one server."""
    (replica,) = client._turns.replicas
    return client._run(client._model(replica, None, refresh_s, Deadline(120)))


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """Folders of versions by (encoder version, whether the rows are inside)."""
    folder = tmp_path_factory.mktemp("artifacts")
    numbers = {"price": np.array([-1.0, 1.0], np.float32)}
    ids = {"user_id": np.arange(1, 9), "item_id": ITEMS, "category": np.arange(1, 4)}
    preprocessing.write(folder / "vocabulary", ids, numbers)
    keras.utils.set_random_seed(0)
    sizes = preprocessing.load(FEATURES, folder / "vocabulary").sizes
    methods = (config_lib.Method("simtier", {"num_tiers": 8}), config_lib.Method("make"))
    make = config_lib.MAKEConfig(attention_units=(4,), units=(8, 4, 4))
    config = config_lib.CTRConfig(units=(8,), attention_units=(4,))
    model = model_lib.CTRModel(config, make, FEATURES, sizes, {"image": 8}, methods)
    model.build()
    seeds = keras.random.SeedGenerator(0)
    for variable in model.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.2, seed=seeds))
    model_lib.save_model(model, folder / "model")
    result = {}
    with store.open_store(folder / "items.sqlite") as index:
        fill(index)
        for version in ("v1", "v2"):
            snapshot.write_snapshot(index, folder / version, {"image": version})
            for is_inside in (True, False) if version == "v1" else (False,):
                result[version, is_inside] = folder / f"{version}-{is_inside}"
                export = config_lib.ExportConfig(
                    index_capacity=64, batch_buckets=(4,), candidate_buckets=(4, 16), with_items=is_inside,
                    jit_compile=False,
                )
                parts = folder / "model", folder / "vocabulary", folder / version, TYPES, export
                saved_model.export(*parts, result[version, is_inside])
    return result


@pytest.fixture(params=["redis", "sqlite"])
def index(request, tmp_path):
    url = tmp_path / "items.sqlite"
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url(prefix=str(tmp_path))
    with store.open_store(url) as opened:
        fill(opened)
        yield opened


def test_scores_are_those_of_the_model_that_holds_the_rows(index, exports, tmp_path, serving_at):
    for number, is_inside in ((1, True), (2, False)):
        shutil.copytree(exports["v1", is_inside], tmp_path / "models" / str(number))
    candidates = {"item_id": [*range(100, 118), NEW_ITEM]}
    with serving_at(tmp_path / "models", name="tfmm", latest=2) as addresses:
        with (
            RankingClient(addresses["grpc"], timeout_s=120) as inside,
            StoredRankingClient(
                addresses["grpc"], addresses["rest"], index=index, feature_set=FEATURES, timeout_s=120
            ) as outside,
        ):
            wanted = inside.rank(USER, candidates, version=1)
            scores = outside.rank(USER, candidates)  # of the newest, version 2, which holds no row
            np.testing.assert_allclose(scores, wanted, atol=1e-6)
            assert np.ptp(scores) > 1e-3
            np.testing.assert_allclose(outside.rank_rest(USER, candidates), wanted, atol=1e-5)
            given = {**candidates, "category": [1] * 19, "price": [0.5] * 19}
            behaviors = {**USER, "behavior_categories": [3, 2, 1]}
            for user, items in ((USER, given), (behaviors, candidates), (behaviors, given)):
                np.testing.assert_allclose(
                    outside.rank(user, items), inside.rank(user, items, version=1), atol=1e-6
                )
            nobody = {"user_id": 5, "behavior_item_ids": []}
            np.testing.assert_allclose(
                outside.rank(nobody, candidates), inside.rank(nobody, candidates, version=1), atol=1e-6
            )
            write(index, "v1", [NEW_ITEM], 9)  # scored with its vector at once, and no replicator runs
            later = outside.rank(USER, candidates)
            assert abs(later[-1] - scores[-1]) > 1e-4 and np.array_equal(later[:-1], scores[:-1])
            with pytest.raises(ValueError, match=r"`user` must have .* Missing: \['user_id'\]"):
                outside.rank({"behavior_item_ids": [101]}, candidates)


def test_calls_that_are_awaited_score_alike_and_leave_the_event_loop_free(index, exports, tmp_path, serving_at):
    shutil.copytree(exports["v1", False], tmp_path / "models" / "1")
    requests = [{"item_id": list(range(100 + n, 118 + n))} for n in range(4)]
    threads, look_up = set(), index.look_up

    def noted(*arguments):
        threads.add(threading.current_thread())
        return look_up(*arguments)

    async def ask(address, url):
        stored = {"index": index, "feature_set": FEATURES, "timeout_s": 120}
        async with AsyncStoredRankingClient(address, url, **stored) as client:
            with pytest.raises(ValueError, match=r"`user` must have .* Missing: \['user_id'\]"):
                await client.rank({"behavior_item_ids": [101]}, requests[0])
            asked = [client.rank(USER, one) for one in requests]
            return await asyncio.gather(*asked, client.rank_rest(USER, requests[0]))

    with serving_at(tmp_path / "models", name="tfmm") as addresses:
        with StoredRankingClient(addresses["grpc"], index=index, feature_set=FEATURES, timeout_s=120) as client:
            wanted = [client.rank(USER, one) for one in requests]
        index.look_up = noted
        *found, by_rest = asyncio.run(ask(addresses["grpc"], addresses["rest"]))
    for scores, one in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(scores, one)
    np.testing.assert_allclose(by_rest, wanted[0], atol=1e-5)
    assert threads and threading.main_thread() not in threads


@pytest.mark.parametrize("index", ["redis"], indirect=True)
def test_no_score_is_of_another_encoders_vectors_while_versions_change(index, exports, tmp_path, serving_at):
    shutil.copytree(exports["v1", False], tmp_path / "models" / "1")
    candidates, faults, seen, done = {"item_id": list(range(100, 116))}, [], [], threading.Event()
    with serving_at(tmp_path / "models", name="tfmm") as addresses:
        with StoredRankingClient(
            addresses["grpc"], index=index, feature_set=FEATURES, refresh_s=0.05, timeout_s=120
        ) as client:
            expected = [client.rank(USER, candidates)]
            assert known(client, 60.0).encoders == {"image": "v1"}

            def ask():
                while not done.is_set():
                    try:
                        seen.append(client.rank(USER, candidates))
                    except Exception as error:
                        faults.append(error)

            threads = [threading.Thread(target=ask) for _ in range(2)]
            for thread in threads:
                thread.start()
            shutil.copytree(exports["v2", False], tmp_path / "models" / ".2")
            (tmp_path / "models" / ".2").rename(tmp_path / "models" / "2")
            while known(client, 0.2).number == 1:
                done.wait(0.05)
            count = len(seen)
            while len(seen) < count + 10 and not faults:
                done.wait(0.05)
            done.set()
            for thread in threads:
                thread.join()
            expected.append(client.rank(USER, candidates))
    assert not faults
    assert np.abs(expected[0] - expected[1]).max() > 1e-3
    matches = [[np.allclose(scores, one, atol=1e-6) for one in expected] for scores in seen]
    assert all(any(of_one) for of_one in matches) and [False, True] in matches
    assert sum(of_one[0] for of_one in matches[count:]) <= len(threads)  # of each, the call that was under way
