"""Encoders: what is exported is what was trained, on raw bytes, through the C++ loader."""

import dataclasses
import sys
import types

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import saved_model
from tfmm.config import SCLConfig
from tfmm.pretrain.encoders import Encoder, make_encoder
from tfmm.pretrain.pair_table import ContentTable

IMAGE = SCLConfig(modality="image", image_size=16, width=4, dim=8)
TEXT = SCLConfig(modality="text", text_buckets=64, dim=8)


def some_images():
    rng = np.random.default_rng(0)
    return [tf.io.encode_png(tf.constant(rng.integers(0, 255, (16, 16, 3)), tf.uint8)).numpy() for _ in range(3)]


CONTENTS = {"image": some_images(), "text": [b"red mug", "lámpara 椅子 🍎".encode(), b"blue bag"]}


@pytest.fixture(scope="module", params=[IMAGE, TEXT], ids=["image", "text"])
def exported(request, tmp_path_factory):
    encoder = make_encoder(request.param)
    path = tmp_path_factory.mktemp("encoder") / "1"
    encoder.export(path)
    return encoder, path


def test_saved_model_equals_the_keras_model(exported):
    encoder, path = exported
    contents = CONTENTS[encoder.config.modality]
    features = encoder.finish(encoder.prepare(tf.constant(contents))[0])
    expected = encoder.model(list(features), training=False).numpy()
    with saved_model.load_session(path) as loaded:
        assert list(loaded.signatures["serving_default"].inputs) == ["content"]
        vector = loaded("serving_default", {"content": contents})["vector"]
    assert vector.shape == (3, 8) and vector.dtype == np.float32
    np.testing.assert_allclose(vector, expected, atol=1e-6)  # another graph may fuse differently
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), 1.0, atol=1e-6)


def test_unusable_content_gives_a_zero_vector_and_no_crash(exported):
    encoder, path = exported
    good = CONTENTS[encoder.config.modality][0]
    bad = {"image": [b"", b"\x89PNG\r\n not really", good[:40]], "text": [b"", b" ?! ", b"\xff\xfe"]}
    with saved_model.load_session(path) as loaded:
        vector = loaded("serving_default", {"content": [*bad[encoder.config.modality], good]})["vector"]
        empty = loaded("serving_default", {"content": np.array([], object)})["vector"]
    assert not vector[:3].any()
    np.testing.assert_allclose(np.linalg.norm(vector[3]), 1.0, atol=1e-6)
    assert empty.shape == (0, 8)


def test_a_row_does_not_depend_on_its_batch(exported):
    encoder, _ = exported
    contents = tf.constant(CONTENTS[encoder.config.modality])
    together = encoder.encode(contents)["vector"]
    alone = tf.concat([encoder.encode(contents[i : i + 1])["vector"] for i in range(3)], axis=0)
    np.testing.assert_allclose(together, alone, atol=1e-6)  # sums in another order


def test_seed_decides_the_weights(exported):
    encoder, _ = exported
    again = make_encoder(encoder.config)
    other = make_encoder(type(encoder.config)(**{**encoder.config.__dict__, "seed": 1}))
    assert encoder.version() == again.version() != other.version()


def test_version_follows_every_weight():
    encoder = make_encoder(IMAGE)
    before = encoder.version()
    weights = encoder.model.get_weights()
    weights[-1] = weights[-1] + np.float32(1e-7)
    encoder.model.set_weights(weights)
    assert encoder.version() != before and len(before) == 16


def test_keras_model_round_trips(exported, tmp_path):
    encoder, _ = exported
    encoder.model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    features = list(encoder.finish(encoder.prepare(tf.constant(CONTENTS[encoder.config.modality]))[0]))
    np.testing.assert_allclose(loaded(features), encoder.model(features), atol=1e-6)


def test_text_encoder_reads_unicode():
    encoder = make_encoder(SCLConfig(modality="text", text_buckets=4096, dim=32))
    vectors = encoder.encode(tf.constant(["LÁMPARA roja", "lámpara roja", "青い 椅子", "椅子"]))["vector"].numpy()
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.999  # case does not matter
    assert similarity[2, 3] > similarity[0, 3] + 0.3  # a shared word does


class Sounds(Encoder):
    """Reads 16 floats."""

    def build_model(self):
        features = keras.Input((16,))
        initializer = keras.initializers.GlorotUniform(self.config.seed)
        vector = keras.layers.Dense(self.config.dim, kernel_initializer=initializer)(features)
        return keras.Model([features], keras.layers.UnitNormalization()(vector))

    def prepare(self, contents):
        return (tf.io.decode_raw(contents, tf.float32, fixed_length=64),), tf.strings.length(contents) == 64


@pytest.fixture
def own(monkeypatch):
    """Settings of an encoder of a user's own, in a module of theirs."""
    module = types.ModuleType("sounds_team")
    module.Sounds, module.__file__ = Sounds, __file__
    monkeypatch.setitem(sys.modules, "sounds_team", module)
    return SCLConfig(modality="sound", encoder="sounds_team:Sounds", dim=6)


def test_an_own_encoder_is_found_by_its_name(own):
    encoder = make_encoder(own)
    assert isinstance(encoder, Sounds) and encoder.version() == make_encoder(own).version()
    assert encoder.version() != make_encoder(dataclasses.replace(own, seed=1)).version()
    vectors = encoder.encode(tf.constant([np.ones(16, np.float32).tobytes(), b"short"]))["vector"].numpy()
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [1.0, 0.0], atol=1e-6)


def test_features_of_fixed_width_are_the_same_prepared_at_once_or_by_batch(own):
    encoder, sounds = make_encoder(own), np.random.default_rng(0).normal(size=(5, 16)).astype(np.float32)
    contents = [sound.tobytes() for sound in sounds]
    for limit in (0, 1 << 20):
        (fetched,) = ContentTable(encoder, contents, limit).fetch(tf.constant([3, 0]))
        np.testing.assert_array_equal(fetched, sounds[[3, 0]])
