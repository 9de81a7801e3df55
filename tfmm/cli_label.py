"""The command `tfmm label`: which version is stable, which is the canary; and the way back."""

from __future__ import annotations

import click

from tfmm.cli_options import Command


@click.command(
    "label",
    cls=Command,
    example="tfmm label models.config canary=4 --server 127.0.0.1:8500\n"
    "tfmm label models.config stable=4 canary= --server 127.0.0.1:8500",
)
@click.argument("config_file", type=click.Path(dir_okay=False))
@click.argument("labels", nargs=-1, required=True, metavar="LABEL=VERSION...")
@click.option("--server", "servers", multiple=True, required=True, help="host:port of gRPC of each server; repeat it.")
@click.option("--model-name", default="tfmm", show_default=True, help="The model in the config file.")
@click.option("--timeout", "timeout_s", type=float, default=300.0, show_default=True, help="Seconds for each step.")
@click.option("--ca-file", default="", help="PEM file with who signed the servers' certificates.")
def label(
    config_file: str, labels: tuple[str, ...], servers: tuple[str, ...], model_name: str, timeout_s: float, ca_file: str
) -> None:
    """Give labels to versions, for callers that ask by label; LABEL= takes one away.

    The servers load the versions first and keep the old ones until then; where one does not load, all stays as it was.
    Afterwards they serve the labelled versions and no others.
    """
    from serving import channel
    from serving import labels as labels_lib

    wanted: dict[str, int | None] = {}
    for word in labels:
        name, separator, version = word.partition("=")
        if not (name and separator and (version.isdecimal() or not version)):
            raise ValueError(f"A label must stand as LABEL=VERSION, with a version's number. Received: {word!r}.")
        wanted[name] = int(version) if version else None
    try:
        access = channel.Access(ca_file=ca_file)
        found = labels_lib.move(config_file, model_name, wanted, servers, timeout_s, access)
    except labels_lib.LabelError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{model_name}: " + ", ".join(f"{name} is version {version}" for name, version in found.items()))
