"""Tells which compiler runs the operations being traced, so that a layer can choose the form fast there."""

from __future__ import annotations

import keras


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
