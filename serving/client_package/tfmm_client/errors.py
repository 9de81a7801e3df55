"""What a call may fail with: one tree of exceptions, the same over gRPC and REST."""

from __future__ import annotations


class PredictError(Exception):
    """A server's answer other than OK, with its message, or none.

    Attributes:
        code: gRPC's name of it, or the HTTP status.
        message: what was said.
    """

    def __init__(self, code: str, message: str):
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class InvalidRequest(PredictError, ValueError):
    """The model cannot take the request: the same request is refused again."""


class Unauthenticated(PredictError):
    """The server asks for a token, and got none or another one."""


class PermissionDenied(PredictError):
    """Nobody may do this there."""


class NotFound(PredictError):
    """The model, the version or the label is not served."""


class ResourceExhausted(PredictError):
    """The server has too much to do, or the request is larger than it takes."""


class DeadlineExceeded(PredictError, TimeoutError):
    """No answer in time, all tries together."""


class Unavailable(PredictError):
    """No replica can be reached, or none is ready, after all tries."""


class ServerError(PredictError):
    """The server failed, or answered what this client does not know."""


_KINDS: dict[str, type[PredictError]] = {
    "INVALID_ARGUMENT": InvalidRequest, "FAILED_PRECONDITION": InvalidRequest, "OUT_OF_RANGE": InvalidRequest,
    "UNAUTHENTICATED": Unauthenticated, "PERMISSION_DENIED": PermissionDenied, "NOT_FOUND": NotFound,
    "RESOURCE_EXHAUSTED": ResourceExhausted, "DEADLINE_EXCEEDED": DeadlineExceeded, "UNAVAILABLE": Unavailable,
    "CANCELLED": Unavailable, "499": Unavailable,  # by the server, which ends: the caller never hears of its own
    "400": InvalidRequest, "401": Unauthenticated, "403": PermissionDenied, "404": NotFound,
    "408": DeadlineExceeded, "413": ResourceExhausted, "429": ResourceExhausted,
    "502": Unavailable, "503": Unavailable, "504": DeadlineExceeded,  # 502: a proxy's, whose server is away
}  # fmt: skip


def of(code: str, message: str) -> PredictError:
    """Returns the exception for gRPC's name of a code, or an HTTP status.

    >>> of("NOT_FOUND", "no such model"), of("404", "no such model")
    (NotFound('NOT_FOUND: no such model'), NotFound('404: no such model'))
    """
    return _KINDS.get(code, ServerError)(code, message)
