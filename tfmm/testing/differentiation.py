"""Which inputs and weights a gradient reaches, by each backend's own autodiff."""

from __future__ import annotations

import contextlib
import typing

import keras
import numpy as np

from tfmm.testing.arguments import Arrays
from tfmm.testing.execution import Tensors, flatten

_TRIES = 12  # from the middle on with signs flipped
Total = typing.Callable[[typing.Any], typing.Any]


def reach_of_gradients(
    layer: keras.layers.Layer, inputs: Arrays, names: list[str], outputs: Arrays, wanted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Finds which of the named inputs, then of the trainable weights, a gradient of the outputs reaches.

    A gradient may be zero by chance: behind a weight that starts at zero, behind a unit that no row switches on,
    or where it is mere rounding, as of a bias that a softmax cancels. So what is wanted and not reached gets
    further tries, with shaken weights and other directions, and in the end with other signs of some weights and
    float inputs, which switch on a unit that no row did; afterwards the weights are as before. Of flipped values,
    which the layer may refuse, nothing but a finite gradient counts.

    Args:
        names: the inputs to differentiate by, of length n.
        outputs: the layer's float outputs; a gradient is that of their sum in a random direction.
        wanted: bool [n + number of trainable weights], True where a gradient should arrive.
    Returns:
        two bool arrays like `wanted`: where any gradient is not zero, and where all are finite.
    """
    reached, finite = np.zeros(wanted.shape, bool), np.ones(wanted.shape, bool)
    if not outputs:
        return reached, finite
    rng = np.random.default_rng(0)
    weights = layer.trainable_weights
    before = [np.asarray(keras.ops.convert_to_numpy(weight)) for weight in weights]
    try:
        for i in range(_TRIES):
            directions = {name: rng.normal(size=x.shape).astype(np.float32) for name, x in outputs.items()}
            if i < _TRIES // 2:
                found = _gradients(layer, inputs, names, directions)
                finite &= are_finite(found)
            else:
                flipped = {name: _flipped(x, rng) if x.dtype.kind == "f" else x for name, x in inputs.items()}
                with contextlib.suppress(Exception):
                    found = _gradients(layer, flipped, names, directions)
            reached |= are_finite(found) & np.array([x is not None and x.any() for x in found], bool)
            if reached[wanted].all():
                break
            for weight, value in zip(weights, before):
                shaken = _shaken(value, rng)
                weight.assign(shaken if i + 1 < _TRIES // 2 else _flipped(shaken, rng))
    finally:
        for weight, value in zip(weights, before):
            weight.assign(value)
    return reached, finite


def finite_gradients(layer: keras.layers.Layer, inputs: Arrays, names: list[str], outputs: Arrays) -> np.ndarray:
    """Tells of which of the named inputs, then of the trainable weights, the gradient of the outputs' sum is finite."""
    return are_finite(_gradients(layer, inputs, names, {name: np.ones(x.shape, "f") for name, x in outputs.items()}))


def _shaken(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Moves each weight by up to a tenth, and those at zero off it; signs stay, as some weights must be positive."""
    return np.where(value == 0, rng.uniform(0.05, 0.15, value.shape), value * rng.uniform(0.9, 1.1, value.shape))


def _flipped(value: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Turns the sign of about half of the values."""
    return np.where(rng.random(value.shape) < 0.5, -value, value)


def are_finite(gradients: list[np.ndarray | None]) -> np.ndarray:
    """Tells for each gradient whether it is finite, as is none at all; bool [number of gradients]."""
    return np.array([x is None or bool(np.isfinite(x).all()) for x in gradients], bool)


def _gradients(
    layer: keras.layers.Layer, inputs: Arrays, names: list[str], directions: Arrays
) -> list[np.ndarray | None]:
    """Computes gradients of the sum of outputs times directions; None where there is none."""
    tensors = {name: keras.ops.convert_to_tensor(x) for name, x in inputs.items()}

    def total(outputs: typing.Any) -> typing.Any:
        flat = flatten(outputs)
        floats = ((keras.ops.cast(flat[name], "float32"), direction) for name, direction in directions.items())
        return sum(keras.ops.sum(keras.ops.multiply(x, direction)) for x, direction in floats)

    by_backend = {"tensorflow": _gradients_of_tensorflow, "jax": _gradients_of_jax, "torch": _gradients_of_torch}
    found = by_backend[keras.backend.backend()](layer, tensors, names, total)
    return [None if x is None else np.asarray(keras.ops.convert_to_numpy(x)) for x in found]


def _gradients_of_tensorflow(
    layer: keras.layers.Layer, tensors: Tensors, names: list[str], total: Total
) -> list[typing.Any]:
    import tensorflow as tf

    with tf.GradientTape() as tape:
        watched = [tensors[name] for name in names]
        tape.watch(watched)
        value = total(layer(**tensors))
    found = tape.gradient(value, watched + [weight.value for weight in layer.trainable_weights])
    return [None if x is None else tf.convert_to_tensor(x) for x in found]


def _gradients_of_jax(layer: keras.layers.Layer, tensors: Tensors, names: list[str], total: Total) -> list[typing.Any]:
    import jax

    weights = [weight.value for weight in layer.trainable_weights]
    rest = [variable.value for variable in layer.non_trainable_variables]

    def value_of(chosen: list[typing.Any], weights: list[typing.Any]) -> typing.Any:
        given = {**tensors, **dict(zip(names, chosen))}
        return total(layer.stateless_call(weights, rest, **given)[0])

    of_inputs, of_weights = jax.grad(value_of, argnums=(0, 1))([tensors[name] for name in names], weights)
    return [*of_inputs, *of_weights]


def _gradients_of_torch(
    layer: keras.layers.Layer, tensors: Tensors, names: list[str], total: Total
) -> list[typing.Any]:
    import torch

    chosen = {name: tensors[name].detach().requires_grad_(True) for name in names}
    value = total(layer(**{**tensors, **chosen}))
    sources = [*chosen.values(), *(weight.value for weight in layer.trainable_weights)]
    if not sources or not value.requires_grad:
        return [None] * len(sources)
    return list(torch.autograd.grad(value, sources, allow_unused=True))
