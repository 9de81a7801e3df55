"""Status codes of TensorFlow Serving, and how exceptions and HTTP map to them."""

from __future__ import annotations

import asyncio
import logging
import typing

import tensorflow as tf
from tensorflow.core.protobuf import error_codes_pb2

from tfmm import saved_model

_log = logging.getLogger("serving.model_server")

OK = 0
CANCELLED = tf.errors.CANCELLED
UNKNOWN = tf.errors.UNKNOWN
INVALID_ARGUMENT = tf.errors.INVALID_ARGUMENT
DEADLINE_EXCEEDED = tf.errors.DEADLINE_EXCEEDED
NOT_FOUND = tf.errors.NOT_FOUND
FAILED_PRECONDITION = tf.errors.FAILED_PRECONDITION
RESOURCE_EXHAUSTED = tf.errors.RESOURCE_EXHAUSTED
UNIMPLEMENTED = tf.errors.UNIMPLEMENTED
INTERNAL = tf.errors.INTERNAL
PERMISSION_DENIED = tf.errors.PERMISSION_DENIED
UNAUTHENTICATED = tf.errors.UNAUTHENTICATED
UNAVAILABLE = tf.errors.UNAVAILABLE
DATA_LOSS = tf.errors.DATA_LOSS
MAX_MESSAGE_SIZE = 1024  # characters of an error message that travel

_HTTP_STATUS = {
    OK: 200,
    tf.errors.CANCELLED: 499,
    tf.errors.INVALID_ARGUMENT: 400,
    tf.errors.DEADLINE_EXCEEDED: 504,
    tf.errors.NOT_FOUND: 404,
    tf.errors.ALREADY_EXISTS: 409,
    tf.errors.PERMISSION_DENIED: 403,
    tf.errors.RESOURCE_EXHAUSTED: 429,
    tf.errors.FAILED_PRECONDITION: 400,
    tf.errors.ABORTED: 409,
    tf.errors.OUT_OF_RANGE: 400,
    tf.errors.UNIMPLEMENTED: 501,
    tf.errors.UNAVAILABLE: 503,
    tf.errors.UNAUTHENTICATED: 401,
}


class ServingError(Exception):
    """An answer other than OK: a canonical code (as in gRPC) and the message that the caller sees.

    Args:
        code: the canonical code.
        message: what the caller sees.
        http: the status with which REST answers, where it is not that of the code.
        inputs: those of the signature that it is about, see `serving.model_server.sources`.
    """

    def __init__(self, code: int, message: str, http: int | None = None, inputs: typing.Collection[str] = ()):
        super().__init__(message)
        self.code = code
        self.message = message
        self.http = http
        self.inputs = inputs


def from_exception(error: BaseException) -> ServingError:
    """Returns `error` as a ServingError: errors of a graph keep their code, unforeseen ones are INTERNAL."""
    if isinstance(error, ServingError):
        result = error
    elif isinstance(error, tf.errors.OpError):
        result = ServingError(error.error_code, error.message.removeprefix(saved_model.PYTHON_PREFIX))
    elif isinstance(error, asyncio.TimeoutError):
        result = ServingError(DEADLINE_EXCEEDED, "The request took longer than the server's time-out for it.")
    else:
        result = ServingError(INTERNAL, f"{type(error).__name__}: {error}")
    if len(result.message) > MAX_MESSAGE_SIZE:
        result = ServingError(result.code, result.message[:MAX_MESSAGE_SIZE] + "...TRUNCATED", result.http)
    return result


def report(call: str, error: BaseException) -> ServingError:
    """Returns `error` as a ServingError, and logs what is no client's fault; what nobody foresaw with its traceback.

    Args:
        call: what was called, as the log shall name it.
        error: what it raised.
    """
    failure = from_exception(error)
    if http_status(failure.code) == 500:
        unforeseen = None if isinstance(error, ServingError) else error
        _log.error("%.200s failed: %s", call, failure.message, exc_info=unforeseen)
    return failure


def name_of(code: int) -> str:
    """Returns the name of a canonical code.

    >>> name_of(3)
    'INVALID_ARGUMENT'
    """
    return error_codes_pb2.Code.Name(code)


def http_status(code: int) -> int:
    """Returns the HTTP status with which the REST API answers a canonical code.

    >>> http_status(3), http_status(5), http_status(13)
    (400, 404, 500)
    """
    return _HTTP_STATUS.get(code, 500)
