"""The ways to run a layer: eagerly, symbolically, compiled, from a SavedModel."""

from __future__ import annotations

import contextlib
import os
import typing

import keras
import numpy as np

from tfmm.testing.arguments import Arrays

Tensors = dict[str, typing.Any]


def flatten(outputs: typing.Any) -> Tensors:
    """Gives each tensor of a nested structure a name: "output" alone, else its path, such as "heads.0".

    >>> flatten({"heads": [1, 2], "logit": 3})
    {'heads.0': 1, 'heads.1': 2, 'logit': 3}
    """
    return {
        ".".join(map(str, path)) or "output": x for path, x in keras.tree.flatten_with_path(outputs) if x is not None
    }


def call(layer: typing.Callable[..., typing.Any], inputs: Arrays) -> Tensors:
    """Calls a layer on arrays."""
    outputs = layer(**{name: keras.ops.convert_to_tensor(x) for name, x in inputs.items()})
    return {name: keras.ops.convert_to_tensor(x) for name, x in flatten(outputs).items()}


def dtypes(tensors: Tensors) -> dict[str, str]:
    """Names the dtypes of tensors, also of symbolic ones."""
    return {name: keras.backend.standardize_dtype(x.dtype) for name, x in tensors.items()}


def to_arrays(tensors: Tensors) -> dict[str, np.ndarray]:
    """Reads the values of tensors; bfloat16 as float32, since NumPy has no such dtype of its own."""
    shorts = {name: keras.ops.cast(tensors[name], "float32") for name, x in dtypes(tensors).items() if x == "bfloat16"}
    return {name: np.asarray(keras.ops.convert_to_numpy(x)) for name, x in {**tensors, **shorts}.items()}


def symbolic_inputs(inputs: Arrays) -> Tensors:
    """Makes a `keras.Input` for each array, of unknown batch size."""
    return {name: keras.Input(x.shape[1:], dtype=str(x.dtype), name=name) for name, x in inputs.items()}


@contextlib.contextmanager
def dtype_policy(policy: typing.Any) -> typing.Iterator[None]:
    """Sets Keras's global dtype policy inside the block, and the former one after it, whatever happens."""
    before = keras.config.dtype_policy()
    try:
        keras.config.set_dtype_policy(policy)
        yield
    finally:
        keras.config.set_dtype_policy(before)


@contextlib.contextmanager
def weights_made() -> typing.Iterator[list[str]]:
    """Lists the paths of weights that any layer makes inside the block."""
    made: list[str] = []
    add_weight = keras.layers.Layer.add_weight

    def watched(layer: keras.layers.Layer, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        weight = add_weight(layer, *args, **kwargs)
        made.append(weight.path)
        return weight

    keras.layers.Layer.add_weight = watched
    try:
        yield made
    finally:
        keras.layers.Layer.add_weight = add_weight


def compilers() -> list[tuple[str, typing.Callable[..., typing.Any]]]:
    """The backend's compilers, each with its name; none on Torch."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        def graph(layer: typing.Any, jit_compile: bool) -> typing.Any:
            return tf.function(lambda **tensors: layer(**tensors), jit_compile=jit_compile, autograph=False)

        return [("tf.function", lambda layer: graph(layer, False)), ("XLA", lambda layer: graph(layer, True))]
    if backend == "jax":
        import jax

        return [("jax.jit", lambda layer: jax.jit(lambda **tensors: layer(**tensors)))]
    return []


def run_saved_model(path: str | os.PathLike[str], inputs: Arrays) -> dict[str, np.ndarray]:
    """Runs a SavedModel's `serving_default` in a Session: the C++ loader that TF Serving uses; TensorFlow only.

    Args:
        path: folder of the SavedModel.
        inputs: arrays by the names of the signature's inputs.
    Returns:
        arrays by the names of its outputs.
    """
    import tensorflow as tf

    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        graph = tf.compat.v1.saved_model.loader.load(session, ["serve"], os.fspath(path))
        signature = graph.signature_def["serving_default"]
        feeds = {signature.inputs[name].name: x for name, x in inputs.items()}
        return session.run({name: x.name for name, x in signature.outputs.items()}, feeds)
