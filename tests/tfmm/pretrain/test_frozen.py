"""Tests of encoders that are used as they are."""

import numpy as np
import pytest

from tfmm.config import SCLConfig
from tfmm.index import encode
from tfmm.pretrain import train
from tfmm.pretrain.encoders import make_encoder

FIXED = """
import tensorflow as tf


class Lengths(tf.Module):
    def __init__(self, config):
        super().__init__()
        self.weights = tf.Variable(WEIGHTS)

    def encode(self, contents):
        return tf.cast(tf.strings.length(contents), tf.float32)[:, None] * self.weights


def keras_model(config):
    import keras

    class Model(tf.Module):
        def __init__(self):
            super().__init__()
            self.dense = keras.layers.Dense(config.dim, kernel_initializer="ones")
            self.dense.build((None, 1))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def encode(self, contents):
            return {"vector": self.dense(tf.cast(tf.strings.length(contents), tf.float32)[:, None])}

        def version(self):
            return "mine-1"

    return Model()


def flat(config):
    class Flat:
        def encode(self, contents):
            return tf.cast(tf.strings.length(contents), tf.float32)

    return Flat()


def wide(config):
    class Wide:
        def encode(self, contents):
            return tf.ones([tf.size(contents), 1041])

    return Wide()


def nothing(config):
    return 3
"""


@pytest.fixture
def fixed(tmp_path, monkeypatch):
    """Returns a function that writes a module of encoders and returns the settings of one of them."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def settings(module, name, weights="[[1.0, 2.0, -1.0]]"):
        (tmp_path / f"{module}.py").write_text(FIXED.replace("WEIGHTS", weights))
        return SCLConfig(modality="length", encoder=f"{module}:{name}", frozen=True, dim=4)

    return settings


def test_it_is_exported_as_trained_ones_are(fixed, tmp_path):
    manifest = train.train(fixed("fixed_a", "Lengths"), tmp_path / "no pairs", tmp_path / "encoder")
    assert (manifest["modality"], manifest["dim"], manifest["frozen"]) == ("length", 3, True)
    encoder = encode.load_encoder(tmp_path / "encoder")
    np.testing.assert_array_equal(encoder([b"abc", b""]), [[3, 6, -3], [0, 0, 0]])
    items = [encode.Item(n, contents={"length": content}) for n, content in enumerate((b"abc", "abcd", b"", None), 1)]
    rows, rejected, missing = encode.embed(items, encoder)
    assert rows.ids.tolist() == [1, 2] and missing == 2 and not rejected


def test_its_version_follows_source_and_weights(fixed, tmp_path):
    cases = {"a": ("fixed_b", "[[1.0, 2.0]]"), "b": ("fixed_b", "[[1.0, 2.0]]"), "c": ("fixed_c", "[[1.0, 3.0]]")}
    versions = {
        name: train.train(fixed(module, "Lengths", weights), tmp_path, tmp_path / name)["encoder_version"]
        for name, (module, weights) in cases.items()
    }
    assert versions["a"] == versions["b"] != versions["c"]
    named = train.train(fixed("fixed_b", "keras_model"), tmp_path, tmp_path / "d")
    assert (named["encoder_version"], named["dim"]) == ("mine-1", 4)
    np.testing.assert_array_equal(encode.load_encoder(tmp_path / "d")([b"ab"]), [[2, 2, 2, 2]])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("flat", r"must give \[B, D\] values with D in 1\.\.1040\. Received: \[1\]"),
        ("wide", r"D in 1\.\.1040\. Received: \[1, 1041\]"),
        ("nothing", r"must return an object with `encode`(.*) Received: int"),
        ("absent", "must name something that can be imported from here"),
    ],
)
def test_what_cannot_be_used_is_refused(fixed, tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        train.train(fixed("fixed_d", name), tmp_path, tmp_path / "encoder")


def test_what_is_no_encoder_cannot_be_trained(fixed):
    with pytest.raises(ValueError, match=r"must return a tfmm\.pretrain\.encoders\.Encoder\. Received: Lengths"):
        make_encoder(fixed("fixed_e", "Lengths"))
