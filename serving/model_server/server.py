"""Runs the gRPC and REST ends over one model manager until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import errno
import json
import logging
import math
import os
import socket
import typing

import grpc
import uvicorn

from serving import channel, metrics, served_log
from serving.model_server import access, config, errors, http_limits
from serving.model_server.answers import Answers
from serving.model_server.config import ModelConfig
from serving.model_server.execution import Executor
from serving.model_server.grpc_service import Statuses, add_services
from serving.model_server.limits import Limits
from serving.model_server.logged import Logs
from serving.model_server.manager import ModelManager
from serving.model_server.metrics import ServerMetrics
from serving.model_server.rest import application

_log = logging.getLogger("serving.model_server")
_KEEP_ALIVE_S = 600
_GRPC_ARGUMENTS: dict[str, int | str] = {
    "grpc.max_send_message_length": -1,
    "grpc.so_reuseport": 0,  # else a second server on the port would take half of the calls
    "grpc.keepalive_time_ms": 60_000,  # connections whose client is gone are closed
    "grpc.keepalive_timeout_ms": 20_000,
}


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says."""

    models: tuple[ModelConfig, ...]
    model_config_file: str = ""  # where they stand, if it is to be read again
    config_poll_wait_s: float = 0.0  # seconds between those readings; 0: none
    host: str = "127.0.0.1"
    port: int = 8500  # 0: any free one; -1: none
    grpc_socket_path: str = ""  # a UNIX socket as well
    rest_api_port: int = -1  # 0: any free one; -1: no REST
    ready_file: str = ""
    poll_wait_s: float = 1.0
    max_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    warm_up: bool = True
    warm_up_iterations: int = 1
    labels_may_lead: bool = False  # whether a reload takes new labels for versions that are not available yet
    session_threads: tuple[int, int] = (0, 0)  # inter-op and intra-op; 0: one per core
    as_tensor_content: bool = False
    verify_signature_methods: bool = False  # whether Classify and Regress look at a signature's method_name
    with_health: bool = True  # whether grpc.health.v1 is served
    rest_timeout_s: float = 30.0  # 0: none
    rest_allows_other_origins: bool = False  # CORS
    max_grpc_calls: int = 0  # at a time; 0: any
    grpc_arguments: tuple[tuple[str, int | str], ...] = ()  # of gRPC core
    num_threads: int = 0  # model calls at a time; 0: one per core
    limits: Limits = dataclasses.field(default_factory=Limits)
    ssl: access.SSLConfig | None = None  # None: no TLS
    allow_insecure: bool = False  # whether `host` may face a network without it
    token: str = dataclasses.field(default="", repr=False)  # for upserts and reloads; "": none is set
    index_models: tuple[str, ...] | None = None  # whose versions wait for the item index; None for all
    index_wait_s: float = 0.0  # for how long a loaded version waits for its item index; negative: without end
    metrics_path: str = ""  # of Prometheus metrics on the REST port; "": none there
    metrics_port: int = -1  # of theirs alone; 0: any free one; -1: none
    metrics_host: str = "127.0.0.1"
    logs: Logs = dataclasses.field(default_factory=Logs)  # of what is served; closed when the server ends
    stop_grace_s: float = 5.0

    def __post_init__(self) -> None:
        if faults := access.faults(self.host, self.ssl is not None, self.allow_insecure):
            raise ValueError(" ".join(faults))


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the caller of `serve`."""

    def capture_signals(self):  # type: ignore[no-untyped-def]
        return contextlib.nullcontext()


async def serve(
    options: Options, stop: asyncio.Event, collectors: typing.Sequence[metrics.Collector] = ()
) -> None:
    """Serves until `stop` is set, then ends open requests and frees every model.

    Ports answer once of every model a version is loaded, or could not be; before, they refuse connections.

    Once every model has a version in service, `ready_file` gets {"pid", "grpc_port", "rest_port"} as JSON, with
    "metrics_port" where there is one.

    Args:
        options: what the command line says.
        stop: ends it.
        collectors: give further metrics, of others in this process.
    Raises:
        OSError: a port is taken.
        RuntimeError: REST ended by itself.
    """
    manager = ModelManager(
        options.models,
        poll_wait_s=options.poll_wait_s,
        max_load_retries=options.max_load_retries,
        load_retry_interval_s=options.load_retry_interval_s,
        warm_up=options.warm_up,
        warm_up_iterations=options.warm_up_iterations,
        labels_may_lead=options.labels_may_lead,
        session_threads=options.session_threads,
        limits=options.limits,
        index_models=options.index_models,
        index_wait_s=options.index_wait_s if options.index_wait_s >= 0 else math.inf,
        is_logged=bool(options.logs.requests),
    )
    executor = Executor(options.num_threads or os.cpu_count() or 1, options.limits)
    answers = Answers(
        manager,
        as_tensor_content=options.as_tensor_content,
        verify_methods=options.verify_signature_methods,
        guard=access.Guard(options.token, is_local=channel.is_local(options.host)),
        logs=options.logs,
    )
    arguments = _GRPC_ARGUMENTS | {"grpc.max_receive_message_length": options.limits.max_request_bytes}
    arguments |= dict(options.grpc_arguments)
    logs = options.logs.all()
    measured = ServerMetrics(manager, executor, [*collectors, *([served_log.LogMetrics(logs)] if logs else [])])
    grpc_server = grpc.aio.server(
        options=list(arguments.items()),
        interceptors=[Statuses(measured)],
        maximum_concurrent_rpcs=options.max_grpc_calls or None,
    )
    add_services(grpc_server, answers, executor, with_health=options.with_health)
    listener = _reserve("REST", options.host, options.rest_api_port) if options.rest_api_port >= 0 else None
    rest_port = listener.getsockname()[1] if listener else None
    loop = asyncio.get_running_loop()
    background, rest, rest_ends, reserved = [], None, None, None
    metrics_end = contextlib.ExitStack()
    try:
        if options.port >= 0:
            reserved = _reserve("gRPC", options.host, options.port)
        grpc_port = reserved.getsockname()[1] if reserved else None
        metrics_port = metrics_end.enter_context(
            metrics.served(measured.registry, options.metrics_port, options.metrics_host)
        )
        manager.start()
        if options.model_config_file and options.config_poll_wait_s:
            background.append(asyncio.create_task(_follow_config(manager, options)))
        while not manager.has_tried() and not stop.is_set():
            await asyncio.sleep(0.02)
        if listener:
            _listen("REST", listener)
        _add_ports(grpc_server, options, grpc_port)
        if reserved:
            reserved.close()  # not before, or another could be given a port that the system chose for this one
        await grpc_server.start()
        facts = {"pid": os.getpid(), "grpc_port": grpc_port, "rest_port": rest_port}
        if metrics_port is not None:
            facts["metrics_port"] = metrics_port
        background.append(asyncio.create_task(_announce(manager, options.ready_file, facts)))
        if listener:
            app = application(
                answers,
                executor,
                measured,
                metrics_path=options.metrics_path,
                timeout_s=options.rest_timeout_s,
                cors=options.rest_allows_other_origins,
            )
            rest = _Uvicorn(_rest_config(app, options))
            rest_ends = asyncio.create_task(rest.serve(sockets=[listener]))
        _log.info(
            "listening: gRPC on %s, REST on %s",
            options.grpc_socket_path if grpc_port is None else f"{options.host}:{grpc_port}",
            f"{options.host}:{rest_port}" if listener else "no port",
        )
        await _until(stop, rest_ends)
    finally:
        for task in background:
            task.cancel()
        if rest is not None:
            rest.should_exit = True
        await grpc_server.stop(options.stop_grace_s)
        await asyncio.gather(*background, *filter(None, [rest_ends]), return_exceptions=True)
        await loop.run_in_executor(None, metrics_end.close)
        await loop.run_in_executor(None, manager.stop)
        executor.close()
        await loop.run_in_executor(None, options.logs.close)  # after the last request
        for end in filter(None, [listener, reserved]):
            end.close()
        if options.ready_file:
            with contextlib.suppress(FileNotFoundError):
                os.remove(options.ready_file)


async def _until(stop: asyncio.Event, rest_ends: asyncio.Task[None] | None) -> None:
    """Waits for `stop`; raises what ends REST before."""
    stops = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait([stops, *filter(None, [rest_ends])], return_when=asyncio.FIRST_COMPLETED)
        if rest_ends is not None and rest_ends.done() and not stop.is_set():
            await rest_ends
            raise RuntimeError("REST ended by itself.")
    finally:
        stops.cancel()


async def _announce(manager: ModelManager, ready_file: str, facts: dict[str, int | None]) -> None:
    while not manager.is_ready():
        await asyncio.sleep(0.02)
    _log.info("ready")
    if ready_file:
        temporary = f"{ready_file}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(facts, file)
        os.replace(temporary, ready_file)


async def _follow_config(manager: ModelManager, options: Options) -> None:
    """Reads the config file again and again; one that cannot be used leaves the models as they are, and is said."""
    loop, applied = asyncio.get_running_loop(), options.models
    while True:
        await asyncio.sleep(options.config_poll_wait_s)
        try:
            models = tuple(await loop.run_in_executor(None, config.read_file, options.model_config_file))
            if models != applied:
                await loop.run_in_executor(None, manager.reload, models)
                applied = models
                _log.info("%s is in force: %s", options.model_config_file, [model.name for model in models])
        except (errors.ServingError, OSError) as error:
            _log.error("%s is not in force: %s", options.model_config_file, error)


def _rest_config(app: typing.Any, options: Options) -> uvicorn.Config:
    result = uvicorn.Config(
        app,
        http=http_limits.protocol(options.limits),
        log_config=None,
        access_log=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        lifespan="off",
        timeout_graceful_shutdown=int(options.stop_grace_s),
    )
    result.load()
    if options.ssl is not None:
        result.ssl = options.ssl.context()
    return result


def _add_ports(server: grpc.aio.Server, options: Options, port: int | None) -> None:
    if port is not None:
        address = f"[{options.host}]:{port}" if ":" in options.host else f"{options.host}:{port}"
        with _naming("gRPC", options.host, port):
            if options.ssl is None:
                server.add_insecure_port(address)
            else:
                server.add_secure_port(address, options.ssl.grpc_credentials())
    if options.grpc_socket_path:
        try:
            server.add_insecure_port(f"unix:{options.grpc_socket_path}")
        except RuntimeError as error:
            raise OSError(
                f"gRPC cannot listen on {options.grpc_socket_path}: the folder must exist and may be written, and the "
                "path have at most 107 bytes."
            ) from error


def _reserve(name: str, host: str, port: int) -> socket.socket:
    """Finds and binds a port; it refuses connections until something listens.

    It is not this server's yet: another that binds with SO_REUSEADDR, as servers do, may have it too until one of them
    listens.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sends at once on sockets that name their protocol; others wait 40 ms for the client's ACK
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        with _naming(name, host, port):
            listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


def _listen(name: str, listener: socket.socket) -> None:
    """Takes a reserved port for good; whoever serves on it listens again, which changes nothing."""
    with _naming(name, *listener.getsockname()[:2]):
        listener.listen()


@contextlib.contextmanager
def _naming(name: str, host: str, port: int) -> typing.Iterator[None]:
    """Names the port in what goes wrong with it."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # the latter is gRPC's, which says no more
        code = error.errno if isinstance(error, OSError) else errno.EADDRINUSE
        reason = error.strerror if isinstance(error, OSError) else os.strerror(errno.EADDRINUSE)
        raise OSError(code, f"{name} cannot listen on {host}, port {port}: {reason}") from error
