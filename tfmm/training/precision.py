"""Mixed precision: what computes in 16 bits, what stays float32, and loss scaling."""

from __future__ import annotations

import contextlib
import typing

import keras
import tensorflow as tf

from tfmm.config import FLOAT16, FLOAT32
from tfmm.training import replicas

FIRST_SCALE = 2.0**15
LARGEST_SCALE = 2.0**24
GROWTH_STEPS = 2_000  # finite steps after which the scale is doubled


@contextlib.contextmanager
def policy(precision: str) -> typing.Iterator[None]:
    """Lets the layers that are made inside compute in `precision`, as `TrainingConfig` names it."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def to_float32(model: keras.Model) -> list[tuple[keras.layers.Layer, typing.Any]]:
    """Lets a model compute in float32 from now on; returns the layers that did not, with the policies that they had."""
    mixed = [layer for layer in model._flatten_layers() if layer.compute_dtype in ("bfloat16", "float16")]
    before = [(layer, layer.dtype_policy) for layer in mixed]
    for layer in mixed:
        layer.dtype_policy = FLOAT32
    return before


@contextlib.contextmanager
def in_float32(model: keras.Model) -> typing.Iterator[None]:
    """Lets a model compute in float32 inside, whatever it was made with: as it is judged and served."""
    before = to_float32(model)
    try:
        yield
    finally:
        for layer, policy_of_layer in before:
            layer.dtype_policy = policy_of_layer


def compute_dtype() -> str:
    """Returns the type that layers made now compute in."""
    return keras.config.dtype_policy().compute_dtype


def scaled(optimizer: keras.optimizers.Optimizer) -> typing.Any:
    """Returns an optimizer for `loop.apply_gradients`: with loss scaling where layers compute in float16."""
    return LossScaled(optimizer) if keras.config.dtype_policy().name == FLOAT16 else optimizer


class LossScaled:
    """An optimizer whose loss is multiplied so that small gradients are not lost in float16.

    A step whose gradients are not all finite, on any replica, changes nothing but the scale, which it halves; after
    `GROWTH_STEPS` finite ones it is doubled. Keras's LossScaleOptimizer would make gradients of embeddings dense, and
    ask each replica alone.

    Args:
        optimizer: a Keras optimizer.
    """

    def __init__(self, optimizer: keras.optimizers.Optimizer) -> None:
        self.optimizer = optimizer
        self.scale = tf.Variable(FIRST_SCALE, trainable=False, name="loss_scale")
        self.finite_steps = tf.Variable(0, trainable=False, name="finite_steps")

    @property
    def variables(self) -> list[typing.Any]:
        return [*self.optimizer.variables, self.scale, self.finite_steps]

    def build(self, variables: typing.Sequence[typing.Any]) -> None:
        self.optimizer.build(variables)

    def apply(self, gradients: typing.Sequence[typing.Any], variables: typing.Sequence[typing.Any]) -> None:
        """Applies gradients of the scaled loss, dense or IndexedSlices, inside a step."""
        wrong = [tf.reduce_any(~tf.math.is_finite(_values(gradient))) for gradient in gradients]
        is_finite = replicas.total(tf.cast(tf.reduce_any(tf.stack(wrong)), tf.float32)) == 0.0
        unscaled = [_times(gradient, 1.0 / self.scale) for gradient in gradients]

        def apply_on_all(strategy: tf.distribute.Strategy, is_finite: typing.Any, gradients: typing.Any) -> None:
            def apply_here(gradients: typing.Any) -> None:
                self.optimizer.apply(gradients, variables)

            def apply() -> tf.Tensor:
                strategy.extended.call_for_each_replica(apply_here, args=(gradients,))
                return tf.constant(True)

            # A condition inside a replica would keep the optimizer from meeting the others.
            tf.cond(strategy.experimental_local_results(is_finite)[0], apply, lambda: tf.constant(False))

        tf.distribute.get_replica_context().merge_call(apply_on_all, args=(is_finite, unscaled))
        steps = tf.where(is_finite, self.finite_steps + 1, 0)
        grown = tf.minimum(tf.where(steps >= GROWTH_STEPS, 2.0 * self.scale, self.scale), LARGEST_SCALE)
        self.scale.assign(tf.where(is_finite, grown, tf.maximum(0.5 * self.scale, 1.0)))
        self.finite_steps.assign(tf.where(steps >= GROWTH_STEPS, 0, steps))


def _values(gradient: typing.Any) -> tf.Tensor:
    return gradient.values if isinstance(gradient, tf.IndexedSlices) else gradient


def _times(gradient: typing.Any, factor: tf.Tensor) -> typing.Any:
    if isinstance(gradient, tf.IndexedSlices):
        return tf.IndexedSlices(gradient.values * factor, gradient.indices, gradient.dense_shape)
    return gradient * factor
