"""Patience with REST's clients: how much they may send, in which time, and whether they still wait."""

from __future__ import annotations

import asyncio
import contextlib
import time
import typing

import h11
from starlette.requests import ClientDisconnect, Request
from uvicorn.protocols.http.h11_impl import H11Protocol

from serving import channel
from serving.model_server.errors import CANCELLED, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ServingError
from serving.model_server.limits import Limits

_LINGER_S = 2.0  # in which a client may finish a body that is not read, so that it sees the answer
T = typing.TypeVar("T")


def deadline(request: Request, timeout_s: float) -> float | None:
    """Returns the monotonic time until which a client waits, by the server's time-out (0: none) and its own header."""
    waits_s = [timeout_s] if timeout_s else []
    if (said := request.headers.get(channel.TIME_OUT)) is not None and said.isascii() and said.isdecimal():
        waits_s += [int(said[:12]) / 1000]
    return time.monotonic() + min(waits_s) if waits_s else None


async def read_body(request: Request, limits: Limits) -> bytes:
    """Reads a body of at most `max_request_bytes` within `send_timeout_seconds`.

    Raises:
        ServingError: with status 413 for a larger one, 408 for a slower one; CANCELLED where the client left.
    """
    declared = request.headers.get("content-length", "")
    size = int(declared[:20]) if declared.isdecimal() else 0
    parts: list[bytes] = []
    try:
        async with _patience(limits.send_timeout_seconds, "its body"):
            if size <= limits.max_request_bytes:
                size = 0
                async for part in request.stream():
                    parts.append(part)
                    size += len(part)
                    if size > limits.max_request_bytes:
                        parts.clear()
                        break
        if size > limits.max_request_bytes:
            await _linger(request)
            raise ServingError(
                RESOURCE_EXHAUSTED,
                f"A request's body may have {limits.max_request_bytes} bytes. Received: "
                f"{declared or f'more than {size}'}. Send several requests, or start the server with a larger "
                "--max_request_bytes.",
                http=413,
            )
    except ClientDisconnect as error:
        raise ServingError(CANCELLED, "The client left.") from error
    return b"".join(parts)


@contextlib.asynccontextmanager
async def _patience(timeout_s: float, what: str) -> typing.AsyncIterator[None]:
    task, is_over = asyncio.current_task(), False

    def end() -> None:
        nonlocal is_over
        is_over = True
        if task is not None:
            task.cancel()

    timer = asyncio.get_running_loop().call_later(timeout_s, end)
    try:
        yield
    except asyncio.CancelledError as error:
        if not is_over:
            raise
        raise ServingError(
            DEADLINE_EXCEEDED,
            f"A client must have sent {what} within {timeout_s:g} s. Send faster, or start the server with a larger "
            "--send_timeout_seconds.",
            http=408,
        ) from error
    finally:
        timer.cancel()


async def _linger(request: Request) -> None:
    """Lets what is on its way arrive, and keeps none of it: closing at once would hide the answer from the client."""
    if "expect" in request.headers:
        return
    with contextlib.suppress(ServingError, RuntimeError):  # the stream is used up where it was read before
        async with _patience(_LINGER_S, "its body"):
            while (message := await request.receive())["type"] == "http.request" and message.get("more_body"):
                pass


async def unless_gone(request: Request, call: typing.Coroutine[typing.Any, typing.Any, T], until: float | None) -> T:
    """Awaits a call; it is dropped, if it still waits, where its client leaves or `until` passes.

    Raises:
        ServingError: CANCELLED where the client left.
        asyncio.TimeoutError: `until` passed.
    """
    answer, gone = asyncio.ensure_future(call), asyncio.ensure_future(request.receive())
    try:
        timeout_s = None if until is None else max(0.0, until - time.monotonic())
        await asyncio.wait({answer, gone}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        if gone.done():
            raise ServingError(CANCELLED, "The client left.")
        raise asyncio.TimeoutError
    finally:
        answer.cancel()
        gone.cancel()
        await asyncio.gather(answer, gone, return_exceptions=True)


def protocol(limits: Limits) -> type[H11Protocol]:
    """Returns uvicorn's protocol with a time in which each request's headers must have come, from its first byte on."""

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, error: Exception | None) -> None:
            super().connection_lost(error)
            self._unwatch()

        def _watch(self) -> None:
            """Times the headers while they are awaited; a connection that rests between requests has its own time."""
            awaits_headers = self.conn.their_state is h11.IDLE and self.timeout_keep_alive_task is None
            if not awaits_headers:
                self._unwatch()
            elif self._timer is None:
                self._timer = self.loop.call_later(limits.send_timeout_seconds, self.transport.close)

        def _unwatch(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    return Patient
