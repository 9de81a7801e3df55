"""TensorFlow Serving's REST API as an ASGI application."""

from __future__ import annotations

import asyncio
import re
import time
import typing
import urllib.parse
import zlib

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    regression_pb2,
)

from serving import channel
from serving import metrics as metrics_lib
from serving.model_server import errors, examples, http_limits, json_tensors
from serving.model_server.answers import METADATA_FIELD, Answers
from serving.model_server.execution import Executor, Terms
from serving.model_server.metrics import ServerMetrics
from serving.served_record import REQUEST_ID

_PREFIX = "/v1/"
_TARGET = r"(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
_INFERENCE = re.compile(
    rf"/v1/models/(?P<name>[^/:]+){_TARGET}:(?P<action>classify|regress|predict)", re.IGNORECASE | re.ASCII
)
_STATUS = re.compile(rf"/v1/models(?:/(?P<name>[^/:]+))?{_TARGET}(?:/(?P<action>metadata))?", re.IGNORECASE | re.ASCII)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_CORS = {
    "access-control-allow-origin": "*",
    "access-control-allow-methods": "POST, GET",
    "access-control-allow-headers": "Content-Type",
}
_CLOSE = {"connection": "close"}  # where a body was not read to its end


def application(
    answers: Answers,
    executor: Executor,
    metrics: ServerMetrics,
    *,
    metrics_path: str = "",
    timeout_s: float = 0.0,
    cors: bool = False,
) -> Starlette:
    """Returns the application: predict, classify, regress, status and metadata of every model under /v1/models.

    Args:
        answers: what answers requests.
        executor: where they run.
        metrics: what counts them.
        metrics_path: where the metrics are read; "" for nowhere.
        timeout_s: after which a request is answered DEADLINE_EXCEEDED; 0 for none.
        cors: whether pages of other origins may call.
    """

    limits = executor.limits

    async def v1(request: Request) -> Response:
        path = _path(request)
        if not path.lower().startswith(_PREFIX) and path.lower() != _PREFIX.rstrip("/"):
            return PlainTextResponse("Not Found", 404)
        started, code, status = time.perf_counter(), errors.CANCELLED, 200
        action, spec, request_id = "", model_pb2.ModelSpec(), ""
        try:
            if request.method == "OPTIONS":
                content = _preflight(request)
            else:
                action = parse_path(request.method, path, spec)
                until = http_limits.deadline(request, timeout_s)
                body = _unpacked(request, await http_limits.read_body(request, limits), limits.max_request_bytes)
                terms = Terms(until, ("REST", action), len(body))
                authorization = request.headers.get(channel.AUTHORIZATION)
                request_id = answers.request_id(request.headers.get(REQUEST_ID)) if action == "predict" else ""
                call = executor.submit(_ACTIONS[action], answers, spec, body, authorization, request_id, terms=terms)
                content = await http_limits.unless_gone(request, call, until)
            code = errors.OK
        except Exception as error:  # every failure becomes a JSON answer with its code
            failure = errors.report(f"{request.method} {path}", error)
            content, code = json_tensors.dump({"error": failure.message}), failure.code
            status = failure.http or errors.http_status(code)
        finally:
            metrics.record(action, "REST", spec, code, time.perf_counter() - started)
        headers = (_CORS if cors else {}) | (_CLOSE if status in (408, 413) else {})
        headers |= {REQUEST_ID: request_id} if request_id else {}
        return Response(content, status, headers, media_type="application/json")

    async def page(request: Request) -> Response:
        return PlainTextResponse(await asyncio.to_thread(metrics_lib.page, metrics.registry))

    pages = [Route(metrics_path, page, methods=["GET"])] if metrics_path else []
    return Starlette(routes=[*pages, Route("/{path:path}", v1, methods=_METHODS)])


def _path(request: Request) -> str:
    """Returns path and query as they were sent."""
    path = request.scope["raw_path"].decode("latin-1")
    query = request.scope["query_string"].decode("latin-1")
    return f"{path}?{query}" if query else path


def _preflight(request: Request) -> bytes:
    if not re.match("https?://", request.headers.get("origin", "")):
        raise errors.ServingError(errors.FAILED_PRECONDITION, "OPTIONS needs the header Origin of a CORS preflight.")
    return b""


def _unpacked(request: Request, body: bytes, max_bytes: int) -> bytes:
    if "gzip" not in request.headers.get("content-encoding", ""):
        return body
    unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        result = unpacker.decompress(body, max_bytes)
    except zlib.error as error:
        raise errors.ServingError(errors.INVALID_ARGUMENT, f"The body is no gzip: {error}") from error
    if not unpacker.eof:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT, f"The gzip body ends early, or holds more than {max_bytes} bytes."
        )
    return result


def parse_path(method: str, path: str, spec: model_pb2.ModelSpec) -> str:
    """Returns what a request asks for, of `_ACTIONS`, and fills in which model it asks.

    Raises:
        ServingError: INVALID_ARGUMENT where it asks for nothing that there is.

    >>> parse_path("POST", "/v1/models/tfmm:predict", model_pb2.ModelSpec())
    'predict'
    """
    pattern = {"POST": _INFERENCE, "GET": _STATUS}.get(method)
    match = pattern.fullmatch(path) if pattern else None
    if match is None:
        raise errors.ServingError(errors.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
    if not match["name"]:
        raise errors.ServingError(errors.INVALID_ARGUMENT, "Missing model name in request: GET /v1/models/<name>.")
    spec.name = urllib.parse.unquote(match["name"])
    if match["version"]:
        try:
            spec.version.value = int(match["version"])
        except ValueError as error:
            raise errors.ServingError(
                errors.INVALID_ARGUMENT, f"Failed to convert version: {match['version']} to numeric."
            ) from error
    if match["label"]:
        spec.version_label = urllib.parse.unquote(match["label"])
    return (match["action"] or "status").lower()


def _predict(
    answers: Answers, spec: model_pb2.ModelSpec, body: bytes, authorization: str | None, request_id: str
) -> bytes:
    request = json_tensors.parse_object(body)
    spec.signature_name = json_tensors.signature_name(request)
    with answers.lend_for(spec, authorization, request_id) as servable:
        definition = servable.signature(spec.signature_name)
        kind, value = json_tensors.predict_values(request)
        outputs = servable.run(spec.signature_name, json_tensors.decode(kind, value, definition))
        return json_tensors.encode_response(kind, outputs)


def _classify(answers: Answers, spec: model_pb2.ModelSpec, body: bytes, *_: str | None) -> bytes:
    request = classification_pb2.ClassificationRequest()
    response = answers.classify(_read_examples(request, spec, body))
    return _results(
        [
            [[entry.label, json_tensors.shortest(entry.score)] for entry in row.classes]
            for row in response.result.classifications
        ]
    )


def _regress(answers: Answers, spec: model_pb2.ModelSpec, body: bytes, *_: str | None) -> bytes:
    response = answers.regress(_read_examples(regression_pb2.RegressionRequest(), spec, body))
    return _results([json_tensors.shortest(entry.value) for entry in response.result.regressions])


def _read_examples(request: typing.Any, spec: model_pb2.ModelSpec, body: bytes) -> typing.Any:
    values = json_tensors.parse_object(body)
    spec.signature_name = json_tensors.signature_name(values)
    request.model_spec.CopyFrom(spec)
    examples.read(values, request.input)
    return request


def _results(rows: list[typing.Any]) -> bytes:
    return json_tensors.dump({"results": rows})


def _status(answers: Answers, spec: model_pb2.ModelSpec, *_: typing.Any) -> bytes:
    return _print(answers.status(get_model_status_pb2.GetModelStatusRequest(model_spec=spec)))


def _metadata(answers: Answers, spec: model_pb2.ModelSpec, *_: typing.Any) -> bytes:
    request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec, metadata_field=[METADATA_FIELD])
    return _print(answers.metadata(request))


_ACTIONS: dict[str, typing.Callable[..., bytes]] = {
    "predict": _predict,
    "classify": _classify,
    "regress": _regress,
    "status": _status,
    "metadata": _metadata,
}


def _print(message: typing.Any) -> bytes:
    options: dict[str, typing.Any] = {"preserving_proto_field_name": True}
    try:
        text = json_format.MessageToJson(message, including_default_value_fields=True, **options)
    except TypeError:  # protobuf 5 names it otherwise
        text = json_format.MessageToJson(message, always_print_fields_with_no_presence=True, **options)
    return text.encode()
