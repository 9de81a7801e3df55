"""Runs the requests that a version brings for its warm-up, before it serves."""

from __future__ import annotations

import os
import typing

import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.model_server import errors, inference, predict
from serving.model_server.servable import Servable
from tfmm.export.signatures import LOGGED

WARMUP_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
MAX_WARMUP_RECORDS = 1000
_FRAME_BYTES = 16  # of a record in its file, beside what it holds: its length and two checksums
_ANSWERS: dict[str, typing.Callable] = {
    "predict_log": predict.predict,
    "classify_log": inference.classify,
    "regress_log": inference.regress,
    "multi_inference_log": inference.multi_inference,
}


def warm(servable: Servable, iterations: int = 1, *, is_logged: bool = False) -> int:
    """Runs the warm-up records that a version brings, each several times.

    Args:
        servable: the version.
        iterations: how often each runs.
        is_logged: whether rankings are logged, which other signatures score then, all or some: they are warmed, too.
    Returns:
        How many records ran; 0 where the version brings none.
    Raises:
        ServingError: a record fails, or the file is damaged; the version must not be served then.
    """
    path = os.path.join(servable.path, WARMUP_FILE)
    if not tf.io.gfile.exists(path):
        return 0
    try:
        return _run(servable, path, iterations, is_logged)
    except Exception as error:
        failure = errors.from_exception(error)
        raise errors.ServingError(failure.code, f"Warm-up by {path} failed: {failure.message}") from error


def _run(servable: Servable, path: str, iterations: int, is_logged: bool) -> int:
    count = read = whole_bytes = 0
    for record in tf.data.TFRecordDataset(path).take(MAX_WARMUP_RECORDS).as_numpy_iterator():
        read, whole_bytes = read + 1, whole_bytes + _FRAME_BYTES + len(record)
        log = prediction_log_pb2.PredictionLog.FromString(record)
        kind = log.WhichOneof("log_type")
        if kind in _ANSWERS:
            request = getattr(log, kind).request
            for signature in _signatures(servable, kind, request, is_logged):
                if signature:
                    request.model_spec.signature_name = signature
                for _ in range(iterations):
                    _ANSWERS[kind](servable, request)
            count += 1
    # TensorFlow takes what is shorter than a record's head for the end.
    if read < MAX_WARMUP_RECORDS and (rest := tf.io.gfile.stat(path).length - whole_bytes):
        raise errors.ServingError(errors.DATA_LOSS, f"The file has {read} whole records, and {rest} bytes behind them.")
    return count


def _signatures(servable: Servable, kind: str, request: typing.Any, is_logged: bool) -> list[str]:
    """Returns the signatures that a record warms; "": as it stands."""
    logs_too = LOGGED.get(request.model_spec.signature_name) if is_logged and kind == "predict_log" else None
    return ["", logs_too] if logs_too and logs_too in servable.signatures else [""]
