"""REST by httpx: what both clients send, and what an answer means."""

from __future__ import annotations

import json
import ssl
import time
import typing

import httpx

from tfmm_client import access as access_lib
from tfmm_client import errors
from tfmm_client.steps import Send


def settings(access: access_lib.Access, urls: typing.Iterable[str | None]) -> dict[str, typing.Any]:
    """Returns the arguments of an HTTP client.

    A redirect is not followed: no such server redirects. What the environment names as a proxy is asked for other
    machines' addresses alone: to this machine's, it would be sent the token in the clear.
    """
    urls = [url for url in urls if url is not None]
    hosts = {httpx.URL(url).host for url in urls}
    direct = {f"all://{f'[{host}]' if ':' in host else host}": None for host in hosts if access_lib.is_local(host)}
    has_tls = any(url.startswith("https:") for url in urls)
    verify: ssl.SSLContext | bool = access.context() if has_tls else False
    return {"verify": verify, "follow_redirects": False, "headers": dict(access.metadata()), "mounts": direct}


def arguments(step: Send, connect_s: float) -> dict[str, typing.Any]:
    """Returns the arguments of a request, whose connection must stand within so many seconds."""
    return {
        "method": "GET" if step.body is None else "POST",
        "url": f"{(step.replica.url or '').rstrip('/')}{step.path}",
        "content": step.body,
        "headers": {"content-type": "application/json", access_lib.TIME_OUT: str(round(1e3 * step.timeout_s))},
        "timeout": httpx.Timeout(step.timeout_s, connect=min(connect_s, step.timeout_s)),
    }


def read(response: httpx.Response, timeout_s: float) -> bytes:
    """Returns an answer's body.

    Raises:
        DeadlineExceeded: it comes too slowly.
    """
    end, parts = time.monotonic() + timeout_s, []
    for part in response.iter_bytes():
        parts.append(part)
        if time.monotonic() > end:
            raise errors.of("DEADLINE_EXCEEDED", f"No whole answer within {timeout_s:.3g} s.")
    return b"".join(parts)


def parsed(status: int, body: bytes) -> typing.Any:
    """Returns an answer's JSON.

    Raises:
        PredictError: it is another than OK, or none of such a server's.
    """
    try:
        answer = json.loads(body)
    except ValueError:
        answer = None
    if status == 200 and isinstance(answer, dict):
        return answer
    said = answer.get("error") if isinstance(answer, dict) else None
    raise errors.of(str(status), said if isinstance(said, str) else body.decode("utf-8", "replace"))


def failure(error: httpx.HTTPError, has_time: bool) -> errors.PredictError:
    """Returns what an error of the way to a server means; `has_time`: when it does not connect, there is time left."""
    is_away = isinstance(error, httpx.ConnectTimeout) and has_time
    is_late = isinstance(error, httpx.TimeoutException) and not is_away
    return errors.of("DEADLINE_EXCEEDED" if is_late else "UNAVAILABLE", f"{type(error).__name__}: {error}")
