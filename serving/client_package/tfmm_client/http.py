"""REST by httpx: what both clients send, and what an answer means."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import ssl
import threading
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
    given = [url for url in urls if url is not None]
    hosts = {httpx.URL(url).host for url in given}
    direct = {f"all://{f'[{host}]' if ':' in host else host}": None for host in hosts if access_lib.is_local(host)}
    has_tls = any(url.startswith("https:") for url in given)
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


async def send(client: httpx.AsyncClient, step: Send, connect_s: float) -> typing.Any:
    """Sends a request; returns its answer's JSON.

    Raises:
        PredictError: it is another than OK, or not whole in time, however slowly it comes.
    """
    sent = client.request(**arguments(step, connect_s))
    try:
        response = await asyncio.wait_for(sent, step.timeout_s)
    except httpx.HTTPError as error:
        raise failure(error, step.timeout_s, connect_s) from error
    except asyncio.TimeoutError as error:
        raise late(step.timeout_s) from error
    return parsed(response.status_code, response.content)


class Sender:
    """Sends for callers with threads, over connections that are kept, from a thread that starts with the first request.

    A socket that blocks can be given a time for each read, but none for all; so that an answer which drips ends with
    its deadline, requests are tasks of an event loop, which are cancelled.
    """

    def __init__(self, **settings: typing.Any):
        self._client = httpx.AsyncClient(**settings)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def send(self, step: Send, connect_s: float) -> typing.Any:
        """As the function of this name."""
        with self._lock:
            if self._is_closed:
                raise RuntimeError("The client is closed.")
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(target=self._loop.run_forever, name="tfmm_client REST", daemon=True)
                self._thread.start()
            task = asyncio.run_coroutine_threadsafe(send(self._client, step, connect_s), self._loop)
        try:
            return task.result()
        except concurrent.futures.CancelledError as error:
            raise RuntimeError("The client was closed while it sent.") from error
        finally:
            task.cancel()  # where the caller is interrupted

    def close(self) -> None:
        with self._lock:
            self._is_closed, loop = True, self._loop
            self._loop = None
        if loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), loop).result()
            loop.call_soon_threadsafe(loop.stop)
            self._thread.join()
            loop.close()

    async def _end(self) -> None:
        """Ends what is being sent, and the connections."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()


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


def failure(error: httpx.HTTPError, timeout_s: float, connect_s: float) -> errors.PredictError:
    """Returns what an error of the way to a server means, where the connection had `connect_s` of `timeout_s`."""
    is_away = isinstance(error, httpx.ConnectTimeout) and timeout_s > connect_s
    if isinstance(error, httpx.TimeoutException) and not is_away:
        return late(timeout_s)
    return errors.of("UNAVAILABLE", f"{type(error).__name__}: {error}")


def late(timeout_s: float) -> errors.PredictError:
    return errors.of("DEADLINE_EXCEEDED", f"No whole answer within {timeout_s:.3g} s.")
