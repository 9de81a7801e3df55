"""The command `tfmm page`: what a running system says of itself, on one page."""

from __future__ import annotations

import typing

import click

from tfmm.cli_options import Command, ExistingFolder

_METRICS = "host:port of {}'s metrics (--metrics_port), or their URL; repeat it."


@click.command(
    cls=Command,
    example="tfmm page --server 127.0.0.1:9100 --stream 127.0.0.1:9101 --index run/items.sqlite",
)
@click.option("--server", "servers", multiple=True, help=_METRICS.format("a server"))
@click.option("--stream", "streams", multiple=True, help=_METRICS.format("a streaming job"))
@click.option("--replicator", "replicators", multiple=True, help=_METRICS.format("a replicator"))
@click.option("--trainer", "trainers", multiple=True, help=_METRICS.format("a near-line trainer"))
@click.option("--index", "index_url", help="The item index, a path or a URL.")
@click.option("--events", "events_url", help="What `tfmm stream --events` reads: titles and pictures of new items.")
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables: titles and pictures of the others.")
@click.option("--target", help="host:port of a server's gRPC: the last items are scored there.")
@click.option("--model-name", default="tfmm", show_default=True, help="The model's name there.")
@click.option("--ca-file", default="", help="PEM file with who signed that server's certificate.")
@click.option("--evaluation", "evaluation_dir", type=ExistingFolder, help="As `tfmm evaluate` wrote it.")
@click.option("--served", "served_dir", type=ExistingFolder, help="As `tfmm serve --served_log` wrote it, or a sample.")
@click.option("--clicked", "clicked_dir", type=ExistingFolder, help="Events of what was shown and clicked.")
@click.option(
    "--label-window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    default=86_400.0,
    show_default=True,
    help="Seconds after an item was shown in which a click counts.",
)
@click.option("--every", "every_s", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", type=click.IntRange(0, 65535), default=8600, show_default=True, help="0 for any free one.")
@click.option("--ssl_config_file", "--ssl-config-file", default="", help="As the server's: the page uses TLS.")
@click.option(
    "--token_file",
    "--token-file",
    type=click.Path(exists=True, dir_okay=False),
    help="Has a token that readers must bring, best one of its own.",
)
@click.option("--allow_insecure", "--allow-insecure", is_flag=True, help="Let --host face a network without TLS.")
def page(
    servers: tuple[str, ...],
    streams: tuple[str, ...],
    replicators: tuple[str, ...],
    trainers: tuple[str, ...],
    host: str,
    port: int,
    ssl_config_file: str,
    token_file: str | None,
    allow_insecure: bool,
    **others: typing.Any,
) -> None:
    """Show what server, stream, replicators, trainer and index do, on one page that refreshes itself."""
    from serving import channel
    from serving.page import app, serve, settings

    token = channel.read_token(token_file) if token_file else ""  # never the servers' own, which lets its bearer write
    ssl = serve.verify(host, ssl_config_file, allow_insecure)
    addresses = {"server": servers, "stream": streams, "replicator": replicators, "trainer": trainers}
    board, picture = settings.open_board(settings.Settings(addresses, **others))
    with board:
        application = app.application(lambda: board.document, picture, host, token)
        serve.run(application, host, port, ssl, lambda url: click.echo(f"The page: {url}"))
