"""The learner over a Keras model of anybody's: the pieces of a step, both memory banks, and what it refuses."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.metrics import top_n_accuracy
from tfmm.pretrain.contrastive import ContrastiveLearner
from tfmm.pretrain.plan import make_plan
from tfmm.scl_config import PAPER_BANK


def make_model(dim=6):
    inputs = keras.Input((4,))
    hidden = keras.layers.Dense(16, "relu", kernel_initializer=keras.initializers.HeNormal(0))(inputs)
    return keras.Model(inputs, keras.layers.Dense(dim, kernel_initializer=keras.initializers.HeNormal(1))(hidden))


def rows(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4)).astype(np.float32)


def train(learner, steps=60, negative=()):
    """A user's own loop: what is alike is one row seen through noise."""
    optimizer = keras.optimizers.Adam(1e-2)
    optimizer.build(learner.trainable_variables)
    items, rng, seen = rows(64), np.random.default_rng(1), []
    for _ in range(steps):
        chosen = rng.permutation(len(items))[:16]
        query = tf.constant(items[chosen] + rng.normal(0, 0.1, (16, 4)).astype(np.float32))
        positive, ids = tf.constant(items[chosen]), tf.constant(chosen + 1, tf.int64)
        keys = learner.encode_keys((positive,))
        with tf.GradientTape() as tape:
            info_nce, triplet = learner.losses((query,), (positive,), ids, keys, negative=negative)
            loss = info_nce + triplet
        optimizer.apply(tape.gradient(loss, [v.value for v in learner.trainable_variables]))
        learner.advance(keys, ids)
        seen.append(float(loss))
    return seen


@pytest.mark.parametrize("settings", [{}, {"memory_bank_size": 40}, {**PAPER_BANK, "memory_bank_size": 40}])
def test_a_users_own_loop_learns(settings):
    learner = ContrastiveLearner(make_model(), **settings)
    items = rows(64)
    noisy = items + np.random.default_rng(9).normal(0, 0.4, items.shape).astype(np.float32)
    before = top_n_accuracy(learner.model(noisy).numpy(), learner.model(items).numpy())[1]
    train(learner)
    assert top_n_accuracy(learner.model(noisy).numpy(), learner.model(items).numpy())[1] > before
    assert 0.01 <= float(learner.temperature) <= 1.0


def test_vectors_of_any_length_give_the_losses_of_unit_vectors():
    model = make_model()
    unit = keras.Model(model.input, keras.layers.UnitNormalization()(model.output))
    batch = (tf.constant(rows(5, 1)),), (tf.constant(rows(5, 2)),), tf.range(1, 6, dtype=tf.int64)
    found = ContrastiveLearner(model).losses(*batch)[0]
    np.testing.assert_allclose(found, ContrastiveLearner(unit, normalize=False).losses(*batch)[0], rtol=1e-5)


def test_the_papers_bank_is_the_momentum_encoders_alone():
    learner = ContrastiveLearner.as_in_paper(make_model())
    assert (learner.bank.size, learner.momentum, learner.in_batch_negatives) == (196_800, 0.999, False)
    weight, key = learner.model.trainable_variables[0], learner.key_model.trainable_variables[0]
    train(learner, steps=1)
    assert np.abs(weight.numpy() - key.numpy()).max() > 0
    assert int(tf.reduce_sum(tf.cast(learner.bank.filled, tf.int32))) == 16


def test_hard_negatives_all_count_where_nothing_says_otherwise():
    learner = ContrastiveLearner(make_model())
    batch = (tf.constant(rows(4, 1)),), (tf.constant(rows(4, 2)),), tf.range(1, 5, dtype=tf.int64)
    negative = (tf.constant(rows(4, 3)),)
    all_count = learner.losses(*batch, negative=negative)
    said = learner.losses(*batch, negative=negative, has_negative=tf.constant([True] * 4))
    assert float(all_count[1]) == float(said[1]) > 0.0


def test_a_bank_smaller_than_a_batch_keeps_the_last_keys():
    learner = ContrastiveLearner(make_model(), memory_bank_size=5, in_batch_negatives=False)
    assert np.isfinite(train(learner, steps=3)).all()
    assert bool(tf.reduce_all(learner.bank.filled))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"in_batch_negatives": False}, r"`memory_bank_size` must be at least 1 where .* Received: 0"),
        ({"memory_bank_size": -1}, r"`memory_bank_size` must not be negative\. Received: -1"),
        ({"momentum": 1.0}, r"`momentum` must lie in \[0, 1\)\. Received: 1\.0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ContrastiveLearner(make_model(), **settings)


def test_a_model_that_gives_no_vectors_is_refused():
    inputs = keras.Input((8, 8, 3))
    pictures = keras.Model(inputs, keras.layers.Conv2D(4, 3)(inputs))
    with pytest.raises(ValueError, match=r"one output \[B, D\], D known\. Received: Functional .* \(None, 6, 6, 4\)"):
        ContrastiveLearner(pictures)


def test_both_banks_are_settings_of_an_encoder():
    items = np.arange(5_000)
    ours = make_plan(SCLConfig(), items, items, items)
    assert ours.memory_bank_size == 0  # 5,000 items that are queries, too: 1 % of them is less than a batch
    paper = SCLConfig(bank="paper")
    assert make_plan(paper, items, items, items).memory_bank_size == 196_800
    resolved = paper.with_bank
    assert (resolved.in_batch_negatives, resolved.momentum) == (False, 0.999)
    assert SCLConfig().with_bank == SCLConfig()
    with pytest.raises(ValueError, match=r"`bank`=paper says memory_bank_size=196800.* Received: \{'momentum': 0\.9\}"):
        dataclasses.replace(paper, momentum=0.9)
    with pytest.raises(ValueError, match=r"`bank` must be ours or paper\. Received: 'moco'"):
        SCLConfig(bank="moco")
