"""Adam with two learning rates: ID embeddings learn faster than dense weights."""

from __future__ import annotations

import typing

import keras
import tensorflow as tf

EMBEDDINGS = "embeddings"  # the name that keras.layers.Embedding gives its table


@keras.saving.register_keras_serializable(package="tfmm")
class HeldRate(keras.optimizers.schedules.LearningRateSchedule):
    """A rate that is held for a share of the steps, and falls to 0 in a line over the rest.

    Adam's steps do not shrink by themselves: held to the end, the last few leave the mean score of all rows off.

    >>> rate = HeldRate(0.4, steps=10, decay_from=0.5)
    >>> [round(float(rate(step)), 2) for step in (0, 5, 6, 9)]
    [0.4, 0.4, 0.32, 0.08]
    """

    def __init__(self, rate: float, steps: int, decay_from: float, first: int = 0) -> None:
        """Takes the rate, the number of steps, the share of them in 0..1 for which it is held, and the first step."""
        self.rate, self.steps, self.decay_from, self.first = rate, steps, decay_from, first

    def __call__(self, step: typing.Any) -> tf.Tensor:
        if self.decay_from >= 1.0:  # in steps beyond too, so that a traced step serves the next rows
            return tf.constant(self.rate, tf.float32)
        step = step - self.first if self.first else step
        left = 1.0 - tf.cast(step, tf.float32) / max(self.steps, 1)
        return self.rate * tf.clip_by_value(left / max(1.0 - self.decay_from, 1.0 / max(self.steps, 1)), 0.0, 1.0)

    def get_config(self) -> dict[str, typing.Any]:
        return {"rate": self.rate, "steps": self.steps, "decay_from": self.decay_from, "first": self.first}


@keras.saving.register_keras_serializable(package="tfmm")
class TwoRateAdam(keras.optimizers.Adam):
    """Adam whose embedding tables have a rate of their own and are updated only where a batch touched them.

    In one epoch an embedding row is seen a few times, a dense weight at every step: one rate serves neither.
    Rows that a batch does not touch keep their value and moments, so the cost of a step follows the batch
    and not the vocabulary.

    >>> optimizer = TwoRateAdam(learning_rate=0.1, embedding_learning_rate=0.5)
    >>> table = keras.Variable([[1.0], [1.0]], name="embeddings")
    >>> gradient = tf.IndexedSlices(tf.constant([[2.0], [1.0]]), tf.constant([1, 1]), tf.constant([2, 1]))
    >>> optimizer.apply([gradient], [table])
    >>> table.numpy().round(3).tolist()
    [[1.0], [0.5]]
    """

    def __init__(
        self,
        learning_rate: float | keras.optimizers.schedules.LearningRateSchedule = 3e-3,
        embedding_learning_rate: float = 2e-2,
        name: str = "two_rate_adam",
        **kwargs: typing.Any,
    ) -> None:
        """Takes the rate of dense weights, that of embedding tables, and the rest of Adam's arguments."""
        super().__init__(learning_rate=learning_rate, name=name, **kwargs)
        self.embedding_learning_rate = embedding_learning_rate

    def update_step(self, gradient: typing.Any, variable: typing.Any, learning_rate: typing.Any) -> None:
        """Updates one variable; `gradient` is dense, or IndexedSlices from an embedding."""
        index = self._get_variable_index(variable)
        if self._trainable_variables[index].name == EMBEDDINGS:  # what is updated may be a replica's, of another name
            learning_rate = tf.cast(self.embedding_learning_rate, learning_rate.dtype)
        if not isinstance(gradient, tf.IndexedSlices):
            super().update_step(gradient, variable, learning_rate)
            return
        rows, positions = _distinct(tf.reshape(gradient.indices, [-1]), variable.shape[0])
        values = tf.math.unsorted_segment_sum(gradient.values, positions, tf.size(rows))
        step = tf.cast(self.iterations + 1, values.dtype)
        correction = tf.sqrt(1.0 - self.beta_2**step) / (1.0 - self.beta_1**step)
        mean_table, square_table = self._momentums[index].value, self._velocities[index].value
        mean, square = tf.gather(mean_table, rows), tf.gather(square_table, rows)
        mean += (values - mean) * (1.0 - self.beta_1)
        square += (tf.square(values) - square) * (1.0 - self.beta_2)
        mean_table.scatter_update(tf.IndexedSlices(mean, rows))
        square_table.scatter_update(tf.IndexedSlices(square, rows))
        delta = learning_rate * correction * mean / (tf.sqrt(square) + self.epsilon)
        variable.scatter_sub(tf.IndexedSlices(delta, rows))

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "embedding_learning_rate": self.embedding_learning_rate}


def _distinct(indices: tf.Tensor, num_rows: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the rows that a batch touches, each once, and for each of its indices the place among them.

    A pass over the table's rows is cheap beside a hash of as many indices, and is dear where there are few.
    """
    if indices.shape[0] is None or indices.shape[0] < num_rows:
        return tf.unique(indices)
    is_touched = tf.math.bincount(indices, minlength=num_rows, maxlength=num_rows, binary_output=True)
    rows = tf.cast(tf.where(is_touched > 0)[:, 0], indices.dtype)
    return rows, tf.gather(tf.cumsum(is_touched) - 1, indices)
