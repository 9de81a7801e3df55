"""`python -m serving.model_server`: the embedded server, with the flags of tensorflow_model_server."""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import signal
import sys
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

EXAMPLE = """Example:
  {prog} --model_name=tfmm --model_base_path=/models/tfmm --rest_api_port=8501

Differs from tensorflow_model_server: binds 127.0.0.1 unless --host says otherwise; port 0 is any free port, -1 is
none; XLA and the health service are on; --ready-file tells when and on which ports it serves. docs/protocol.md has
the rest.
"""


_PORTS = (-1, 65_535)
_BOUNDS = {
    "port": _PORTS, "rest_api_port": _PORTS, "metrics_port": _PORTS, "max_num_load_retries": (0, math.inf),
    "grpc_max_threads": (0, math.inf), "num_threads": (0, math.inf),
}  # fmt: skip
_FINITE = (
    "file_system_poll_wait_seconds", "model_config_file_poll_wait_seconds", "index_wait_seconds", "log_file_seconds",
)  # fmt: skip


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return text.lower() in ("true", "1")


def _channel_arguments(text: str) -> tuple[tuple[str, int | str], ...]:
    pairs = [part.partition("=") for part in text.split(",") if part]
    if not all(name and equals for name, equals, _ in pairs):
        raise argparse.ArgumentTypeError(f"must be name=value,name=value, not {text!r}")
    return tuple((name, int(value) if value.lstrip("-").isdecimal() else value) for name, _, value in pairs)


def parser(prog: str = "python -m serving.model_server", **defaults: typing.Any) -> argparse.ArgumentParser:
    """Returns the command line; every flag may be written with `_` or with `-`.

    Args:
        prog: the command's name.
        **defaults: values of flags that are not given, where they differ from those below; `models`, which are no
            flag, where the caller has read --model_config_file already.
    """
    from serving import channel, logs, metrics
    from serving.model_server import flags as other_flags
    from serving.model_server import limits

    result = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} --model_base_path=FOLDER [flags]",
        epilog=EXAMPLE.format(prog=prog),
        description="Serves SavedModels over TF Serving's gRPC and REST, with its flags.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )

    def flag(name: str, kind: typing.Callable[[str], object], default: object, text: str) -> None:
        names = [f"--{name}"] + ([f"--{name.replace('_', '-')}"] if "_" in name else [])
        kind = _boolean if kind is bool else kind
        options: dict[str, typing.Any] = {"metavar": getattr(kind, "__name__", "").strip("_").upper()}
        if kind is _boolean:
            options |= {"nargs": "?", "const": True}
        if default is not argparse.SUPPRESS:
            text += " (default: %(default)s)"
        result.add_argument(*names, type=kind, default=default, help=text, **options)

    flag("model_name", str, "default", "name of the one model")
    flag("model_base_path", str, "", "folder of its numeric version folders")
    flag("model_config_file", str, "", "ModelServerConfig as text proto; overrides the two flags above")
    flag("model_config_file_poll_wait_seconds", float, 0.0, "how often that file is read again; 0 for never")
    flag("host", str, "127.0.0.1", "address to bind")
    flag("port", int, 8500, "gRPC port, 0 for any free one, -1 for none")
    flag("grpc_socket_path", str, "", "UNIX socket that gRPC listens on as well")
    flag("rest_api_port", int, -1, "REST port, 0 for any free one, -1 for none")
    flag("rest_api_timeout_in_ms", int, 30_000, "until a REST request is answered DEADLINE_EXCEEDED; 0 for never")
    flag("rest_api_enable_cors_support", bool, False, "let web pages of other origins call REST")
    flag(
        "ready_file", str, "", "gets {pid, grpc_port, rest_port} once a version of every model is in service"
    )
    flag("file_system_poll_wait_seconds", float, 1.0, "how often version folders are looked at; 0 for once")
    flag("max_num_load_retries", int, 5, "how often a version that fails to load is tried again")
    flag("load_retry_interval_micros", int, 60_000_000, "wait between those tries")
    flag("enable_model_warmup", bool, True, "run assets.extra/tf_serving_warmup_requests before serving")
    flag("num_request_iterations_for_warmup", int, 1, "how often each of those requests is run")
    flag("allow_version_labels_for_unavailable_models", bool, False, "take a new label before its version is loaded")
    flag("enable_signature_method_name_check", bool, False, "Classify and Regress look at the method_name")
    flag("enable_serialization_as_tensor_content", bool, False, "answer with raw bytes, not value lists")
    flag("enable_grpc_healthcheck_service", bool, True, "serve grpc.health.v1")
    flag("grpc_max_threads", int, 0, "gRPC calls at a time, 0 for any; more are answered RESOURCE_EXHAUSTED")
    flag("grpc_channel_arguments", _channel_arguments, (), "name=value,... of gRPC core")
    flag("tensorflow_session_parallelism", int, 0, "threads of a session, within and between operations")
    flag("tensorflow_intra_op_parallelism", int, 0, "threads within an operation, 0 for one per core")
    flag("tensorflow_inter_op_parallelism", int, 0, "operations at a time, 0 for one per core")
    flag("num_threads", int, 0, "model calls that run at a time, 0 for one per core")
    limits.add_flags(flag)
    flag("ssl_config_file", str, "", "SSLConfig as text proto: gRPC and REST use TLS")
    flag("allow_insecure", bool, False, "let --host face a network without TLS")
    flag("token_file", str, "", f"has the token that upserts and reloads need; else {channel.TOKEN_VARIABLE} has it")
    flag(
        "index_wait_seconds", float, 0.0,
        "how long a loaded version waits until a replicator says that it has every change of the item index; "
        "0 for not at all, -1 for as long as it takes",
    )
    flag("served_log", str, "", "URL of a log of every ranking, with the features as served: to train on")
    flag("inspection_log", str, "", "URL of a log of a sample of them, to look at")
    flag("inspection_rate", float, 0.01, "share of the requests in that sample")
    flag("changes_log", str, "", "URL of a log of the item index's changes, as this server takes them")
    flag("log_waiting", int, 4096, "records that wait to be written; --served_log refuses requests beyond")
    flag("log_file_seconds", float, 60.0, "how long a log in a folder waits until what it has is a file to be read")
    for name, (kind, reason) in other_flags.WITHOUT_EFFECT.items():
        flag(name, kind, argparse.SUPPRESS, f"changes nothing: {reason}")
    for name, (kind, harmless, reason) in other_flags.REFUSED.items():
        flag(name, kind, argparse.SUPPRESS, f"must be {str(harmless) or 'empty'}: {reason}")
    flag("monitoring_config_file", str, "", "MonitoringConfig as text proto: Prometheus metrics on the REST port")
    metrics.add_options(result)
    logs.add_options(result)
    result.add_argument("--version", action="store_true", help="say which versions these are, and end")
    result.set_defaults(**{"models": None, "index_models": None, **defaults})
    return result


def _faults(flags: argparse.Namespace) -> list[str]:
    """Returns what is wrong with the flags together, one line per fault."""
    from serving import channel
    from serving.model_server import access, limits
    from serving.model_server import flags as other_flags

    result = other_flags.faults(vars(flags))
    for name, (least, most) in _BOUNDS.items():
        if not least <= (given := getattr(flags, name)) <= most:
            rule = f"at least {least}" if most == math.inf else f"from {least} to {most}"
            result.append(f"--{name} must be {rule}. Received: {given}.")
    result += [
        f"--{name} must be a finite number of seconds. Received: {getattr(flags, name)}."
        for name in _FINITE
        if not math.isfinite(getattr(flags, name))
    ]
    result += access.faults(flags.host, bool(flags.ssl_config_file), flags.allow_insecure)
    try:
        limits.from_flags(flags)
    except ValueError as error:
        result.append(str(error))
    if not flags.model_config_file and not flags.model_base_path:
        result.append("--model_base_path or --model_config_file is needed.")
    if flags.port < 0 and not flags.grpc_socket_path and flags.rest_api_port < 0:
        result.append("--port, --grpc_socket_path or --rest_api_port must be given: nothing would be served.")
    if flags.port == flags.rest_api_port > 0:
        result.append(f"--port and --rest_api_port must differ. Received: {flags.port} for both.")
    if flags.monitoring_config_file and flags.rest_api_port < 0:
        result.append("--monitoring_config_file needs --rest_api_port; --metrics_port does without.")
    if not 0.0 < flags.inspection_rate <= 1.0 or flags.log_waiting < 1 or flags.log_file_seconds <= 0:
        result.append(
            "--inspection_rate must lie in (0, 1], --log_waiting be at least 1, --log_file_seconds more than 0. "
            f"Received: {flags.inspection_rate}, {flags.log_waiting}, {flags.log_file_seconds}."
        )
    if flags.file_system_poll_wait_seconds < 0 or flags.model_config_file_poll_wait_seconds < 0:
        result.append("Waits between looks at files must be 0 or more seconds.")
    if flags.index_wait_seconds > 0 and flags.file_system_poll_wait_seconds == 0:
        result.append("--index_wait_seconds needs looks at the files: --file_system_poll_wait_seconds must not be 0.")
    if flags.index_wait_seconds and not channel.is_local(flags.host) and not (
        flags.token_file or os.environ.get(channel.TOKEN_VARIABLE)
    ):
        result.append(
            f"A server at --host={flags.host} takes upserts with a token alone, so one that waits for its item index "
            f"(--index, --index_wait_seconds) would wait for ever: give --token_file or {channel.TOKEN_VARIABLE}."
        )
    if flags.tensorflow_session_parallelism and (
        flags.tensorflow_intra_op_parallelism or flags.tensorflow_inter_op_parallelism
    ):
        result.append("--tensorflow_session_parallelism sets the intra-op and inter-op threads; leave those out.")
    return result


def main(
    arguments: typing.Sequence[str] | None = None,
    command_line: argparse.ArgumentParser | None = None,
    collectors: typing.Sequence[typing.Any] = (),
) -> int:
    """Serves until SIGTERM or SIGINT.

    Args:
        arguments: the flags; None for the process's own.
        command_line: what `parser` returned, where defaults differ.
        collectors: give further metrics, of others in this process.
    Raises:
        OSError: a port is taken.
    """
    command_line = command_line or parser()
    flags = command_line.parse_args(arguments)
    if flags.version:
        return _print_versions()
    if faults := _faults(flags):
        command_line.error("\n".join(faults))
    from serving.model_server import memory

    memory.limit_arenas()
    from serving import channel, logs
    from serving.model_server import access, config, errors, limits, logged, metrics
    from serving.model_server.server import Options, serve

    logs.configure(flags.log_format, flags.log_level)
    try:
        models = flags.models or config.from_flags(flags)
        ssl_config = access.read_ssl_config(flags.ssl_config_file) if flags.ssl_config_file else None
        token = channel.read_token(flags.token_file)
        metrics_path = metrics.monitored_path(flags.monitoring_config_file) if flags.monitoring_config_file else ""
        served = logged.from_flags(flags)
    except (errors.ServingError, ValueError, OSError) as error:
        command_line.error(str(error))
    options = Options(
        models=tuple(models),
        model_config_file=flags.model_config_file,
        config_poll_wait_s=flags.model_config_file_poll_wait_seconds,
        host=flags.host,
        port=flags.port,
        grpc_socket_path=flags.grpc_socket_path,
        rest_api_port=flags.rest_api_port,
        rest_timeout_s=max(0, flags.rest_api_timeout_in_ms) / 1000,
        rest_allows_other_origins=flags.rest_api_enable_cors_support,
        ready_file=flags.ready_file,
        poll_wait_s=flags.file_system_poll_wait_seconds,
        max_load_retries=flags.max_num_load_retries,
        load_retry_interval_s=flags.load_retry_interval_micros / 1e6,
        warm_up=flags.enable_model_warmup,
        warm_up_iterations=max(1, flags.num_request_iterations_for_warmup),
        labels_may_lead=flags.allow_version_labels_for_unavailable_models,
        session_threads=(
            flags.tensorflow_inter_op_parallelism or flags.tensorflow_session_parallelism,
            flags.tensorflow_intra_op_parallelism or flags.tensorflow_session_parallelism,
        ),
        as_tensor_content=flags.enable_serialization_as_tensor_content,
        verify_signature_methods=flags.enable_signature_method_name_check,
        with_health=flags.enable_grpc_healthcheck_service,
        max_grpc_calls=flags.grpc_max_threads,
        grpc_arguments=flags.grpc_channel_arguments,
        num_threads=flags.num_threads,
        limits=limits.from_flags(flags),
        ssl=ssl_config,
        allow_insecure=flags.allow_insecure,
        token=token,
        logs=served,
        index_models=flags.index_models,
        index_wait_s=flags.index_wait_seconds,
        metrics_path=metrics_path,
        metrics_port=flags.metrics_port,
        metrics_host=flags.metrics_host,
    )

    async def run() -> None:
        stop = asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await serve(options, stop, collectors)

    memory.settle()
    asyncio.run(run())
    return 0


def _print_versions() -> int:
    import tensorflow as tf

    from tfmm import __version__

    print(f"tfmm {__version__}\nTensorFlow {tf.__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
