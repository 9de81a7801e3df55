"""Tests of the report on targets without embeddings."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tfmm import preprocessing
from tfmm.evaluate import missing
from tfmm.evaluate import report as report_lib
from tfmm.index import snapshot
from tfmm.training import examples as examples_lib


class Hiding(tf.Module):
    """A served model to know by heart: logit = item_id mod 5 - 3, and one more per modality that is hidden."""

    def __init__(self, feature_set):
        super().__init__()
        self.spec = {"item_id": preprocessing.raw_spec(feature_set)["item_id"]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="examples")])
    def serve_examples(self, examples):
        logit = tf.cast(tf.io.parse_example(examples, self.spec)["item_id"] % 5, tf.float32) - 3.0
        return {"logit": logit, "score": tf.sigmoid(logit)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name=name) for name in ("examples", "hidden")])
    def serve_examples_hidden(self, examples, hidden):
        logit = self.serve_examples(examples)["logit"] + tf.cast(tf.size(hidden), tf.float32)
        return {"logit": logit, "score": tf.sigmoid(logit)}

    @tf.function(input_signature=[])
    def index_status(self):
        return {"modality": tf.constant(["image", "item_features", "text"])}


@pytest.fixture(scope="module")
def saved(shop, tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("hiding"), Hiding(shop.features)
    served = {"serve_examples": module.serve_examples}
    tf.saved_model.save(module, str(folder / "id"), signatures=served)
    served |= {"serve_examples_hidden": module.serve_examples_hidden, "index_status": module.index_status}
    tf.saved_model.save(module, str(folder / "multimodal"), signatures=served)
    return {name: folder / name for name in ("id", "multimodal")}


@pytest.fixture(scope="module")
def rows(shop):
    files = examples_lib.example_files(shop.eval)
    return examples_lib.read_columns(files, shop.features, ("user_id", "item_id", "label"))


def test_rows_are_scored_with_hidden_vectors_beside_the_twin(shop, saved, rows, tmp_path):
    found = report_lib.evaluate(saved, shop.train, shop.eval, tmp_path, shop.features)["hidden"]
    assert (found["rows"], found["clicks"]) == (1000, int(rows["label"].sum()))
    assert set(found["models"]["multimodal"]) == {"nothing", "image", "text", "all"}  # features are no vectors
    for name, hidden in (("nothing", 0), ("image", 1), ("text", 1), ("all", 2)):
        score = 1 / (1 + np.exp(3.0 - rows["item_id"] % 5 - hidden))
        figures = found["models"]["multimodal"][name]
        assert figures["mean_score"] == pytest.approx(score.mean(), rel=1e-6)
        assert figures["bias"] == pytest.approx(score.sum() / rows["label"].sum() - 1, rel=1e-5)
    assert set(found["models"]["id"]) == {"nothing"}
    assert found["left_out"] == {"id": "the model has no signature `serve_examples_hidden`"}


def test_rows_that_lack_vectors_are_reported_per_modality(shop, saved, rows, tmp_path):
    report = report_lib.evaluate(saved, shop.train, shop.eval, tmp_path, shop.features, snapshot_dir=shop.snapshot)
    held = snapshot.load_snapshot(shop.snapshot)
    lacks = {m: ~np.isin(rows["item_id"], held[m].ids) for m in ("image", "text")}
    lacks["all"] = lacks["image"] & lacks["text"]
    for name, chosen in lacks.items():
        found = report["missing"][name]
        assert (found["rows"], found["clicks"]) == (chosen.sum(), rows["label"][chosen].sum())
        assert found["rows"] > 0 and set(found["models"]) == {"id", "multimodal"}
        score = 1 / (1 + np.exp(3.0 - rows["item_id"][chosen] % 5))
        assert found["models"]["id"]["mean_score"] == pytest.approx(score.mean(), rel=1e-6)
    gated = report["differences"]["multimodal"]["id"]["without_vectors"]
    assert gated["rows"] == lacks["all"].sum() < (lacks["image"] | lacks["text"]).sum()
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_set_that_no_row_lacks_has_counts_alone(shop, rows):
    ids = snapshot.load_snapshot(shop.snapshot)["image"].ids
    here = np.isin(rows["item_id"], ids)
    lacks = missing.lacking(shop.snapshot, rows["item_id"][here])
    scores = {"id": np.full(here.sum(), 0.5)}
    found = missing.missing_report(lacks, scores, rows["label"][here], rows["user_id"][here])
    assert found["image"] == {"rows": 0, "clicks": 0, "models": {}} and found["text"]["rows"] > 0


def test_at_most_so_many_rows_are_drawn_and_always_the_same():
    assert missing.draw_rows(7).all()
    drawn = missing.draw_rows(1000, 100)
    assert drawn.sum() == 100 and (drawn == missing.draw_rows(1000, 100)).all() and drawn[:500].sum() not in (0, 100)


def test_margin_of_the_bias_is_that_of_resampled_users():
    generator = np.random.default_rng(0)
    user = generator.integers(0, 300, 6000)
    rate = generator.random(300) * 0.4
    label = (generator.random(6000) < rate[user]).astype(int)
    score = np.full(6000, 0.25)
    sums = np.stack([np.bincount(user, values, 300) for values in (score, label)])
    copies = [np.bincount(generator.integers(0, 300, 300), minlength=300) for _ in range(2000)]
    ratios = [(sums[0] @ c) / (sums[1] @ c) for c in copies]
    found = missing.figures(label, score, user)
    assert found["bias"] == pytest.approx(0.25 * 6000 / label.sum() - 1)
    assert found["bias_margin"] == pytest.approx(1.96 * np.std(ratios), rel=0.1)  # 2000 draws, and a linearized ratio


def test_figures_without_clicks_say_none():
    found = missing.figures(np.zeros(3, int), np.array([0.1, 0.2, 0.3]), np.array([1, 1, 2]))
    assert [found[name] for name in ("bias", "bias_margin", "auc", "gauc")] == [None] * 4
    assert found["mean_score"] == pytest.approx(0.2)
