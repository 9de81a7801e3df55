"""TensorFlow Serving's REST API as an ASGI application."""

from __future__ import annotations

import json
import re
import typing

from google.protobuf import json_format
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from serving.model_server import errors, json_tensors
from serving.model_server.execution import Executor
from serving.model_server.manager import ModelManager
from serving.model_server.responses import metadata_response, status_response

_PATH = re.compile(
    r"/v1/models/(?P<name>[^/:]+)(?:/versions/(?P<version>\d+)|/labels/(?P<label>[^/:]+))?"
    r"(?P<rest>/metadata|:predict|:classify|:regress)?",
    re.IGNORECASE,
)
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


def application(manager: ModelManager, executor: Executor) -> Starlette:
    """Returns the application: predict, status and metadata of every model under /v1/models."""

    async def v1(request: Request) -> Response:
        try:
            body = await request.body()
            return _json(await executor.submit(_answer, manager, request.method, request.url.path, body))
        except Exception as error:  # every failure becomes a JSON answer with its code
            failure = errors.from_exception(error)
            return _json(json.dumps({"error": failure.message}).encode(), errors.http_status(failure.code))

    return Starlette(routes=[Route("/v1/{path:path}", v1, methods=_METHODS)])


def _json(content: bytes, status: int = 200) -> Response:
    return Response(content, status, media_type="application/json")


def _answer(manager: ModelManager, method: str, path: str, body: bytes) -> bytes:
    match = _PATH.fullmatch(path)
    action = (match["rest"] or "").lower() if match else ""
    if match is None or (method == "POST") != action.startswith(":") or method not in ("GET", "POST"):
        raise errors.ServingError(errors.INVALID_ARGUMENT, f"Malformed request: {method} {path}")
    version = int(match["version"]) if match["version"] else None
    if version is not None and version >= 1 << 63:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT, f"Failed to convert version: {match['version']} to numeric."
        )
    name, label = match["name"], match["label"]
    if action == ":predict":
        return _predict(manager, name, version, label, body)
    if action.startswith(":"):
        raise errors.ServingError(errors.UNIMPLEMENTED, f"{action[1:]} is not served: use predict.")
    if action == "/metadata":
        return _print(metadata_response(manager, name, version, label))
    return _print(status_response(manager, name, version, label))


def _predict(manager: ModelManager, name: str, version: int | None, label: str | None, body: bytes) -> bytes:
    with manager.lend(name, version, label) as servable:
        signature, kind, value = json_tensors.parse_request(body)
        definition = servable.signature(signature)
        outputs = servable.run(signature, json_tensors.decode(kind, value, definition))
        return json_tensors.encode_response(kind, outputs)


def _print(message: typing.Any) -> bytes:
    options: dict[str, typing.Any] = {"preserving_proto_field_name": True}
    try:
        text = json_format.MessageToJson(message, including_default_value_fields=True, **options)
    except TypeError:  # protobuf 5 names it otherwise
        text = json_format.MessageToJson(message, always_print_fields_with_no_presence=True, **options)
    return text.encode()
