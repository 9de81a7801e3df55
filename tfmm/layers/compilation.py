"""Tells for what the operations are being traced, and what a variable holds meanwhile."""

from __future__ import annotations

import contextlib
import typing

import keras
import numpy as np


def is_traced_for_xla() -> bool:
    """Returns True where the current trace goes to XLA: inside `jit_compile`, and always on the JAX backend.

    The forms that it chooses between compute the same numbers; a wrong answer costs speed only.
    """
    backend = keras.backend.backend()
    if backend == "jax":
        return True
    if backend != "tensorflow":
        return False
    try:  # TensorFlow has no public way to ask; it marks the graph of a `jit_compile` function itself
        from tensorflow.python.framework import ops
        from tensorflow.python.ops import control_flow_util

        return bool(control_flow_util.GraphOrParentsInXlaContext(ops.get_default_graph()))
    except (ImportError, AttributeError):
        return False


def is_symbolic() -> bool:
    """Returns True where Keras only derives shapes: weights may not be loaded yet, and dtypes are guessed."""
    try:  # Keras has no public way to ask
        from keras.src.backend.common.symbolic_scope import in_symbolic_scope

        return bool(in_symbolic_scope())
    except ImportError:
        return False


def first_of(variable: typing.Any) -> np.ndarray | None:
    """Returns what a variable holds first on its first axis, also while a function is traced.

    None where that cannot be told: Keras only derives shapes, or the caller replaces the variable by a traced
    tensor (`stateless_call`).
    """
    if is_symbolic():
        return None
    outside: typing.Any = contextlib.nullcontext()
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        outside = tf.init_scope()
    try:
        with outside:
            return np.asarray(keras.ops.convert_to_numpy(variable[0]))
    except Exception:  # each backend has its own error for a value that cannot be read now
        return None
