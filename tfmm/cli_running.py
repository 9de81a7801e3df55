"""The commands `tfmm serve`, `tfmm nearline` and `tfmm stream`: processes that run until they are stopped."""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import tempfile
import typing

import click

from tfmm.cli_options import Command, ExistingFolder


@click.command(
    cls=Command,
    example="tfmm serve --model_base_path run/serving/tfmm --rest_api_port 8501\n"
    "tfmm serve --model_config_file models.config --model_config_file_poll_wait_seconds 10",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.option("--index", "index_url", help="Follow this item index, a path or a URL: new items are served in seconds.")
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def serve(index_url: str | None, flags: tuple[str, ...]) -> None:
    """Serve SavedModels over TF Serving's gRPC and REST, with its flags."""
    from serving import channel, replica_metrics, replicator
    from serving.model_server import __main__ as model_server
    from tfmm.index import store

    command_line = model_server.parser("tfmm serve", model_name="tfmm", rest_api_port=8501)
    command_line.add_argument("--index", help="follow this item index: new items are served in seconds")
    given = command_line.parse_args(flags)
    with contextlib.ExitStack() as stack:
        followers: list[replicator.Replicator] = []
        if index_url is not None:
            store.open_store(index_url, create=False).close()
            command_line.set_defaults(index_wait_seconds=-1.0)  # ready is: with every change of the index
            target = f"127.0.0.1:{given.port}"
            if given.port <= 0 or given.ssl_config_file or given.host not in ("127.0.0.1", "localhost"):
                folder = stack.enter_context(tempfile.TemporaryDirectory())  # that nobody else may enter
                socket_path = given.grpc_socket_path or f"{folder}/grpc.sock"
                command_line.set_defaults(grpc_socket_path=socket_path)
                target = f"unix:{socket_path}"
            caller = channel.Access(channel.read_token(given.token_file))
            models = _models(given)
            names = [model.name for model in models]
            command_line.set_defaults(models=models, index_models=names)  # a pipe can be read once
            for name in names:
                job = replicator.Replicator(index_url, [target], name, access=caller)
                followers.append(stack.enter_context(job))
        lags = replica_metrics.LagMetrics(lambda: [lag for follower in followers for lag in follower.lag()])
        raise SystemExit(model_server.main(flags, command_line, [lags] if followers else []))


def _models(given: argparse.Namespace) -> list[typing.Any]:
    """Returns the models that a server of these flags has from the start; none where it will say why there are none."""
    from serving.model_server import config, errors

    try:
        return config.from_flags(given)
    except (errors.ServingError, ValueError, OSError):
        return []


@click.command(
    cls=Command,
    example="tfmm nearline --log run/served.sqlite --models run/models --index run/items.sqlite --workdir run/nearline "
    "--output run/serving/tfmm",
    context_settings={"ignore_unknown_options": True},
    add_help_option=False,
)
@click.argument("flags", nargs=-1, type=click.UNPROCESSED)
def nearline(flags: tuple[str, ...]) -> None:
    """Train on over impressions as they are served, and push what the gate lets pass."""
    from serving.nearline import __main__ as nearline_trainer

    nearline_trainer.main(flags, "tfmm nearline")


@click.command(
    cls=Command,
    example="tfmm stream --events run/events.sqlite --index run/items.sqlite --encoders run/encoders",
)
@click.option("--events", "events_url", required=True, help="New item events: a path or a URL (docs/serving.md).")
@click.option("--index", "index_url", required=True, help="The item index, a path or a URL; made where missing.")
@click.option(
    "--encoders",
    "encoders_dirs",
    type=ExistingFolder,
    multiple=True,
    help="As `tfmm pretrain` wrote them; own vectors need none. Repeat it: rows of two encoders side by side.",
)
@click.option("--dead-letters", "letters_url", help="A log of events that gets dead letters too, such as a topic.")
@click.option("--metrics-port", type=int, default=-1, help="Prometheus metrics; 0 takes a free port.")
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="The address that they are bound to.")
@click.option("--log-format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def stream(
    events_url: str, index_url: str, encoders_dirs: tuple[pathlib.Path, ...], letters_url: str | None, **told: object
) -> None:
    """Embed new items as their events arrive, by a streaming Beam job."""
    from serving.streaming import __main__ as streaming

    encoders = [word for folder in encoders_dirs for word in ("--encoders", str(folder))]
    letters = [] if letters_url is None else ["--dead-letters", letters_url]
    flags = [f"--{name}={value}" for name, value in told.items()]
    streaming.main(["--events", events_url, "--index", index_url, *encoders, *letters, *flags])
