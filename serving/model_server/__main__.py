"""`python -m serving.model_server`: the embedded server, with the flag names of tensorflow_model_server."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

EXAMPLE = """example:
  python -m serving.model_server --model_name=tfmm --model_base_path=/models/tfmm --rest_api_port=8501

Differs from tensorflow_model_server: binds 127.0.0.1 unless --host says otherwise; port 0 is any free port,
--rest_api_port=-1 switches REST off; XLA is always on; --ready-file tells when and on which ports it serves.
"""


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return text.lower() in ("true", "1")


def parser() -> argparse.ArgumentParser:
    """Returns the command line; every flag may be written with `_` or with `-`."""
    result = argparse.ArgumentParser(
        prog="python -m serving.model_server",
        epilog=EXAMPLE,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def flag(name: str, kind: typing.Callable[[str], object], default: object, text: str) -> None:
        names = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        options: dict[str, typing.Any] = {"nargs": "?", "const": True} if kind is _boolean else {}
        result.add_argument(
            *names, type=kind, default=default, help=f"{text} (default: %(default)s)", **options
        )

    flag("model_name", str, "default", "name of the one model")
    flag("model_base_path", str, "", "folder of its numeric version folders")
    flag("model_config_file", str, "", "ModelServerConfig as text proto; overrides the two flags above")
    flag("host", str, "127.0.0.1", "address to bind")
    flag("port", int, 8500, "gRPC port, 0 for any free one")
    flag("rest_api_port", int, -1, "REST port, 0 for any free one, -1 for none")
    flag(
        "ready_file", str, "", "gets {pid, grpc_port, rest_port} once a version of every model is in service"
    )
    flag("file_system_poll_wait_seconds", float, 1.0, "how often version folders are looked at")
    flag("max_num_load_retries", int, 5, "how often a version that fails to load is tried again")
    flag("load_retry_interval_micros", int, 60_000_000, "wait between those tries")
    flag("enable_model_warmup", _boolean, True, "run assets.extra/tf_serving_warmup_requests before serving")
    flag("enable_serialization_as_tensor_content", _boolean, False, "answer with raw bytes, not value lists")
    flag("xla_cpu_compilation_enabled", _boolean, True, "accepted for compatibility; must be true")
    flag("num_threads", int, 0, "model calls that run at a time, 0 for one per core")
    flag("max_waiting", int, 1024, "requests that may wait; more are answered RESOURCE_EXHAUSTED")
    return result


def main(arguments: list[str] | None = None) -> int:
    command_line = parser()
    flags = command_line.parse_args(arguments)
    if not flags.model_config_file and not flags.model_base_path:
        command_line.error("--model_base_path or --model_config_file is needed")
    if not flags.xla_cpu_compilation_enabled:
        command_line.error(
            "--xla_cpu_compilation_enabled must be true here; export with jit_compile=False instead"
        )
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(message)s", stream=sys.stderr)
    from serving.model_server import config, errors
    from serving.model_server.server import Options, serve

    try:
        models = (
            config.read_file(flags.model_config_file)
            if flags.model_config_file
            else [config.ModelConfig(flags.model_name, flags.model_base_path)]
        )
    except (errors.ServingError, OSError) as error:
        command_line.error(str(error))
    options = Options(
        models=tuple(models),
        host=flags.host,
        port=flags.port,
        rest_api_port=flags.rest_api_port,
        ready_file=flags.ready_file,
        poll_wait_s=flags.file_system_poll_wait_seconds,
        max_load_retries=flags.max_num_load_retries,
        load_retry_interval_s=flags.load_retry_interval_micros / 1e6,
        warm_up=flags.enable_model_warmup,
        as_tensor_content=flags.enable_serialization_as_tensor_content,
        num_threads=flags.num_threads,
        max_waiting=flags.max_waiting,
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(options, stop)

    asyncio.run(run())
    return 0


if __name__ == "__main__":
    sys.exit(main())
