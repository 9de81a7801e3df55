"""The best weights of a training so far, by pairs that neither train nor are reported."""

from __future__ import annotations

import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm.pretrain.accuracy import ACCURACY_AT
from tfmm.training import checkpoint

PREFIX = "validation_"  # of accuracies on the pairs kept back


class Best:
    """Keeps a model's weights as they were at its best evaluation: by Acc@1, ties by Acc@5, then the earlier one.

    Its variables belong into the training's checkpoint: a run that was stopped goes on to the same best.
    """

    def __init__(self, model: keras.Model) -> None:
        self.model = model
        self._weights = [_copy(variable) for variable in model.weights]
        self._scores = tf.Variable(np.full(len(ACCURACY_AT), -1.0), trainable=False)
        self._step = tf.Variable(0, dtype=tf.int64, trainable=False)

    def variables(self) -> list[tf.Variable]:
        """Returns what a checkpoint keeps."""
        return [*self._weights, self._scores, self._step]

    def note(self, accuracies: typing.Mapping[str, float], step: int) -> None:
        """Takes the model's weights as they are where their accuracies are better than the best before."""
        found = [accuracies[f"acc_at_{n}"] for n in ACCURACY_AT]
        if found > checkpoint.array_of(self._scores).tolist():
            for kept, variable in zip(self._weights, self.model.weights, strict=True):
                kept.assign(checkpoint.array_of(variable.value))
            self._scores.assign(np.array(found))
            self._step.assign(step)

    @property
    def step(self) -> int:
        """The steps that had been taken."""
        return int(checkpoint.array_of(self._step))

    def weights(self) -> list[np.ndarray]:
        """Returns the weights as `model.set_weights` takes them."""
        return [checkpoint.array_of(kept) for kept in self._weights]


def _copy(variable: typing.Any) -> tf.Variable:
    return tf.Variable(checkpoint.array_of(variable.value), trainable=False)
