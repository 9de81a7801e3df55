"""What the trial of a user's own model and methods finds before any work; and an own model on a sampled log."""

import dataclasses
import sys

import numpy as np
import pytest

from tfmm import config as config_lib
from tfmm import preprocessing, presets, runs
from tfmm.config import Method
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.features import Label
from tfmm.training import examples as examples_lib
from tfmm.training import labels as labels_lib
from tfmm.training import sources

MODULE = '''
import keras
from keras import ops

from tfmm.ctr.integrations import Integration
from tfmm.ctr.ranker import Ranker


class Wide(Ranker):
    """No bias to set: where it starts is left to training."""

    def __init__(self, feature_set, sizes, name=None):
        super().__init__(feature_set, sizes, name)
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.output_layer = keras.layers.Dense(1)

    def call(self, impressions, knowledge, training=None):
        return self.output_layer(self.hidden(impressions.join([impressions.joined(), *knowledge])))[:, 0]


class Greedy(Wide):
    """Right with vectors, and no model of ids alone."""

    def call(self, impressions, knowledge, training=None):
        return super().call(impressions, [ops.concatenate([impressions.per_row(k) for k in knowledge], -1)], training)


class Shy(Wide):
    def start_at(self, logit):
        self.no_such_layer.bias.assign([logit])


class Learner(Integration):
    """Learns nothing yet: `fit_vectors` fails."""

    def fit_vectors(self, vectors):
        self.means = vectors.means(axis=0)

    def parts(self, context):
        return [ops.max(context.similarity(), axis=1, keepdims=True)]


class Crowded(Integration):
    """Right where there is one modality of 8 values."""

    def parts(self, context):
        rows = ops.cast(context.target_vectors.rows, "float32")
        return [ops.matmul(rows, ops.ones((8, 1)))]


class Forgetful(Integration):
    """Says that it gives zeros without the target's vector, and does not."""

    is_zero_without_target = True

    def parts(self, context):
        return [1.0 + 0.0 * ops.cast(context.target_vectors.mask, "float32")[:, None]]
'''


@pytest.fixture
def team(tmp_path, monkeypatch):
    """The name of a module in the current folder."""
    (tmp_path / "rehearsed.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "rehearsed"
    sys.modules.pop("rehearsed", None)


def run_of(model="", methods=("simtier",), label=None, **ctr):
    small = presets.small()
    return dataclasses.replace(
        small,
        ctr=dataclasses.replace(small.ctr, model=model, **ctr),
        methods=tuple(Method(name) for name in methods),
        export=dataclasses.replace(small.export, jit_compile=False),
        label=label or Label(),
    )


@pytest.mark.parametrize("id_head", [True, False])
def test_model_must_score_ids_alone(team, id_head):
    runs.verify(run_of(f"{team}:Wide", id_head=id_head))
    with pytest.raises(ValueError, match=r"rehearsed:Greedy.*\(rehearsed\.py, line \d+\)"):
        runs.verify(run_of(f"{team}:Greedy", id_head=id_head))


def test_method_must_learn_from_vectors_where_it_says_that_it_does(team):
    with pytest.raises(ValueError, match=r"Learner: AttributeError: .*'means' \(rehearsed\.py, line \d+\)"):
        runs.verify(run_of(methods=("simtier", f"{team}:Learner")))


def test_method_must_take_modalities_of_any_dim(team):
    with pytest.raises(ValueError, match=r"Crowded: .*\(rehearsed\.py, line \d+\)"):
        runs.verify(run_of(methods=("simtier", f"{team}:Crowded")))


def test_what_says_that_it_is_zero_without_the_target_must_be(team):
    with pytest.raises(ValueError, match="`is_zero_without_target`"):
        runs.verify(run_of(methods=("simtier", f"{team}:Forgetful")))


def test_start_is_tried_where_a_log_is_sampled(team):
    runs.verify(run_of(f"{team}:Shy"))
    with pytest.raises(ValueError, match=r"Shy: AttributeError: .*no_such_layer.*\(rehearsed\.py, line \d+\)"):
        runs.verify(run_of(f"{team}:Shy", label=Label(negative_rate=0.1)))


def test_settings_of_our_head_beside_an_own_model_are_refused(team):
    with pytest.raises(ValueError, match=rf"`ctr\.units` are of our model, and '{team}:Wide' stands in its place"):
        runs.verify(run_of(f"{team}:Wide", units=(32,)))
    runs.verify(run_of(f"{team}:Wide"))


def test_own_model_learns_the_whole_log_from_a_share_of_its_negatives(team, shop, tmp_path):
    """Declared rate 0.2: scores come out at the click rate of the log that the rows were drawn from."""
    features = dataclasses.replace(shop.features, label=Label(negative_rate=0.2))
    config = config_lib.CTRConfig(
        model=f"{team}:Wide", epochs=12, batch_size=128, embedding_learning_rate=1e-3, learning_rate=5e-3
    )
    manifest = train_lib.train(config, shop.train, shop.train, shop.vocabularies, tmp_path, features)
    model = model_lib.load_model(tmp_path)
    preprocessor = preprocessing.load(features, shop.vocabularies)
    rows = sources.open_source(examples_lib.example_files(shop.train), features, {}, preprocessor)
    columns = {"label": rows.column("label")}
    rate = labels_lib.click_rate(columns, features.label)
    shown = float(columns["label"].mean())
    scores = train_lib.predict(model, {}, rows)
    weights = labels_lib.metric_weights(columns, features.label)
    assert np.average(scores, weights=weights) == pytest.approx(rate, rel=0.05)  # what 288 steps leave
    assert rate < 0.3 * shown and manifest["metrics"]["auc"] > 0.6
