"""Tests of the report on exported models."""

import json
import pathlib

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from sklearn import metrics as sklearn_metrics

from tfmm import artifacts, preprocessing
from tfmm.evaluate import missing, probe
from tfmm.evaluate import report as report_lib
from tfmm.training import examples as examples_lib


class Scorer(tf.Module):
    """A served model small enough to know by heart: logit = weight * (item_id mod 7) - 2."""

    def __init__(self, weight, feature_set):
        super().__init__()
        self.weight = tf.Variable(weight)
        self.spec = preprocessing.raw_spec(feature_set)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_examples(self, examples):
        item = tf.io.parse_example(examples, {"item_id": self.spec["item_id"]})["item_id"]
        logit = self.weight * tf.cast(item % 7, tf.float32) - 2.0
        return {"logit": logit, "score": tf.sigmoid(logit)}


def save(folder: pathlib.Path, weight: float, feature_set) -> str:
    scorer = Scorer(weight, feature_set)
    tf.saved_model.save(scorer, str(folder), signatures={"serve_examples": scorer.serve_examples})
    return str(folder)


@pytest.fixture(scope="module")
def saved(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    return {
        name: save(folder / name, weight, shop.features)
        for name, weight in (("id", 0.1), ("multimodal", -0.2))
    }


def test_what_is_served_is_what_is_judged(shop, saved, tmp_path):
    report = report_lib.evaluate(saved, shop.train, shop.eval, tmp_path, shop.features)
    files = examples_lib.example_files(shop.eval)
    rows = examples_lib.read_columns(files, shop.features, ("user_id", "item_id", "label"))
    score = 1 / (1 + np.exp(-(-0.2 * (rows["item_id"] % 7) - 2.0)))
    found = report["models"]["multimodal"]
    assert found["auc"] == pytest.approx(sklearn_metrics.roc_auc_score(rows["label"], score), abs=1e-12)
    assert found["logloss"] == pytest.approx(sklearn_metrics.log_loss(rows["label"], score), rel=1e-6)
    assert report == json.loads((tmp_path / "report.json").read_text())
    assert artifacts.read_manifest(tmp_path, report_lib.KIND)["models"] == ["id", "multimodal"]
    table = pq.read_table(tmp_path / "predictions.parquet").to_pydict()
    np.testing.assert_allclose(table["score_multimodal"], score, rtol=1e-6)
    assert sum(table["is_new_item"]) == report["rows"]["new_item_rows"] > 0
    assert set(np.array(table["item_id"])[table["is_new_item"]]) >= set(range(1240, 1280))


def test_batch_size_does_not_matter(shop, saved):
    files = examples_lib.example_files(shop.eval)
    whole, parts = (
        report_lib.score_examples(saved["id"], files, batch_size)["logit"] for batch_size in (1000, 77)
    )
    np.testing.assert_array_equal(whole, parts)


def test_new_items_are_those_that_training_never_showed():
    label, user = np.array([1, 0, 1, 0, 1, 0]), np.array([1, 1, 1, 2, 2, 2])
    item, count = np.array([5, 6, 7, 5, 6, 7]), np.array([3, 0, 0, 3, 0, 0])
    score = np.array([0.9, 0.1, 0.2, 0.6, 0.7, 0.8])
    found = report_lib.compare({"id": score}, label, user, item, count)
    # user 1: 0.2 above 0.1; user 2: 0.7 below 0.8; each has 2 rows on new items
    assert found["models"]["id"]["gauc_new_items"] == 0.5
    assert found["rows"] == {
        "eval": 6,
        "clicks": 3,
        "users": 2,
        "items": 3,
        "new_items": 2,
        "new_item_rows": 4,
        "new_item_clicks": 2,
    }
    assert found["gains"] == {} and found["groups"] == {}


def test_metric_without_a_value_is_none_with_its_reason():
    label, user, score = np.array([1, 0, 1]), np.array([1, 1, 2]), np.array([0.9, 0.1, 0.5])
    found = report_lib.compare({"id": score}, label, user, np.array([1, 2, 3]), np.array([1, 1, 0]))
    metrics = found["models"]["id"]
    assert metrics["gauc_new_items"] is None and metrics["auc_new_items"] is None
    assert metrics["undefined"]["gauc_new_items"] == "no user has both a click and a non-click"
    without = report_lib.compare({"id": score}, label, user, np.array([1, 2, 3]), np.array([1, 1, 1]))
    assert without["models"]["id"]["undefined"]["logloss_new_items"] == "there is no row"
    json.dumps(found, allow_nan=False)


def test_gains_are_over_the_baseline_with_an_interval():
    generator = np.random.default_rng(0)
    label, user, item = (
        generator.integers(0, 2, 400),
        generator.integers(0, 20, 400),
        generator.integers(0, 40, 400),
    )
    scores = {
        "id": generator.random(400),
        "multimodal": np.clip(label * 0.3 + generator.random(400) * 0.7, 0, 1),
    }
    found = report_lib.compare(scores, label, user, item, item)
    gain, models = found["gains"]["multimodal"], found["models"]
    assert gain["gauc"] == models["multimodal"]["gauc"] - models["id"]["gauc"] > 0
    assert gain["gauc_interval"]["low"] < gain["gauc"] < gain["gauc_interval"]["high"]
    groups = found["groups"]["multimodal"]
    assert [group["items"] for group in groups] == [5] * 8
    assert [(group["min_count"], group["max_count"]) for group in groups][:2] == [(0, 4), (5, 9)]
    assert sum(group["impressions"] for group in groups) == 400
    first = groups[0]
    assert first["auc_improvement"] == pytest.approx(first["auc"] / first["baseline_auc"] - 1)


def test_bad_arguments_are_refused(shop, tmp_path):
    with pytest.raises(ValueError, match="`baseline` must be one of the models"):
        report_lib.compare({"x": np.ones(1)}, np.ones(1), np.ones(1), np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match=r"Model .id. must score each of the 2 rows\. Received: 1"):
        report_lib.compare({"id": np.ones(1)}, np.ones(2), np.ones(2), np.ones(2), np.ones(2))
    tf.saved_model.save(tf.Module(), str(tmp_path))
    with pytest.raises(ValueError, match="must have the signature `serve_examples`"):
        report_lib.score_examples(str(tmp_path), examples_lib.example_files(shop.eval))


def test_weights_count_rows_as_often(shop):
    files = examples_lib.example_files(shop.eval)
    rows = examples_lib.read_columns(files, shop.features, ("user_id", "item_id", "label"))
    generator = np.random.default_rng(0)
    weights = generator.integers(0, 3, len(rows["label"]))
    scores = {name: generator.random(len(weights)) for name in ("id", "multimodal")}
    counts = rows["item_id"] % 3  # of training; the items of 0 are new

    def compare(times, **own):
        columns = [np.repeat(values, times) for values in (rows["label"], rows["user_id"], rows["item_id"], counts)]
        return report_lib.compare({name: np.repeat(s, times) for name, s in scores.items()}, *columns, **own)

    repeated, found = compare(weights), compare(1, weights=weights.astype(float))
    assert found["rows"]["weight"] == repeated["rows"]["eval"] and "weight" not in repeated["rows"]
    assert found["models"] == {
        name: {key: value if key == "undefined" else pytest.approx(value, abs=1e-12) for key, value in metrics.items()}
        for name, metrics in repeated["models"].items()
    }
    assert found["gains"]["multimodal"]["gauc"] == pytest.approx(repeated["gains"]["multimodal"]["gauc"], abs=1e-12)
    hidden = missing.figures(rows["label"], scores["id"], rows["user_id"], weights)
    columns = [np.repeat(values, weights) for values in (rows["label"], scores["id"], rows["user_id"])]
    assert hidden == pytest.approx(missing.figures(*columns), abs=1e-12)
    judged = probe.judge(rows["label"], rows["user_id"], scores["id"], scores["multimodal"], weights)
    again = probe.judge(columns[0], columns[2], columns[1], np.repeat(scores["multimodal"], weights))
    for name in ("auc", "gauc", "auc_untrained", "gauc_gain"):
        assert judged[name] == pytest.approx(again[name], abs=1e-12)
    assert judged["gauc_gain_interval"] == pytest.approx(again["gauc_gain_interval"], abs=1e-12)


def test_rows_that_all_weigh_nothing_have_no_metric():
    label, score, user = np.array([0, 1, 0, 1]), np.array([0.1, 0.9, 0.5, 0.5]), np.array([1, 1, 2, 2])
    weights = np.array([1.0, 1.0, 0.0, 0.0])
    report = report_lib.compare({"id": score}, label, user, user, np.array([1, 1, 0, 0]), weights=weights)
    found = report["models"]["id"]
    assert (found["auc"], found["gauc_users"]) == (1.0, 1)
    assert [found[f"{name}_new_items"] for name in ("auc", "gauc", "logloss")] == [None] * 3
