"""Triplet loss: by hand, against FaceNet's form, its mask, its gradient and its errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.losses import TripletLoss, triplet_loss


@pytest.fixture
def triplets():
    return tuple(np.random.default_rng(1).normal(size=(3, 7, 5)).astype(np.float32))


def test_is_half_of_facenet_at_twice_the_margin_on_unit_vectors(triplets):
    q, p, n = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in triplets)
    facenet = np.maximum(0, ((q - p) ** 2).sum(1) - ((q - n) ** 2).sum(1) + 2 * 0.3)
    np.testing.assert_allclose(triplet_loss(*triplets, margin=0.3), facenet / 2, atol=1e-6)


def test_lengths_do_not_matter(triplets):
    scaled = [7.0 * x for x in triplets]
    np.testing.assert_allclose(triplet_loss(*scaled), triplet_loss(*triplets), atol=1e-6)


def test_zero_vector_has_a_finite_gradient(triplets):
    query = tf.Variable(np.zeros((7, 5), np.float32))
    with tf.GradientTape() as tape:
        loss = triplet_loss(query, *triplets[1:])
    np.testing.assert_allclose(loss, np.full(7, 0.2), atol=1e-6)
    assert np.isfinite(tape.gradient(loss, query)).all()


def test_gradient_is_zero_beyond_the_margin():
    query = tf.Variable([[1.0, 0.0]])
    with tf.GradientTape() as tape:
        loss = triplet_loss(query, tf.constant([[1.0, 0.0]]), tf.constant([[-1.0, 0.0]]))
    assert float(loss[0]) == 0.0
    np.testing.assert_array_equal(tape.gradient(loss, query), [[0.0, 0.0]])


def test_layer_averages_over_rows_with_a_hard_negative(triplets):
    layer = TripletLoss(margin=0.5, dtype="mixed_bfloat16")
    mask = np.array([1, 0, 1, 0, 0, 0, 0], bool)
    expected = np.asarray(triplet_loss(*triplets, margin=0.5))
    assert float(layer(*triplets)) == pytest.approx(expected.mean(), rel=1e-6)
    assert float(layer(*triplets, negatives_mask=mask)) == pytest.approx(expected[mask].mean(), rel=1e-6)
    assert float(layer(*triplets, negatives_mask=np.zeros(7, bool))) == 0.0


def test_layer_round_trips_its_config():
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(TripletLoss(margin=0.7))
    )
    assert again.margin == 0.7


@pytest.mark.parametrize("margin", [0.0, -0.1, 2.5, float("nan")])
def test_refuses_a_margin_outside_the_range(margin):
    with pytest.raises(ValueError, match=r"`margin` must lie in \(0, 2\].*Received: "):
        TripletLoss(margin=margin)


def test_refuses_other_shapes(triplets):
    with pytest.raises(ValueError, match=r"must all be \[B, D\].*Received: \(7, 5\), \(7, 5\) and \(7, 4\)"):
        triplet_loss(*triplets[:2], triplets[2][:, :4])


def test_refuses_rows_and_masks_that_would_be_broadcast(triplets):
    queries, positives, negatives = triplets
    with pytest.raises(ValueError, match=r"one row of each per query. Received: .* and \(1, 5\)"):
        triplet_loss(queries, positives, negatives[:1])
    with pytest.raises(ValueError, match=r"`negatives_mask` must be \[7\].*Received: \(7, 1\)"):
        TripletLoss()(queries, positives, negatives, negatives_mask=np.ones((7, 1), bool))


def test_layer_refuses_other_shapes_when_a_model_is_built():
    with pytest.raises(ValueError, match=r"must all be \[B, D\].*\(None, 7\)"):
        TripletLoss()(keras.Input((8,)), keras.Input((7,)), keras.Input((8,)))


def test_masked_negatives_may_hold_anything(triplets):
    queries, positives, negatives = triplets
    mask = np.arange(7) != 2
    expected = TripletLoss()(queries, positives, negatives, negatives_mask=mask)
    negatives = np.where(mask[:, None], negatives, np.float32(np.nan))
    with tf.GradientTape() as tape:
        watched = tf.constant(queries)
        tape.watch(watched)
        loss = TripletLoss()(watched, positives, negatives, negatives_mask=mask)
    assert float(loss) == float(expected)
    assert np.isfinite(tape.gradient(loss, watched)).all()


@pytest.mark.parametrize("length", [1e-20, 1e20])
def test_lengths_beyond_float32_squares_do_not_matter(triplets, length):
    queries, positives, negatives = triplets
    scaled = triplet_loss(queries * np.float32(length), positives, negatives)
    np.testing.assert_allclose(scaled, triplet_loss(queries, positives, negatives), rtol=1e-5)
