"""Writes SavedModels that the C++ loader of TF Serving takes, and loads them the way that it does."""

from __future__ import annotations

import collections.abc
import os
import threading
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm import plain_paths

SERVE_TAG = tf.saved_model.SERVING
PYTHON_PREFIX = "Graph execution error:\n\n"  # put before the C++ message by Python alone


def save(
    module: tf.Module, signatures: typing.Mapping[str, typing.Any], output_dir: str | os.PathLike
) -> str:
    """Writes `module` with explicit signatures, and proves that the C++ loader restores all of its variables.

    `tf.saved_model.save` of a tf.Module that holds a Keras 3 model loads in Python and fails in C++ ("Could
    not find variable"); here the raw `.value` of every Keras variable in the module is tracked as well.

    Args:
        module: holds all that the signatures use: Keras layers, tf.Variables and tables as attributes, also
            inside lists, tuples, dicts and other modules.
        signatures: per name, a tf.function with an `input_signature`, or a concrete function.
        output_dir: the folder to write, for TF Serving a numeric version folder.
    Returns:
        `output_dir` as a string.
    Raises:
        ValueError: a variable that the saved graph uses is not restored by the C++ loader.
    """
    path = os.fspath(output_dir)
    module._saved_variables = [v.value for v in keras_variables(module)]
    tf.saved_model.save(module, path, signatures=dict(signatures))
    lost = uninitialized_variables(path)
    if lost:
        raise ValueError(
            f"`module` must track every variable that its signatures use. Not restored by the C++ "
            f"loader: {lost}. Make them attributes of the module, and read each one inside a signature."
        )
    return path


def keras_variables(root: object) -> list[keras.Variable]:
    """Returns the Keras variables that `root` reaches by attributes, lists, tuples and dicts, each once."""
    found: dict[int, keras.Variable] = {}
    seen: set[int] = set()
    stack = [root]
    while stack:
        value = stack.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, keras.Variable):
            found[id(value)] = value
        elif isinstance(value, (keras.Layer, keras.metrics.Metric)):
            found.update((id(v), v) for v in value.variables)
        elif isinstance(value, tf.Module):
            stack.extend(vars(value).values())
        elif isinstance(value, collections.abc.Mapping):
            stack.extend(value.values())
        elif isinstance(value, (list, tuple)):
            stack.extend(value)
    return list(found.values())


def uninitialized_variables(model_dir: str | os.PathLike) -> list[str]:
    """Returns the variables that a SavedModel's signatures use and the C++ loader leaves without a value."""
    with LoadedModel(model_dir, optimizes=False) as loaded:
        graph = loaded.session.graph
        outputs = [t.name for s in loaded.signatures.values() for t in s.outputs.values()]
        operations = [graph.as_graph_element(name) for name in outputs]
        used = _ancestors([getattr(element, "op", element) for element in operations])
        handles = [operation for operation in used if operation.type == "VarHandleOp"]
        with graph.as_default():
            ready = [tf.raw_ops.VarIsInitializedOp(resource=op.outputs[0]) for op in handles]
        states = loaded.session.run(ready)
    return sorted(op.name for op, is_ready in zip(handles, states) if not is_ready)


def _ancestors(operations: list[tf.Operation]) -> set[tf.Operation]:
    found: set[tf.Operation] = set()
    stack = list(operations)
    while stack:
        operation = stack.pop()
        if operation not in found:
            found.add(operation)
            stack.extend(tensor.op for tensor in operation.inputs)
            stack.extend(operation.control_inputs)
    return found


# The loader that TF Serving has, without the warning to take another one.
_load = tf.compat.v1.saved_model.loader.load
_load = getattr(_load, "__wrapped__", _load)


class LoadedModel:
    """A SavedModel in a Session of its own: the loader, session and resource semantics of TF Serving.

    Calls from several threads are safe; state (tables, variables) belongs to this object alone. Without `optimizes`
    TensorFlow runs the graph as it is, unlike TF Serving: half the work of a load, for what is run once.
    """

    def __init__(
        self,
        model_dir: str | os.PathLike,
        *,
        inter_op_threads: int = 0,
        intra_op_threads: int = 0,
        optimizes: bool = True,
    ):
        config = tf.compat.v1.ConfigProto(
            inter_op_parallelism_threads=inter_op_threads, intra_op_parallelism_threads=intra_op_threads
        )
        config.graph_options.rewrite_options.disable_meta_optimizer = not optimizes
        config.gpu_options.allow_growth = True
        self.session = tf.compat.v1.Session(graph=tf.Graph(), config=config)
        try:
            with self.session.graph.as_default(), plain_paths.plain(model_dir) as path:
                self.meta_graph = _load(self.session, [SERVE_TAG], path)
        except Exception:
            self.session.close()
            raise
        self.signatures = dict(self.meta_graph.signature_def)
        self._calls: dict[str, typing.Callable] = {}
        self._lock = threading.Lock()

    def __call__(
        self,
        signature: str,
        inputs: typing.Mapping[str, typing.Any],
        outputs: typing.Sequence[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Runs one signature.

        It is run as a whole and the outputs are chosen afterwards: TensorFlow prepares a graph anew for each set of
        outputs, which takes seconds, and warm-up requests ask for all.

        Args:
            signature: its name, such as "serving_default".
            inputs: every input of the signature by name, as arrays of its dtype or as what converts to them.
            outputs: the outputs wanted; None for all.
        Returns:
            NumPy arrays by output name; strings as object arrays of bytes.
        Raises:
            KeyError: the signature, an input or an output is unknown.
            tf.errors.OpError: as the graph raises it.
        """
        definition = self.signatures[signature]
        names = tuple(sorted(definition.inputs))
        known = tuple(sorted(definition.outputs))
        wanted = known if outputs is None else tuple(outputs)
        if unknown := set(wanted) - set(known):
            raise KeyError(f"`outputs` must be among {list(known)}. Received: {sorted(unknown)}.")
        call = self._calls.get(signature)
        if call is None:
            with self._lock:
                call = self.session.make_callable(
                    [definition.outputs[o].name for o in known],
                    feed_list=[definition.inputs[i].name for i in names],
                )
                self._calls[signature] = call
        feeds = [_as_array(inputs[i], definition.inputs[i].dtype) for i in names]
        try:
            values = dict(zip(known, call(*feeds)))
        except UnicodeDecodeError as error:  # TensorFlow's message quotes bytes of an input, and cannot be read as text
            message = error.object.decode("utf-8", "replace")
            raise tf.errors.InvalidArgumentError(None, None, message) from error
        return {name: values[name] for name in wanted}

    def together(
        self, requests: typing.Mapping[str, typing.Mapping[str, typing.Any]]
    ) -> dict[str, dict[str, np.ndarray]]:
        """Runs several signatures in one call, for which TensorFlow prepares what they share once: half the work.

        Args:
            requests: the inputs by signature, as for a call.
        Returns:
            The outputs by signature.
        """
        outputs, feeds = {}, {}
        for signature, inputs in requests.items():
            definition = self.signatures[signature]
            outputs[signature] = {name: tensor.name for name, tensor in definition.outputs.items()}
            for name, tensor in definition.inputs.items():
                feeds[tensor.name] = _as_array(inputs[name], tensor.dtype)
        found: dict[str, dict[str, np.ndarray]] = self.session.run(outputs, feeds)
        return found

    def close(self) -> None:
        self.session.close()
        self._calls.clear()  # each holds the session

    def __enter__(self) -> LoadedModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _as_array(value: typing.Any, dtype: int) -> np.ndarray:
    if dtype == tf.string.as_datatype_enum:
        return np.asarray(value, object)
    return np.asarray(value, tf.as_dtype(dtype).as_numpy_dtype)


def load_session(model_dir: str | os.PathLike) -> LoadedModel:
    """Loads a SavedModel as TF Serving does; call the result as `loaded(signature, inputs)`."""
    return LoadedModel(model_dir)
