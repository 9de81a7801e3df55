"""Methods of a user's own that share a class's name, or derive from one of ours."""

import dataclasses
import inspect
import sys

import keras
import numpy as np
import pytest

from tfmm import config as config_lib
from tfmm import preprocessing, presets, runs
from tfmm.config import Method
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.make import model as make_model
from tfmm.make import train as make_train

FIRST = '''
from keras import ops

from tfmm.ctr import integrations


class Best(integrations.Integration):
    def parts(self, context):
        return [ops.max(ops.where(context.both_exist, context.similarity(), -1.0), axis=1, keepdims=True)]


class best(Best):
    def parts(self, context):
        return [-part for part in super().parts(context)]


class SimTier(Best):
    """No histogram, whatever it is called."""


class Louder(integrations.MAKE):
    """Our MAKE, with a setting of its own."""

    def __init__(self, volume=2.0, **ours):
        super().__init__(**ours)
        self.volume = volume

    def parts(self, context):
        return [self.volume * part for part in super().parts(context)]


class Few(integrations.SimTier):
    pass


class Nameless(integrations.Integration):
    def __init__(self, scale=1.0):
        super().__init__()


class Makeless(integrations.MAKE):
    def __init__(self, name=None):
        super().__init__(None, name=name)
'''
SECOND = '''
from keras import ops

from tfmm.ctr.integrations import Integration


class Best(Integration):
    def parts(self, context):
        return [ops.sum(ops.where(context.both_exist, context.similarity(), 0.0), axis=1, keepdims=True)]
'''
SMALL = config_lib.MAKEConfig(epochs=1, batch_size=512, attention_units=(8,), units=(16, 8, 4))


@pytest.fixture
def team(tmp_path, monkeypatch):
    """Two modules of methods in the current folder; returns the first one's name."""
    for name, text in (("methods_one", FIRST), ("methods_two", SECOND)):
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "methods_one"
    for name in ("methods_one", "methods_two"):
        sys.modules.pop(name, None)


def build(shop, methods, make=SMALL, features=None):
    keras.utils.set_random_seed(0)
    features = features or shop.features
    sizes = preprocessing.load(shop.features, shop.vocabularies).sizes
    model = model_lib.CTRModel(config_lib.CTRConfig(units=(8,)), make, features, sizes, {"image": 16}, methods)
    model.build()
    return model


def test_methods_with_one_class_name_are_two_layers(shop, team):
    names = [f"{team}:Best", "methods_two:Best", f"{team}:best", f"{team}:SimTier", "simtier"]
    model = build(shop, [Method(name) for name in names])
    layers = model.integrations_of("image", shop.features.sequences[0])
    assert [type(layer) for layer in layers] == [integrations.find(name) for name in names]
    assert len({id(layer) for layer in layers}) == len({layer.name for layer in layers}) == len(names)
    runs.verify(dataclasses.replace(presets.small(), methods=tuple(Method(name) for name in names)))


def test_subclass_of_make_has_the_settings_of_both_and_the_run_s_make(shop, team):
    model = build(shop, [Method(f"{team}:Louder", {"volume": 3.0, "knowledge_scale": 0.5})])
    (layer,) = model.integrations_of("image", shop.features.sequences[0])
    assert (layer.volume, layer.knowledge_scale, layer.block.units) == (3.0, 0.5, (16, 8, 4))
    with pytest.raises(ValueError, match=r"has the settings \['volume', 'knowledge_scale', 'fine_tune'\].*loudness"):
        build(shop, [Method(f"{team}:Louder", {"loudness": 3.0})])


@pytest.mark.parametrize("value", ["false", 1, None])
def test_fine_tune_is_true_or_false_and_no_word(shop, value):
    with pytest.raises(ValueError, match=r"`fine_tune` must be true or false.*Received: "):
        build(shop, [Method("make", {"fine_tune": value})])


def test_settings_of_make_that_came_later_stand_last():
    assert [*inspect.signature(integrations.MAKE).parameters] == ["make", "knowledge_scale", "name", "fine_tune"]


@pytest.mark.parametrize(("name", "lacking"), [("Nameless", "name"), ("Makeless", "make")])
def test_class_that_does_not_take_what_it_is_given_is_told_so(shop, team, name, lacking):
    with pytest.raises(ValueError, match=f"{name}' must take {lacking} in its `__init__`, and hand them to its base"):
        build(shop, [Method(f"{team}:{name}")])


@pytest.fixture(scope="module")
def pretrained(shop, tmp_path_factory):
    """The folder of MAKE blocks."""
    folder = tmp_path_factory.mktemp("make")
    make_train.train(SMALL, shop.train, shop.eval, shop.snapshot, folder, shop.features)
    return folder


@pytest.mark.parametrize("beside", [(), (Method("make"),)])
def test_subclass_of_make_takes_what_was_pretrained_and_keeps_it(shop, team, pretrained, tmp_path, beside):
    config = config_lib.CTRConfig(batch_size=1024, units=(8,), attention_units=(8,))
    train_lib.train(
        config, shop.train, shop.eval, shop.vocabularies, tmp_path / "model", shop.features, modalities=("image",),
        methods=(*beside, Method(f"{team}:Louder")), snapshot_dir=shop.snapshot, make_dir=pretrained,
    )  # fmt: skip
    blocks = make_model.load_model(pretrained).blocks
    found = model_lib.load_model(tmp_path / "model").make_blocks()
    assert [name for name, _ in found] == ["image_behavior"] * (1 + len(beside))
    for name, block in found:
        for ours, theirs in zip(block.get_weights(), blocks[name].get_weights(), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_sequence_that_make_or_simtier_does_not_read_is_not_read_by_their_subclasses(shop, team):
    unread = dataclasses.replace(shop.features.sequences[0], make=False, simtier=False)
    features = dataclasses.replace(shop.features, sequences=(unread,))
    methods = [Method(f"{team}:{name}") for name in ("Louder", "Few", "Best")]
    assert integrations.of_sequence(methods, unread) == (methods[2],)
    assert len(build(shop, methods, features=features).integrations) == 1
    assert integrations.make_sequences(methods, features) == ()
    assert integrations.make_sequences(methods, shop.features) == ("behavior",)
