"""A ranker and an integration of a user's own, in one file of theirs; and what is refused before any work."""

import dataclasses
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import own_classes, preprocessing, presets, runs
from tfmm.ctr import head
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.features import FeatureSet

MODULE = '''
import keras
from keras import ops

from tfmm.ctr.integrations import Integration
from tfmm.ctr.ranker import Ranker


class Tower(Ranker):
    """Item embeddings of its own, and our embedding of users."""

    def __init__(self, feature_set, sizes, width=8, name=None):
        super().__init__(feature_set, sizes, name)
        self.items = keras.layers.Embedding(sizes["item_id"], width)
        self.hidden = keras.layers.Dense(16, activation="relu")
        self.output_layer = keras.layers.Dense(1)

    def call(self, impressions, knowledge, training=None):
        history, target = (impressions.inputs[f"{name}_index"] for name in ("behavior_item_ids", "item_id"))
        given = ops.cast(history != 0, "float32")[..., None]
        interest = ops.sum(self.items(history) * given, axis=1) / ops.maximum(ops.sum(given, axis=1), 1.0)
        target = self.items(target)
        x = impressions.join([target, interest, target * interest, impressions.column("user_id"), *knowledge])
        return self.output_layer(self.hidden(x))[:, 0]


class Forgetful(Ranker):
    def __init__(self, feature_set, sizes, name=None):
        super().__init__(feature_set, sizes, name)
        self.output_layer = keras.layers.Dense(1)

    def call(self, impressions, knowledge, training=None):
        return self.output_layer(impressions.column("user_id"))[:, 0]


class Leaky(Tower):
    def call(self, impressions, knowledge, training=None):
        logit = super().call(impressions, knowledge, training)
        return logit - ops.mean(logit) + ops.mean(impressions.column("item_id"))


class Wide(Tower):
    def call(self, impressions, knowledge, training=None):
        return super().call(impressions, knowledge, training)[:, None]


class Eager(Tower):
    def call(self, impressions, knowledge, training=None):
        if float(ops.mean(impressions.column("user_id"))) > 0:
            knowledge = []
        return super().call(impressions, knowledge, training)


class NoCall(Ranker):
    pass


class BestMatch(Integration):
    """The similarity of the most similar behavior, -1 where there is none to compare."""

    def __init__(self, scale=1.0, name=None):
        super().__init__(name=name)
        self.scale = scale

    def parts(self, context):
        known = ops.where(context.both_exist, context.similarity(), -1.0)
        return [self.scale * ops.max(known, axis=1, keepdims=True)]


class Stranger:
    pass
'''


@pytest.fixture
def team(tmp_path, monkeypatch):
    """The name of a module in the current folder, which holds `MODULE`."""
    (tmp_path / "my_team_of_tests.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "my_team_of_tests"
    sys.modules.pop("my_team_of_tests", None)


SIMTIER = config_lib.Method("simtier")


def run_of(model="", methods=(SIMTIER,), **settings):
    small = presets.small()
    ctr = dataclasses.replace(small.ctr, model=model, model_settings=settings)
    export = dataclasses.replace(small.export, jit_compile=False)
    return dataclasses.replace(small, ctr=ctr, methods=tuple(methods), export=export)


def test_right_run_is_verified(team):
    runs.verify(presets.small())
    runs.verify(run_of(f"{team}:Tower", [config_lib.Method("make"), config_lib.Method(f"{team}:BestMatch")], width=4))


def test_all_faults_of_methods_and_model_are_said_at_once(team):
    methods = [
        config_lib.Method("simtier", {"num_tiers": 0}),
        config_lib.Method("make", {"speed": 1}),
        config_lib.Method("simtiers"),
        config_lib.Method("no_such_module:Recency"),
        config_lib.Method(f"{team}:Stranger"),
        config_lib.Method(f"{team}:BestMatch", {"speed": 1}),
    ]
    with pytest.raises(ValueError, match="must work on its features") as raised:
        runs.verify(run_of(f"{team}:Tower", methods, depth=3))
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 7
    for line, words in zip(lines, (
        "simtier: `num_tiers`",
        "The method 'make' has the settings ['knowledge_scale', 'fine_tune']. Received: ['speed']",
        "A method must be one of simtier, make, vector",
        "The method 'no_such_module:Recency' must name an importable class",
        f"The method '{team}:Stranger' must be a subclass of tfmm.ctr.integrations.Integration",
        f"The method '{team}:BestMatch' has the settings ['scale']. Received: ['speed']",
        f"The model '{team}:Tower' has the settings ['width']. Received: ['depth']",
    )):  # fmt: skip
        assert line.startswith(f"- {words}"), line


@pytest.mark.parametrize(("name", "words"), [
    ("Missing", "must name an importable class"),
    ("BestMatch", r"must be a subclass of tfmm\.ctr\.ranker\.Ranker"),
    ("Forgetful", "must return one logit per row"),
    ("Wide", "must return one logit per row"),
    ("Leaky", "must not depend on the others"),
    ("Eager", r"Eager: TypeError: float.*\(my_team_of_tests\.py, line \d+\)"),
    ("NoCall", "NoCall must have a method `call`"),
])  # fmt: skip
def test_model_that_does_not_do_is_refused(team, name, words):
    with pytest.raises(ValueError, match=words):
        runs.verify(run_of(f"{team}:{name}"))


def test_settings_of_no_model_and_no_method_at_all_are_refused():
    with pytest.raises(ValueError, match=r"(?s)`methods` must name at least one.*`ctr\.model_settings` are of"):
        runs.verify(run_of(methods=(), width=3))
    with pytest.raises(ValueError, match=r"'make' must be given its settings by name\. Received: 3"):
        runs.verify(run_of(methods=[config_lib.Method("make", 3)]))


def test_verification_of_the_default_loads_no_library(root):
    code = "import sys\nfrom tfmm import presets, runs\nruns.verify(presets.small())\nprint('keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=300)
    assert done.stdout == "False\n", done.stderr


def build(shop, reference, dims, **changes):
    keras.utils.set_random_seed(0)
    sizes = preprocessing.load(shop.features, shop.vocabularies).sizes
    config = config_lib.CTRConfig(model=reference, **changes)
    model = model_lib.CTRModel(config, config_lib.MAKEConfig(), shop.features, sizes, dims, [SIMTIER])
    model.build()
    return model


def test_tables_of_ours_that_the_own_model_does_not_ask_for_have_no_weights(team, shop):
    model = build(shop, f"{team}:Tower", {})
    assert [name for name, layer in model.embeddings.items() if layer.built] == ["user_id"]
    assert not any(layer.built for layer in model.attention.values())
    assert model.id_head is None
    both = build(shop, f"{team}:Tower", {"image": 16})
    assert type(both.head) is type(both.id_head) and both.head is not both.id_head
    assert build(shop, f"{team}:Tower", {"image": 16}, id_head=False).id_head is None


def test_embeddings_of_ours_learn_from_the_own_models_twin_alone(team, shop):
    model = build(shop, f"{team}:Tower", {"image": 16})
    inputs = model_lib.padding_inputs(shop.features, {"image": 16})
    inputs |= {"user_id_index": tf.constant([3]), "image_target_mask": tf.constant([True])}
    with tf.GradientTape(persistent=True) as tape:
        losses = model.losses(inputs, tf.constant([1]), tf.constant([True]))
    users, own = model.embeddings["user_id"].embeddings.value, model.head.items.embeddings.value
    assert np.abs(tf.convert_to_tensor(tape.gradient(losses["loss_id"], users))).max() > 0
    assert not np.abs(tf.convert_to_tensor(tape.gradient(losses["loss"], users))).max()  # zeros, by the choice of head
    assert np.abs(tf.convert_to_tensor(tape.gradient(losses["loss"], own))).max() > 0
    assert tape.gradient(losses["loss_id"], own) is None


def test_changed_source_is_another_source(team, tmp_path):
    references = [f"{team}:Tower", "simtier"]
    before = own_classes.source_digest(references)
    assert before == own_classes.source_digest(references) != own_classes.source_digest(["simtier"])
    (tmp_path / "my_layers_of_tests.py").write_text("one = 1\n")
    (tmp_path / f"{team}.py").write_text("import my_layers_of_tests\n" + MODULE)
    beside = own_classes.source_digest(references)
    (tmp_path / "my_layers_of_tests.py").write_text("one = 2\n")
    assert len({before, beside, own_classes.source_digest(references)}) == 3


def test_package_of_ones_own_counts_with_what_it_imports_relatively(tmp_path, monkeypatch):
    package = tmp_path / "my_package_of_tests"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "models.py").write_text("from . import blocks\nfrom .more import thing\n")
    (package / "other.py").write_text("")
    found = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("blocks", "more", "other"):
        for text in ("a = 1", "a = 2"):
            (package / f"{name}.py").write_text(text)
            found.append(own_classes.source_digest(["my_package_of_tests.models:Ranker"]))
    assert [found[0] != found[1], found[2] != found[3], found[4] == found[5]] == [True] * 3


def test_checkpoint_of_another_source_is_not_gone_on_from(team, shop, tmp_path):
    def train():
        return train_lib.train(
            config_lib.CTRConfig(batch_size=1024, model=f"{team}:Tower"), shop.train, shop.eval, shop.vocabularies,
            tmp_path / "model", shop.features, checkpoint_dir=tmp_path / "checkpoints",
            progress=lambda *_, note="", **__: steps.append(1) if not note else None,
        )  # fmt: skip

    steps = []
    first = train()
    taken = len(steps)
    assert train()["metrics"] == first["metrics"] and len(steps) == taken  # all was done
    (tmp_path / f"{team}.py").write_text(MODULE.replace('activation="relu"', 'activation="tanh"'))
    del sys.modules[team]
    assert train()["metrics"] != first["metrics"] and len(steps) > taken


def test_feature_set_of_a_run_reaches_the_own_model(team):
    model = head.build_ranker(config_lib.CTRConfig(model=f"{team}:Tower"), FeatureSet(), {"item_id": 5}, "head")
    assert (model.feature_set, model.sizes, model.name) == (FeatureSet(), {"item_id": 5}, "head")
