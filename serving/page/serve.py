"""Serves the page until told to stop."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import typing

import uvicorn

from serving.model_server import access


def verify(host: str, ssl_config_file: str, allow_insecure: bool) -> access.SSLConfig | None:
    """Returns what TLS takes, where it is asked for.

    Raises:
        ValueError: the address faces a network without TLS, by the model server's own rule; or no SSLConfig.
    """
    if faults := access.faults(host, bool(ssl_config_file), allow_insecure):
        raise ValueError("\n".join(faults))
    return access.read_ssl_config(ssl_config_file) if ssl_config_file else None


class _Uvicorn(uvicorn.Server):
    """Ends well at a signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> typing.Iterator[None]:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: setattr(self, "should_exit", True))
        yield


def run(
    app: typing.Any,
    host: str,
    port: int,
    ssl: access.SSLConfig | None,
    on_start: typing.Callable[[str], object],
    on_server: typing.Callable[[uvicorn.Server], object] = lambda server: None,
) -> None:
    """Serves an application until SIGTERM or SIGINT.

    Args:
        app: the application.
        host, port: where; port 0 is any free one.
        ssl: for https; None: http.
        on_start: is told the URL once connections are taken.
        on_server: is given the server, whose `should_exit` ends it from another thread.
    Raises:
        OSError: the port is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.closing(socket.create_server((host, port), family=family)) as listener:
        config = uvicorn.Config(app, log_config=None, access_log=False, lifespan="off", timeout_graceful_shutdown=2)
        config.load()
        if ssl is not None:
            config.ssl = ssl.context()
        name = f"[{host}]" if ":" in host else host
        server = _Uvicorn(config)
        on_server(server)
        on_start(f"{'https' if ssl else 'http'}://{name}:{listener.getsockname()[1]}/")
        server.run(sockets=[listener])
