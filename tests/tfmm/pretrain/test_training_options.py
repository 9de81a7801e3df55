"""Clipping and accumulation of an encoder's gradients."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.scl import SCL, Batch
from tfmm.pretrain.train import fit

CONFIG = SCLConfig(
    modality="text", text_buckets=64, dim=8, memory_bank_size=12, batch_size=4, momentum=0.5, weight_decay=0.0
)


def make_scl(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return SCL(config, make_encoder(config), total_steps=50)


def make_batch(scl, words="red blue green white"):
    def features(texts):
        tokens, weights = scl.encoder.prepare(tf.constant(texts))[0]
        return tuple(tf.pad(column, [[0, 0], [0, 30 - column.shape[1]]]) for column in (tokens, weights))

    words = words.split()
    ids = tf.constant(range(1, 5), tf.int64)
    return Batch(features([f"{w} one" for w in words]), features(words), (), tf.constant([False] * 4), ids)


def test_weights_and_momentum_encoder_move_once_an_update():
    scl = make_scl(accumulate=2)
    step = tf.function(scl.train_step)
    weight, key = scl.encoder.model.trainable_variables[0], scl.learner.key_model.trainable_variables[0]
    before = weight.numpy().copy()
    step(make_batch(scl))
    np.testing.assert_array_equal(weight.numpy(), before)
    np.testing.assert_array_equal(key.numpy(), before)
    step(make_batch(scl, "kiwi plum fig date"))
    assert np.abs(weight.numpy() - before).max() > 0
    np.testing.assert_allclose(key.numpy(), 0.5 * before + 0.5 * weight.numpy(), rtol=1e-6)
    assert int(tf.reduce_sum(tf.cast(scl.learner.bank.filled, tf.int32))) == 8  # the keys of both batches


def test_two_equal_batches_are_one_update():
    """Without a bank the mean gradient of a batch and itself is the batch's."""
    once, twice = (make_scl(memory_bank_size=0, warm_up_steps=0, clip_norm=1e9, accumulate=n) for n in (1, 2))
    once.train_step(make_batch(once))
    for _ in range(2):
        twice.train_step(make_batch(twice))
    for ours, theirs in zip(once.trainable, twice.trainable, strict=True):
        np.testing.assert_allclose(ours.numpy(), theirs.numpy(), atol=1e-5)  # the rate fell by a batch


def test_the_gradient_is_no_longer_than_the_norm():
    """AdamW's first moment is a tenth of the first gradient."""
    free, clipped = make_scl(memory_bank_size=0), make_scl(memory_bank_size=0, clip_norm=1e-3)
    norms = []
    for scl in (free, clipped):
        scl.train_step(make_batch(scl))
        moments = [v.numpy() for v in scl.optimizer.variables if "momentum" in v.path]
        norms.append(10 * np.sqrt(sum((m**2).sum() for m in moments)))
    assert norms[0] > 1e-2 and norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_an_accumulated_training_goes_on_where_it_was_stopped(text_pairs, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=2, batch_size=8, accumulate=2, clip_norm=1.0)
    whole = fit(config, text_pairs)
    again = fit(config, text_pairs, checkpoint_dir=tmp_path)
    assert again.encoder.version() == whole.encoder.version()
    assert fit(config, text_pairs, checkpoint_dir=tmp_path).encoder.version() == whole.encoder.version()


@pytest.mark.parametrize(
    "change, message",
    [({"clip_norm": -1.0}, "`clip_norm` must not be negative"), ({"accumulate": 0}, "`accumulate` must be at least 1")],
)
def test_settings_that_cannot_be_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **change)
