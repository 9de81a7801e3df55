"""Pre-ranking, ranking and re-ranking in a row, against the embedded server; the guide's code with it."""

import pathlib

import keras
import numpy as np
import pytest
import sybil
import sybil.parsers.markdown

from serving.client import RankingClient
from serving.stored_client import StoredRankingClient
from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.ctr import model as model_lib
from tfmm.ctr import pre_ranking
from tfmm.export import saved_model
from tfmm.features import DEFAULT_FEATURES, FeatureSet, Sequence
from tfmm.index import encode, item_index, snapshot, store
from tfmm.pre_ranking import PreRankingConfig

GUIDE = pathlib.Path(__file__).parents[2] / "docs" / "stages.md"
FEATURES = FeatureSet(
    DEFAULT_FEATURES[:2], (Sequence("behavior", features=("item_id",), column_names=("behavior_item_ids",)),)
).resolved(max_behaviors=4, min_count=1)
ITEMS = list(range(1000, 1060))
USER = {"user_id": 7, "behavior_item_ids": [1003, 1001]}
HEAD = PreRankingConfig(num_tiers=8, dim=4, units=(6,), candidate_buckets=(64, 1_024))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two versions of a model, the second with a pre-ranking head, and their index."""
    path = tmp_path_factory.mktemp("stages")
    rows, scales = encode.quantize(np.random.default_rng(0).normal(size=(len(ITEMS), 8)))
    with item_index.ItemIndex(path / "items.sqlite") as index:
        index.write("image", "v1", np.array(ITEMS), rows, scales, np.ones(len(ITEMS), np.int64))
        index.activate("image", "v1")
        snapshot.write_snapshot(index, path / "snapshot")
    preprocessing.write(path / "vocabulary", {"user_id": np.arange(1, 9), "item_id": np.array(ITEMS)}, {})
    sizes = preprocessing.load(FEATURES, path / "vocabulary").sizes
    keras.utils.set_random_seed(0)
    ctr = config_lib.CTRConfig(units=(8,), attention_units=(4,))
    methods = (config_lib.Method("simtier", {"num_tiers": 8}),)
    ranking = model_lib.CTRModel(ctr, config_lib.MAKEConfig(), FEATURES, sizes, {"image": 8}, methods)
    ranking.build()
    rng = np.random.default_rng(1)
    for variable in ranking.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.2, variable.shape))
    model_lib.save_model(ranking, path / "model")
    head = pre_ranking.PreRankingModel(HEAD, ranking)
    head.build()
    pre_ranking.save_model(head, path / "head", [path / "model"])
    export = config_lib.ExportConfig(index_capacity=64, batch_buckets=(4,), candidate_buckets=(64,))
    types = {"user_id": "int64", "item_id": "int64"}
    for version, own in (("1", None), ("2", path / "head")):
        parts = (path / name for name in ("model", "vocabulary", "snapshot"))
        saved_model.export(*parts, types, export, path / "tfmm" / version, own)
    return path


@pytest.fixture(scope="module")
def with_head(folder, serving_at, tmp_path_factory):
    base = tmp_path_factory.mktemp("with_head")
    (base / "2").symlink_to(folder / "tfmm" / "2")
    with serving_at(base, "tfmm") as addresses:
        yield addresses


@pytest.fixture(scope="module")
def client(with_head):
    with RankingClient(with_head["grpc"], with_head["rest"], timeout_s=120) as client:
        yield client


def test_five_thousand_candidates_are_one_call(client):
    items = np.resize(ITEMS, 5_000)
    scores = client.pre_rank(USER, {"item_id": items})
    assert scores.shape == (5_000,) and scores.dtype == np.float32 and np.isfinite(scores).all()
    np.testing.assert_array_equal(scores[: len(ITEMS)], scores[len(ITEMS) : 2 * len(ITEMS)])
    inputs = {"user_id": [7], "behavior_item_ids": [[1003, 1001]], "item_id": items[:100]}
    over_rest = client.predict_rest(inputs, "pre_rank")["score"]
    np.testing.assert_allclose(over_rest, scores[:100], rtol=1e-6)


def test_both_heads_of_one_client_take_their_own_inputs(client):
    found = client.pre_rank(USER, {"item_id": ITEMS}), client.rank(USER, {"item_id": ITEMS})
    assert found[0].shape == found[1].shape and not np.allclose(*found)
    with pytest.raises(ValueError, match=r"`candidates` must have .* and no others"):
        client.pre_rank(USER, {"item_id": ITEMS, "category": ITEMS})


def test_a_model_without_the_head_says_how_to_get_one(folder, serving_at, tmp_path):
    (tmp_path / "1").symlink_to(folder / "tfmm" / "1")
    with serving_at(tmp_path, "tfmm") as addresses, RankingClient(addresses["grpc"], timeout_s=120) as client:
        with pytest.raises(ValueError, match=r"`tfmm train --head pre-ranking` makes it\. Received: .*rank"):
            client.pre_rank(USER, {"item_id": ITEMS})


def test_a_client_of_a_store_has_no_pre_ranking(folder, with_head):
    with store.open_store(folder / "items.sqlite") as index:
        with StoredRankingClient(with_head["grpc"], index=index, feature_set=FEATURES) as client:
            with pytest.raises(ValueError, match="reads vectors in the model's own tables"):
                client.pre_rank(USER, {"item_id": ITEMS})


def test_code_of_the_guide_runs(folder, with_head, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text("utf-8").replace("127.0.0.1:8500", with_head["grpc"])
    written = tmp_path / "stages.md"
    written.write_text(text.replace("quickstart/index/items.sqlite", str(folder / "items.sqlite")), "utf-8")
    document = sybil.Sybil(parsers=[sybil.parsers.markdown.PythonCodeBlockParser()]).parse(written)
    examples = list(document.examples())
    assert len(examples) == 2
    for example in examples:
        example.evaluate()
