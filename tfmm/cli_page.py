"""The command `tfmm page`: what a running system says of itself, on one page."""

from __future__ import annotations

import click

from tfmm.cli_options import Command

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
@click.option("--every", "every_s", type=click.FloatRange(0.2, 60), default=1.0, show_default=True, help="Seconds.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to bind.")
@click.option("--port", type=click.IntRange(0, 65535), default=8600, show_default=True, help="0 for any free one.")
@click.option("--ssl_config_file", "--ssl-config-file", default="", help="As the server's: the page uses TLS.")
@click.option("--allow_insecure", "--allow-insecure", is_flag=True, help="Let --host face a network without TLS.")
def page(
    servers: tuple[str, ...],
    streams: tuple[str, ...],
    replicators: tuple[str, ...],
    trainers: tuple[str, ...],
    index_url: str | None,
    every_s: float,
    host: str,
    port: int,
    ssl_config_file: str,
    allow_insecure: bool,
) -> None:
    """Show what server, stream, replicators, trainer and index do, on one page that refreshes itself."""
    from serving.page import app, document, serve

    ssl = serve.verify(host, ssl_config_file, allow_insecure)
    addresses = {"server": servers, "stream": streams, "replicator": replicators, "trainer": trainers}
    with document.Board(addresses, index_url, every_s=every_s) as board:
        serve.run(app.application(lambda: board.document), host, port, ssl, lambda url: click.echo(f"The page: {url}"))
