"""`pre_rank` beside `rank` in one SavedModel: as the Keras head, of one index, absent without a head."""

import dataclasses
import glob
import json

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from tfmm import artifacts, preprocessing, saved_model
from tfmm import config as config_lib
from tfmm import vectors as vectors_lib
from tfmm.ctr import model as model_lib
from tfmm.ctr import pre_ranking
from tfmm.evaluate import gate, recall, report, wording
from tfmm.export import saved_model as export_lib
from tfmm.export import signatures, trial, warmup
from tfmm.index import item_vectors, snapshot
from tfmm.pre_ranking import PreRankingConfig

INT64 = {"user_id": "int64", "item_id": "int64", "category": "int64"}
CONFIG = PreRankingConfig(num_tiers=8, dim=4, units=(6,), candidate_buckets=(8, 64))
NUM_CANDIDATES = 90  # two chunks of the largest bucket
USER = {"user_id": [7], "behavior_item_ids": [[1003, 1001, 1100]], "behavior_categories": [[2, 1, 3]]}


def request(items):
    return {**USER, "item_id": items, "category": [1 + item % 5 for item in items]}


@dataclasses.dataclass(frozen=True)
class Road:
    version_dir: object
    model_dir: object
    head_dir: object
    manifest: dict


@pytest.fixture(scope="module")
def road(multimodal, shop, tmp_path_factory):
    """The export of other tests with a head, its weights drawn."""
    folder = tmp_path_factory.mktemp("head")
    head = pre_ranking.PreRankingModel(CONFIG, model_lib.load_model(multimodal.model_dir))
    head.build()
    rng = np.random.default_rng(0)
    for variable in head.trainable_variables:
        variable.assign(variable + rng.normal(0.0, 0.1, variable.shape))
    pre_ranking.save_model(head, folder / "head", [multimodal.model_dir])
    config = config_lib.ExportConfig(index_capacity=400, batch_buckets=(4, 16), candidate_buckets=(4, 16))
    manifest = export_lib.export(
        multimodal.model_dir, shop.vocabularies, shop.snapshot, INT64, config, folder / "1", folder / "head"
    )
    return Road(folder / "1", multimodal.model_dir, folder / "head", manifest)


@pytest.fixture(scope="module")
def served(road):
    with saved_model.load_session(road.version_dir) as model:
        yield model


@pytest.fixture
def items():
    return list(range(1000, 1000 + NUM_CANDIDATES))


def keras_logits(road, shop, raw):
    ranking = model_lib.load_model(road.model_dir)
    head = pre_ranking.load_model(road.head_dir, ranking)
    length = shop.features.sequences[0].length
    columns = {}
    for column in shop.features.columns:
        values = np.array(raw[column.name], np.int64)
        columns[column.name] = np.pad(values, ((0, 0), (0, length - values.shape[1]))) if column.sequence else values
    tensors = {name: tf.constant(values) for name, values in columns.items()}
    inputs = dict(preprocessing.load(shop.features, shop.vocabularies)(tensors))
    rows = snapshot.load_snapshot(shop.snapshot)
    for modality in ranking.modalities:
        for side, ids in item_vectors.sides(shop.features).items():
            inputs |= vectors_lib.named(modality, side, rows[modality].lookup(columns[ids]))
    names = model_lib.input_names(shop.features, ranking.modalities)
    return head({name: tf.convert_to_tensor(inputs[name]) for name in names})["logit"].numpy()


def test_it_scores_as_the_keras_head_does_whatever_the_bucket(road, served, shop, items):
    for some in (items[:5], items):
        found = served(signatures.PRE_RANK, request(some))
        assert sorted(found) == ["logit", "score"]
        np.testing.assert_allclose(found["logit"], keras_logits(road, shop, request(some)), atol=1e-5)
        np.testing.assert_allclose(found["score"], 1 / (1 + np.exp(-found["logit"])), atol=1e-6)


def test_other_signatures_answer_to_the_digit_as_without_it(loaded, served, items):
    assert set(served.signatures) == {*loaded.signatures, signatures.PRE_RANK, signatures.COMPARE}
    for name, values in loaded(signatures.RANK, request(items)).items():
        np.testing.assert_array_equal(served(signatures.RANK, request(items))[name], values)


def test_without_a_head_nothing_of_it_is_exported(multimodal):
    assert export_lib.PRE_RANKING not in multimodal.manifest
    assert not {signatures.PRE_RANK, signatures.COMPARE} & set(multimodal.manifest["signatures"])


def test_no_candidate_is_no_score(served):
    assert served(signatures.PRE_RANK, request([]))["score"].shape == (0,)


def test_an_upsert_reaches_both_heads(road):
    new = [999_999]
    with saved_model.load_session(road.version_dir) as model:
        before = {name: model(name, request(new))["logit"] for name in (signatures.PRE_RANK, signatures.RANK)}
        rows, scales = np.full((1, 16), 11, np.int8), np.full(1, 1 / 44, np.float32)
        statuses = model(signatures.UPSERT, {
            "modality": b"image", "item_ids": new, "rows": rows, "scales": scales, "sequences": [10**6],
            "encoder_version": b"v1",
        })["statuses"]  # fmt: skip
        assert statuses.tolist() == [0]
        for name, values in before.items():
            assert abs(model(name, request(new))["logit"] - values) > 1e-4, name


def test_every_bucket_has_a_warm_up_request(road, served):
    seen = []
    for record in tf.data.TFRecordDataset(str(road.version_dir / "assets.extra" / warmup.FILE)).as_numpy_iterator():
        asked = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {name: tf.make_ndarray(proto) for name, proto in asked.inputs.items()}
        served(asked.model_spec.signature_name, inputs)
        seen.append((asked.model_spec.signature_name, len(inputs["item_id"])))
    assert [one for one in seen if one[0] == signatures.PRE_RANK] == [(signatures.PRE_RANK, n) for n in (8, 64)]
    assert road.manifest["warmup_requests"] == len(seen) == 6


def test_every_signature_answers_the_infra_check(road, served):
    found = served.together(trial.requests(road.version_dir))
    assert trial.fault(road.version_dir, lambda signature, inputs: found[signature]) is None


def test_the_manifest_says_what_the_head_is(road):
    assert road.manifest[export_lib.PRE_RANKING]["candidate_buckets"] == [8, 64]
    assert artifacts.read_manifest(road.head_dir)["id"] in road.manifest["parents"]
    assert road.manifest[export_lib.TEACHER] == artifacts.read_manifest(road.model_dir)["id"]


def test_the_head_lies_beside_as_it_was_trained_for_the_models_that_go_on(road, multimodal):
    assert artifacts.digest(export_lib.head_of(road.version_dir)) == artifacts.digest(road.head_dir)
    assert export_lib.head_of(multimodal.version_dir) is None


def test_before_a_push_is_said_what_becomes_of_pre_rank(road, multimodal, tmp_path):
    assert export_lib.head_lines(road.version_dir, road.version_dir) == []
    assert export_lib.head_lines(multimodal.version_dir, multimodal.version_dir) == []
    assert export_lib.head_lines(multimodal.version_dir, None) == export_lib.head_lines(tmp_path, tmp_path) == []
    (lost,) = export_lib.head_lines(multimodal.version_dir, road.version_dir)
    assert lost.startswith("Version 1 in service answers `pre_rank`, and this model has no head")
    older = {**road.manifest, export_lib.TEACHER: "of-old"}
    (tmp_path / export_lib.EXTRA).mkdir()
    (tmp_path / export_lib.EXTRA / artifacts.MANIFEST).write_text(json.dumps(older))
    (kept,) = export_lib.head_lines(tmp_path, road.version_dir)
    assert "which ranking model of-old taught: an earlier one than" in kept


def test_a_request_of_another_length_is_refused_by_name(served):
    with pytest.raises(tf.errors.InvalidArgumentError, match="`category` must be as long as `item_id`"):
        served(signatures.PRE_RANK, {**request([1000, 1001]), "category": [1]})


def test_stages_are_compared_on_raw_examples_as_they_are_served(served, examples):
    user, some = examples[3], examples[:20]
    found = served(signatures.COMPARE, {"user": [user], "items": some})
    columns = tf.io.parse_example(
        [user, *some],
        {name: tf.io.FixedLenFeature([6] if "behavior" in name else [], tf.int64) for name in request([])},
    )
    raw = {n: v.numpy()[:1] if n in USER else v.numpy()[1:] for n, v in columns.items()}
    for name in (signatures.PRE_RANK, signatures.RANK):
        np.testing.assert_allclose(found[name], served(name, raw)["logit"], atol=1e-6)


def test_recall_is_what_a_loop_over_users_counts(road, shop, served, monkeypatch):
    monkeypatch.setattr(recall, "MAX_USERS", 12)
    files = [sorted(glob.glob(pattern)) for pattern in (shop.train, shop.eval)]
    users = recall._newest([files[1]], shop.features, "user_id", 12)
    items = recall._newest(files, shop.features, "item_id", 5_000)
    assert len(items) > 240 and len(users) == 12

    def scores(user, catalog):
        return served(signatures.COMPARE, {"user": [user], "items": catalog})

    found = recall.report(scores, users, items, wanted=20, kept=60)
    shares = []
    for user in users:
        logits = scores(user, items)
        ranked, kept = (sorted(range(len(items)), key=lambda i: -logits[name][i]) for name in ("rank", "pre_rank"))
        shares.append(len(set(ranked[:20]) & set(kept[:60])) / 20)
    assert found["recall"] == pytest.approx(np.mean(shares))
    assert found["low"] < found["recall"] < found["high"] and found["undefined"] is None


def test_a_catalog_that_pre_ranking_would_keep_whole_is_not_judged(served, shop):
    files = [sorted(glob.glob(pattern)) for pattern in (shop.train, shop.eval)]
    found = recall.of_model(served, *files, shop.features)
    assert found["recall"] is None and found["undefined"].startswith("pre-ranking would keep all of the 2")
    assert wording.recall_lines({"pre_ranking": {"multimodal": found}})[0].endswith(found["undefined"])


def test_a_user_and_an_item_come_once_with_their_newest_row(shop):
    eval_files = sorted(glob.glob(shop.eval))
    spec = {name: tf.io.FixedLenFeature([], tf.int64) for name in ("user_id", "timestamp")}
    found = tf.io.parse_example(recall._newest([eval_files], shop.features, "user_id", 1_000), spec)
    rows = tf.io.parse_example(
        list(tf.data.TFRecordDataset(eval_files, "GZIP").as_numpy_iterator()), spec
    )
    newest = {}
    for user, time in zip(rows["user_id"].numpy().tolist(), rows["timestamp"].numpy().tolist()):
        newest[user] = max(time, newest.get(user, 0))
    assert dict(zip(found["user_id"].numpy().tolist(), found["timestamp"].numpy().tolist())) == newest


def test_the_report_has_the_head_where_there_is_one_and_the_gate_holds_it(road, multimodal, shop, tmp_path):
    models = {"id": multimodal.version_dir, "multimodal": road.version_dir}
    found = report.evaluate(models, shop.train, shop.eval, tmp_path, shop.features)
    assert list(found["pre_ranking"]) == ["multimodal"]
    (line,) = [line for line in gate.decide(found, config_lib.GateConfig()).checks if "ecall" in line]
    assert "not judged: pre-ranking would keep all" in line


def test_the_gate_holds_recall_to_its_bar():
    facts = {"recall": 0.85, "wanted": 100, "kept": 500, "undefined": None}
    models = {name: {"auc": 0.6, "gauc": 0.58, "logloss": 0.4} for name in ("id", "multimodal")}
    config = config_lib.GateConfig()
    judged = {"models": models, "pre_ranking": {"multimodal": facts}}
    reasons = gate.decide(judged, config, min_recall=0.9).reasons
    assert reasons == (
        "Recall of ranking's best 100 in pre-ranking's best 500, multimodal is 0.8500, must be at least 0.9000",
    )
    assert gate.decide(judged, config, min_recall=0.8).passed
    assert gate.decide({"models": models}, config, min_recall=0.9).passed, "a model without the head"
