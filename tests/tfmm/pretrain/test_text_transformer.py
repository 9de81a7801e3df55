"""The Transformer of texts: order counts, padding does not, and no text breaks it."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfmm import saved_model
from tfmm.config import SCLConfig
from tfmm.modalities import Modality
from tfmm.pretrain import texts
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.pair_table import ContentTable
from tfmm.pretrain.train import fit

CONFIG = SCLConfig(modality="title", encoder="text_transformer", dim=16, text_buckets=512, text_words=6)


def encode(encoder, contents):
    return encoder.encode(tf.constant(encoder.admit(contents)))["vector"].numpy()


def shaken(config=CONFIG):
    """An encoder whose blocks are no longer zero, as after training."""
    encoder, rng = make_encoder(config), np.random.default_rng(0)
    encoder.model.set_weights(
        [w + rng.normal(0, 0.2, w.shape).astype("float32") for w in encoder.model.get_weights()]
    )
    return encoder


def test_it_begins_as_a_bag_of_words():
    encoder = make_encoder(CONFIG)
    np.testing.assert_allclose(*encode(encoder, ["red mug blue", "blue red mug"]), atol=1e-6)


def test_order_of_words_counts_once_trained():
    one, other, spaced = encode(shaken(), ["red mug blue", "blue red mug", "  red -- mug, BLUE!"])
    assert np.abs(one - other).max() > 1e-3
    np.testing.assert_allclose(one, spaced, atol=1e-6)


def test_vectors_do_not_depend_on_the_padding_of_the_batch():
    encoder = shaken()
    alone = encode(encoder, ["red mug"])[0]
    np.testing.assert_allclose(encode(encoder, ["red mug", "a b c d e f g h i"])[0], alone, atol=1e-6)
    assert np.abs(encode(encoder, ["a b c d e f"]) - encode(encoder, ["a b c d e f g h"])).max() < 1e-6  # the first six


@pytest.mark.parametrize("encoder", ["text_transformer", "text"])
def test_no_text_gives_nan(encoder):
    encoder = shaken(dataclasses.replace(CONFIG, encoder=encoder))
    contents = ["", "   ", "!?", "word " * 20_000, "x" * 100_000, b"\xff\xfe", "椅子 🍎", "ok"]
    vectors = encode(encoder, contents)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), [0, 0, 0, 1, 1, 0, 1, 1], atol=1e-5)


def test_words_are_hashed_as_those_of_the_bag():
    bag, weights = texts.hash_texts(tf.constant(["lamp"]), 4096)
    tokens, of_words = texts.hash_words(tf.constant(["lamp"]), 4096, 3)
    kept = tokens[0, 0][tokens[0, 0] > 0]
    np.testing.assert_array_equal(kept, bag[0])
    np.testing.assert_allclose(of_words[0, 0][: len(kept)], weights[0])


def test_it_trains_and_is_served_as_it_was_trained(text_pairs, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2, batch_size=8, augment=True)
    fitted = fit(config, text_pairs)
    assert all(np.isfinite(entry["loss"]) for entry in fitted.history)
    fitted.encoder.export(tmp_path / "encoder")
    contents = ["red mug 3", "", "soft bag"]
    with saved_model.load_session(tmp_path / "encoder") as loaded:
        served = loaded("serving_default", {"content": fitted.encoder.admit(contents)})["vector"]
    np.testing.assert_allclose(served, encode(fitted.encoder, contents), atol=1e-5)


def test_texts_prepared_batch_by_batch_are_the_same():
    encoder = shaken()
    contents = [b"red mug", b"blue", b"soft bag"]
    kept, anew = ContentTable(encoder, contents), ContentTable(encoder, contents, max_prepared_bytes=0)
    rows = tf.constant([2, 0], tf.int64)
    for ours, theirs in zip(kept.fetch(rows), anew.fetch(rows), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_declaration():
    assert Modality("title", "text_transformer").kind == "string"
    heads = Modality("title", "text_transformer", settings={"text_heads": 5})
    assert any("`text_heads` must divide `dim`, 64. Received: 5" in fault for fault in heads.faults())
    bag = Modality("title", "text", settings={"text_words": 5})
    assert any("settings` of the text encoder hold no text_words" in fault for fault in bag.faults())


def test_version_is_of_weights_and_what_is_read():
    version = make_encoder(CONFIG).version()
    assert version == make_encoder(dataclasses.replace(CONFIG, epochs=99, temperature=0.5)).version()
    assert version != make_encoder(dataclasses.replace(CONFIG, text_heads=2)).version()
