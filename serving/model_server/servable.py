"""One loaded version of one model: checks a request against a signature, runs it, counts who is inside."""

from __future__ import annotations

import math
import threading
import typing

import numpy as np
import tensorflow as tf

from serving.model_server import errors, sources
from serving.model_server.limits import Limits
from tfmm import saved_model

DEFAULT_SIGNATURE = "serving_default"


class Servable:
    """A SavedModel in a Session, and a count of the requests inside, so that it is closed after the last.

    Args:
        name: the model's.
        version: its number.
        path: its folder.
        session_threads: inter-op and intra-op; 0 for one per core.
        limits: of a request.
    """

    def __init__(
        self,
        name: str,
        version: int,
        path: str,
        session_threads: tuple[int, int] = (0, 0),
        limits: Limits = Limits(),  # noqa: B008 (frozen)
    ):
        self.limits = limits
        self.name = name
        self.version = version
        self.path = path
        inter_op, intra_op = session_threads
        self._model = saved_model.LoadedModel(path, inter_op_threads=inter_op, intra_op_threads=intra_op)
        self.sources = sources.of_version(path)
        self._idle = threading.Condition()
        self._inside = 0
        self._is_open = True

    @property
    def signatures(self) -> dict[str, typing.Any]:
        """SignatureDefs by name, without the initialization signature."""
        return {k: v for k, v in self._model.signatures.items() if not k.startswith("__saved_model")}

    def signature(self, name: str) -> typing.Any:
        """Returns a SignatureDef.

        Raises:
            ServingError: FAILED_PRECONDITION where the model has no such signature.
        """
        definition = self.signatures.get(name or DEFAULT_SIGNATURE)
        if definition is None:
            raise errors.ServingError(
                errors.FAILED_PRECONDITION,
                f'Serving signature key "{name or DEFAULT_SIGNATURE}" not found. Model {self.name} version '
                f"{self.version} has {sorted(self.signatures)}.",
            )
        return definition

    def run(
        self, signature: str, inputs: dict[str, np.ndarray], output_filter: typing.Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Runs a signature on arrays that `check_inputs` has passed.

        Raises:
            ServingError: INVALID_ARGUMENT for inputs or an output filter that do not fit the signature.
            tf.errors.OpError: as the graph raises it.
        """
        definition = self.signature(signature)
        check_inputs(definition, inputs)
        for input_name, value in inputs.items():
            check_size(input_name, value.shape, value.itemsize, self.limits)
        outputs = check_outputs(definition, output_filter)
        return self._model(signature or DEFAULT_SIGNATURE, inputs, outputs)

    def enter(self) -> bool:
        """Counts one request in; False where the servable is closing."""
        with self._idle:
            self._inside += self._is_open
            return self._is_open

    def leave(self) -> None:
        with self._idle:
            self._inside -= 1
            self._idle.notify_all()

    def close(self) -> None:
        """Refuses new requests, waits for those inside, and frees the session."""
        with self._idle:
            self._is_open = False
            self._idle.wait_for(lambda: self._inside == 0)
        self._model.close()


def check_inputs(definition: typing.Any, inputs: dict[str, np.ndarray]) -> None:
    """Raises INVALID_ARGUMENT unless names, dtypes and shapes of `inputs` are those of a SignatureDef."""
    sent, wanted = set(inputs), set(definition.inputs)
    if sent != wanted:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({_names(sent)}) != "
            f"len({_names(wanted)}). Sent extra: {_names(sent - wanted)}. Missing but required: "
            f"{_names(wanted - sent)}.",
            inputs=wanted - sent,
        )
    for name, info in definition.inputs.items():
        value, dtype = inputs[name], tf.as_dtype(info.dtype)
        found = tf.string if value.dtype.kind in "OSU" else tf.as_dtype(value.dtype)
        if found != dtype:
            raise errors.ServingError(
                errors.INVALID_ARGUMENT, f"input {name} expects {dtype.name}, got {found.name}.", inputs=(name,)
            )
        shape = tf.TensorShape(info.tensor_shape)
        if not shape.is_compatible_with(value.shape):
            raise errors.ServingError(
                errors.INVALID_ARGUMENT,
                f"input {name} expects shape {shape}, got {tuple(value.shape)}.",
                inputs=(name,),
            )


def check_size(name: str, shape: typing.Sequence[int], item_bytes: int, limits: Limits) -> None:
    """Raises INVALID_ARGUMENT where a tensor takes more than a request may."""
    rows, size = shape[0] if len(shape) else 1, math.prod(shape) * item_bytes
    if rows > limits.max_candidates:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"input {name}: a request may have {limits.max_candidates} candidates or rows. Received: {rows}. Send "
            "several requests, or start the server with a larger --max_candidates.",
        )
    if size > limits.max_request_bytes:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"input {name}: a tensor may have {limits.max_request_bytes} bytes. Received: {size}, of shape "
            f"{list(shape)}. Send several requests, or start the server with a larger --max_request_bytes.",
        )


def _names(names: typing.Iterable[str]) -> str:
    return "{" + ",".join(sorted(names)) + "}"


def check_outputs(definition: typing.Any, output_filter: typing.Sequence[str]) -> list[str]:
    """Returns the outputs to fetch: all of a SignatureDef, or those of the filter.

    Raises:
        ServingError: INVALID_ARGUMENT for an unknown or repeated output.
    """
    known = sorted(definition.outputs)
    for position, name in enumerate(output_filter):
        if name not in known:
            raise errors.ServingError(
                errors.INVALID_ARGUMENT,
                f"output tensor alias not found in signature: {name} Outputs expected to be "
                f"in the set {{{','.join(known)}}}.",
            )
        if name in output_filter[:position]:
            raise errors.ServingError(errors.INVALID_ARGUMENT, f"duplicate output tensor alias: {name}")
    return list(output_filter) or known
