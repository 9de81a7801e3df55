"""Runs the gRPC and REST ends over one model manager until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import os
import socket

import grpc
import uvicorn

from serving.model_server.config import ModelConfig
from serving.model_server.execution import Executor
from serving.model_server.grpc_service import add_services
from serving.model_server.manager import ModelManager
from serving.model_server.rest import application

_log = logging.getLogger("serving.model_server")
_UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
_KEEP_ALIVE_S = 600


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says."""

    models: tuple[ModelConfig, ...]
    host: str = "127.0.0.1"
    port: int = 8500  # 0: any free one
    rest_api_port: int = -1  # 0: any free one; -1: no REST
    ready_file: str = ""
    poll_wait_s: float = 1.0
    max_load_retries: int = 5
    load_retry_interval_s: float = 60.0
    warm_up: bool = True
    as_tensor_content: bool = False
    num_threads: int = 0  # model calls at a time; 0: one per core
    max_waiting: int = 1024  # requests that may wait for them
    stop_grace_s: float = 5.0


class _Uvicorn(uvicorn.Server):
    """Leaves signals to the caller of `serve`."""

    def capture_signals(self):  # type: ignore[no-untyped-def]
        return contextlib.nullcontext()


async def serve(options: Options, stop: asyncio.Event) -> None:
    """Serves until `stop` is set, then ends open requests and frees every model.

    Once every model has a version in service, `ready_file` gets {"pid", "grpc_port", "rest_port"} as JSON.

    Raises:
        OSError, RuntimeError: a port is taken.
    """
    manager = ModelManager(
        options.models,
        poll_wait_s=options.poll_wait_s,
        max_load_retries=options.max_load_retries,
        load_retry_interval_s=options.load_retry_interval_s,
        warm_up=options.warm_up,
    )
    executor = Executor(options.num_threads or os.cpu_count() or 1, options.max_waiting)
    grpc_server = grpc.aio.server(options=_UNLIMITED)
    add_services(grpc_server, manager, executor, as_tensor_content=options.as_tensor_content)
    grpc_port = grpc_server.add_insecure_port(f"{options.host}:{options.port}")
    listener = _listen(options.host, options.rest_api_port) if options.rest_api_port >= 0 else None
    rest_port = listener.getsockname()[1] if listener else None
    loop = asyncio.get_running_loop()
    tasks = []
    try:
        await grpc_server.start()
        manager.start()
        tasks.append(asyncio.create_task(_announce(manager, options.ready_file, grpc_port, rest_port)))
        if listener:
            rest = _Uvicorn(
                uvicorn.Config(
                    application(manager, executor),
                    log_config=None,
                    access_log=False,
                    timeout_keep_alive=_KEEP_ALIVE_S,
                    lifespan="off",
                    timeout_graceful_shutdown=int(options.stop_grace_s),
                )
            )
            tasks.append(asyncio.create_task(rest.serve(sockets=[listener])))
        _log.info(
            "listening: gRPC on %s:%d, REST on %s",
            options.host,
            grpc_port,
            f"{options.host}:{rest_port}" if listener else "no port",
        )
        await stop.wait()
    finally:
        tasks[0].cancel()
        if listener and len(tasks) > 1:
            rest.should_exit = True
        await grpc_server.stop(options.stop_grace_s)
        await asyncio.gather(*tasks, return_exceptions=True)
        await loop.run_in_executor(None, manager.stop)
        executor.close()
        if listener:
            listener.close()
        if options.ready_file:
            with contextlib.suppress(FileNotFoundError):
                os.remove(options.ready_file)


async def _announce(manager: ModelManager, ready_file: str, grpc_port: int, rest_port: int | None) -> None:
    while not manager.is_ready():
        await asyncio.sleep(0.02)
    _log.info("ready")
    if ready_file:
        facts = {"pid": os.getpid(), "grpc_port": grpc_port, "rest_port": rest_port}
        temporary = f"{ready_file}.{os.getpid()}"
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(facts, file)
        os.replace(temporary, ready_file)


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener
