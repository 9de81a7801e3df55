"""The training step: what is a negative, who gets a gradient, and what follows whom."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.scl import SCL, Batch

CONFIG = SCLConfig(modality="text", text_buckets=64, dim=8, memory_bank_size=12, batch_size=4, momentum=0.9)
IDS = tf.constant([1, 2, 3, 4], tf.int64)


def make_scl(**changes):
    config = dataclasses.replace(CONFIG, **changes)
    return SCL(config, make_encoder(config), total_steps=50)


def features(scl, texts):
    tokens, weights = scl.encoder.prepare(tf.constant(texts))[0]
    return tuple(tf.pad(column, [[0, 0], [0, 30 - column.shape[1]]]) for column in (tokens, weights))


def make_batch(scl, negatives=("yellow", "pink", "brown", "violet"), has_negative=(True, False, True, False)):
    queries = features(scl, ["red one", "blue two", "green three", "white four"])
    positives = features(scl, ["red", "blue", "green", "white"])
    return Batch(
        queries,
        positives,
        features(scl, list(negatives)) if negatives else (),
        tf.constant(has_negative),
        IDS,
    )


def encoded(scl, features):
    return scl.encoder.model(list(features), training=False).numpy()


@pytest.mark.parametrize("copies", [1, 3])
def test_own_copies_in_the_bank_are_no_negatives(copies):
    """With a frozen encoder a copy's logit is the positive's: unmasked, L becomes log(exp(L) + copies)."""
    scl = make_scl(in_batch_negatives=False, triplet_weight=0.0)
    batch = make_batch(scl)
    keys = scl.learner.encode_keys(batch.positive)
    strangers = tf.math.l2_normalize(tf.constant(np.random.default_rng(0).normal(size=(3, 8)), tf.float32), axis=1)
    scl.learner.bank.enqueue(strangers, tf.constant([50, 51, 52], tf.int64))
    per_row, bank_variables = [], scl.learner.variables()["memory_bank"]
    for row in range(4):  # one row at a time: a copy of row 0's key is a true negative of row 1
        for item_id in (int(IDS[row]), 99):
            bank_before = [v.numpy() for v in bank_variables]
            scl.learner.bank.enqueue(
                tf.repeat(keys[row : row + 1], copies, axis=0),
                tf.fill([copies], tf.constant(item_id, tf.int64)),
            )
            single = Batch(
                *(tuple(f[row : row + 1] for f in group) for group in batch[:3]),
                batch.has_negative[row : row + 1],
                IDS[row : row + 1],
            )
            per_row.append(float(scl.losses(single, keys[row : row + 1])[0]))
            for variable, value in zip(bank_variables, bank_before):
                variable.assign(value)
    masked, unmasked = np.array(per_row[0::2]), np.array(per_row[1::2])
    np.testing.assert_allclose(unmasked, np.log(np.exp(masked) + copies), rtol=1e-4)  # float32 exp and log


def test_info_nce_against_a_loop_over_equation_1():
    """Bank, in-batch negatives, an item twice in the batch, slots never filled: each negative by name."""
    scl = make_scl()
    batch = make_batch(scl)._replace(item_ids=tf.constant([1, 2, 1, 4], tf.int64))
    bank = tf.math.l2_normalize(tf.constant(np.random.default_rng(1).normal(size=(5, 8)), tf.float32), axis=1)
    bank_ids = [1, 7, 2, 8, 9]
    scl.learner.bank.enqueue(bank, tf.constant(bank_ids, tf.int64))
    q, p, tau = encoded(scl, batch.query), encoded(scl, batch.positive), CONFIG.temperature
    losses = []
    for i, own in enumerate([1, 2, 1, 4]):
        negatives = [p[j] for j, other in enumerate([1, 2, 1, 4]) if other != own]
        negatives += [bank.numpy()[k] for k, other in enumerate(bank_ids) if other != own]
        logits = np.array([q[i] @ p[i], *(q[i] @ n for n in negatives)]) / tau
        losses.append(np.log(np.exp(logits).sum()) - logits[0])
    assert float(scl.losses(batch, tf.constant(p))[0]) == pytest.approx(np.mean(losses), rel=1e-5)


def test_triplet_counts_rows_with_a_hard_negative_only():
    scl = make_scl()
    batch = make_batch(scl)
    q, p, n = (encoded(scl, group) for group in batch[:3])
    expected = np.maximum(0.0, CONFIG.triplet_margin - (q * p).sum(1) + (q * n).sum(1))[[0, 2]].mean()
    assert float(scl.losses(batch, tf.constant(p))[1]) == pytest.approx(expected, rel=1e-5)


def test_without_hard_negatives_the_triplet_loss_is_zero():
    scl = make_scl()
    metrics = scl.train_step(make_batch(scl, negatives=()))
    assert float(metrics["triplet"]) == 0.0 and float(metrics["loss"]) == float(metrics["info_nce"])


@pytest.mark.parametrize("in_batch, reaches", [(True, True), (False, False)])
def test_positives_get_a_gradient_only_in_batch(in_batch, reaches):
    """Tokens that occur in positives alone move if and only if the gradient goes through positives."""
    scl = make_scl(in_batch_negatives=in_batch, triplet_weight=0.0, weight_decay=0.0, text_buckets=4096)
    batch = make_batch(scl, negatives=())
    batch = batch._replace(positive=features(scl, ["kiwi", "plum", "fig", "date"]))
    scl.learner.bank.enqueue(tf.math.l2_normalize(tf.random.stateless_normal([4, 8], [1, 2]), axis=1), IDS + 10)
    table = scl.encoder.model.trainable_variables[0]
    before = table.numpy().copy()
    scl.train_step(batch)
    moved = np.abs(table.numpy() - before).max(1) > 0
    only_positive = np.setdiff1d(batch.positive[0].numpy(), np.append(batch.query[0].numpy(), 0))
    assert moved[only_positive].all() if reaches else not moved[only_positive].any()
    assert moved[np.setdiff1d(batch.query[0].numpy(), [0])].all()


def test_momentum_encoder_follows():
    scl = make_scl()
    key, query = scl.learner.key_model.trainable_variables[0], scl.encoder.model.trainable_variables[0]
    before = key.numpy().copy()
    np.testing.assert_array_equal(before, query.numpy())
    scl.train_step(make_batch(scl))
    np.testing.assert_allclose(key.numpy(), 0.9 * before + 0.1 * query.numpy(), rtol=1e-6, atol=1e-8)


def test_bank_takes_the_momentum_encoders_keys():
    scl = make_scl()
    batch = make_batch(scl)
    expected = scl.learner.key_model(list(batch.positive), training=False).numpy()
    scl.train_step(batch)
    np.testing.assert_allclose(scl.learner.bank.keys.numpy()[:4], expected, atol=1e-6)
    assert scl.learner.bank.item_ids.numpy()[:5].tolist() == [1, 2, 3, 4, 0]


def test_without_a_bank_there_is_no_second_encoder():
    scl = make_scl(memory_bank_size=0)
    assert scl.learner.bank is None and scl.learner.key_model is None
    assert set(scl.variables()) == {"encoder", "info_nce", "optimizer"}
    assert np.isfinite(float(scl.train_step(make_batch(scl))["loss"]))


def test_temperature_stays_in_its_range():
    scl = make_scl(temperature=0.0101, learning_rate=5.0, triplet_weight=0.0)
    batch = make_batch(scl, negatives=())
    batch = batch._replace(positive=batch.query)  # a perfect fit: the temperature wants to fall
    step = tf.function(scl.train_step)
    seen = [float(step(batch)["temperature"]) for _ in range(20)]
    assert min(seen) >= 0.01 - 1e-7 and max(seen) <= 1.0 + 1e-6


def test_temperature_and_biases_do_not_decay():
    config = SCLConfig(image_size=16, width=4, dim=8, memory_bank_size=0, weight_decay=0.5)
    scl = SCL(config, make_encoder(config), total_steps=10)
    decaying = [v.path for v in scl.trainable if scl.optimizer._use_weight_decay(v)]
    assert decaying and all("kernel" in path for path in decaying)
