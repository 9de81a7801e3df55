"""Tests of Adam with two learning rates."""

import keras
import numpy as np
import tensorflow as tf

from tfmm.ctr.optimizer import HeldRate, TwoRateAdam


def slices(values, rows, num_rows):
    values = tf.constant(values, tf.float32)
    return tf.IndexedSlices(values, tf.constant(rows), tf.constant([num_rows, values.shape[1]]))


def test_dense_weights_follow_keras_adam():
    ours, theirs = keras.Variable([1.0, -2.0]), keras.Variable([1.0, -2.0])
    optimizer, reference = TwoRateAdam(0.1, 0.5), keras.optimizers.Adam(0.1)
    for gradient in ([0.3, 1.0], [-0.2, 0.1]):
        optimizer.apply([tf.constant(gradient)], [ours])
        reference.apply([tf.constant(gradient)], [theirs])
    np.testing.assert_array_equal(ours, theirs)


def test_rows_that_every_batch_touches_follow_keras_adam_at_their_own_rate():
    ours = keras.Variable(np.ones((2, 3)), dtype="float32", name="embeddings")
    theirs = keras.Variable(np.ones((2, 3)), dtype="float32")
    optimizer, reference = TwoRateAdam(0.1, 0.5), keras.optimizers.Adam(0.5)
    for step in range(1, 4):
        gradient = np.arange(6.0).reshape(2, 3) * step - 2
        optimizer.apply([slices(gradient, [0, 1], 2)], [ours])
        reference.apply([tf.constant(gradient, tf.float32)], [theirs])
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_rows_that_a_batch_does_not_touch_stay():
    table = keras.Variable(np.ones((3, 2)), dtype="float32", name="embeddings")
    optimizer = TwoRateAdam(0.1, 0.5)
    optimizer.apply([slices([[1.0, 2.0]], [1], 3)], [table])
    optimizer.apply([slices([[1.0, 2.0]], [2], 3)], [table])
    assert table.numpy()[0].tolist() == [1.0, 1.0]
    np.testing.assert_allclose(table.numpy()[1], [0.5, 0.5], atol=1e-5)  # Adam's first step is the rate


def test_gradients_of_a_repeated_row_are_summed():
    twice, once = (keras.Variable(np.ones((2, 1)), dtype="float32", name="embeddings") for _ in range(2))
    for table, gradient in ((twice, slices([[0.1], [0.2]], [1, 1], 2)), (once, slices([[0.3]], [1], 2))):
        TwoRateAdam(0.1, 0.5).apply([gradient], [table])
    np.testing.assert_allclose(twice, once)


def test_config_round_trip():
    optimizer = TwoRateAdam.from_config(TwoRateAdam(0.1, 0.25).get_config())
    assert optimizer.embedding_learning_rate == 0.25 and float(optimizer.learning_rate) == np.float32(0.1)


def test_rate_is_held_then_falls_to_0_in_a_line():
    rate = HeldRate(0.4, steps=8, decay_from=0.25)
    expected = 0.4 * np.array([6, 6, 6, 5, 4, 3, 2, 1, 0, 0]) / 6
    np.testing.assert_allclose([rate(step) for step in range(10)], expected, atol=1e-7)
    assert {float(HeldRate(0.4, 8, 1.0)(step)) for step in range(8)} == {np.float32(0.4)}
    optimizer = TwoRateAdam.from_config(TwoRateAdam(rate, 0.25).get_config())
    assert optimizer._learning_rate.get_config() == rate.get_config()


def test_rows_are_found_alike_by_a_pass_over_the_table_and_by_a_hash():
    generator = np.random.default_rng(0)
    indices = tf.constant(generator.integers(0, 50, size=200), tf.int32)
    gradient = tf.IndexedSlices(tf.constant(generator.normal(size=(200, 3)), tf.float32), indices, tf.constant([50, 3]))
    tables = [keras.Variable(np.ones((size, 3), np.float32), name="embeddings") for size in (60, 1_000)]
    for table in tables:
        optimizer = TwoRateAdam(learning_rate=0.1, embedding_learning_rate=0.5)
        for _ in range(3):
            optimizer.apply([gradient], [table])
    small, large = (table.numpy() for table in tables)
    np.testing.assert_array_equal(small, large[:60])  # each row sums its gradients in their order, either way
    assert (large[60:] == 1.0).all() and (small[50:] == 1.0).all()
