"""Batch normalization by the statistics of the global batch, on however many devices it lies."""

from __future__ import annotations

import typing

import keras
import tensorflow as tf

from tfmm.training import replicas


@keras.saving.register_keras_serializable("tfmm")
class GlobalBatchNormalization(keras.layers.BatchNormalization):
    """Keras's BatchNormalization; on several replicas, with mean and variance over the rows of all of them.

    Keras's own `synchronized=True` takes the variance as E(x^2) - E(x)^2, a difference in which float32 loses digits;
    here it is the mean of (x - E(x))^2.
    """

    def _moments(self, inputs: typing.Any, mask: typing.Any) -> tuple[typing.Any, typing.Any]:
        if replicas.count() == 1:
            return super()._moments(inputs, mask)
        axes = self._reduction_axes
        mean = replicas.mean(tf.reduce_mean(inputs, axes))
        along = [size if axis not in axes else 1 for axis, size in enumerate(inputs.shape)]
        variance = replicas.mean(tf.reduce_mean(tf.square(inputs - tf.reshape(mean, along)), axes))
        return mean, variance
