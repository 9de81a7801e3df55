"""The page as an ASGI application: `/` for people, `/data.json` for programs and for the page itself."""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import pathlib
import secrets
import typing

import jinja2
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from serving import channel
from serving.page.document import Document

DATA, PICTURE = "/data.json", "/picture"
_KINDS = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}  # of pictures, by how they begin
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]", "[")  # the last is how an older Starlette reads that before it
_ASKS = {"www-authenticate": 'Basic realm="tfmm", charset="UTF-8"'}  # so that a browser shows its own dialog
_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}


def application(
    document: typing.Callable[[], Document],
    picture: typing.Callable[[str], bytes | None] = lambda item: None,
    host: str = "127.0.0.1",
    token: str = "",
) -> Starlette:
    """Returns the application.

    Args:
        document: returns what is shown.
        picture: returns an item's picture by its id as a section named it; None: it has none.
        host: the address that is bound. One of this machine alone answers to its own names, so that no page of another
            name reads it in a browser here (DNS rebinding); one on a network has names that are not known.
        token: that who reads it must bring; "": none is asked for.
    """
    hosts = (host, *_LOOPBACK) if channel.is_local(host) else ("*",)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((pathlib.Path(__file__).parent / "page.html.j2").read_text("utf-8"))

    async def page(request: Request) -> Response:
        nonce = secrets.token_urlsafe(16)  # no script but the page's own runs, and nothing is loaded from elsewhere
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self'; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )
        html = template.render(**document(), nonce=nonce, data_path=DATA)
        return HTMLResponse(html, headers={**_HEADERS, "content-security-policy": policy})

    async def data(request: Request) -> Response:
        body = json.dumps(document(), allow_nan=False, ensure_ascii=False)
        return Response(body, media_type="application/json", headers=_HEADERS)

    def one_picture(request: Request) -> Response:
        content = picture(request.path_params["item"]) or b""  # in a thread: it may read a table
        kind = next((kind for start, kind in _KINDS.items() if content.startswith(start)), None)
        if kind is None:
            return Response(status_code=404, headers=_HEADERS)
        return Response(content, media_type=kind, headers={**_HEADERS, "cache-control": "private, max-age=60"})

    async def icon(request: Request) -> Response:
        return Response(status_code=204)  # browsers ask for it

    return Starlette(routes=[
        Route("/", page), Route(DATA, data), Route(f"{PICTURE}/{{item}}", one_picture), Route("/favicon.ico", icon),
    ], middleware=[
        Middleware(TrustedHostMiddleware, allowed_hosts=hosts, www_redirect=False), Middleware(_Guard, token=token),
    ])  # fmt: skip


class _Guard:
    """Lets those in who bring the token: as the password of any user name (Basic), or as it is (Bearer)."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app, self._token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._token or self._has_token(dict(scope["headers"])):
            return await self._app(scope, receive, send)
        said = "The page needs the token of its --token_file: as the password of any user name, or as a Bearer token.\n"
        return await Response(said, 401, {**_HEADERS, **_ASKS}, "text/plain")(scope, receive, send)

    def _has_token(self, headers: typing.Mapping[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != b"bearer":
            return False
        return hmac.compare_digest(given, self._token)
