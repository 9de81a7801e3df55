"""The commands `tfmm index ...`: an item index in operation."""

from __future__ import annotations

import json
import typing

import click

from tfmm.cli_options import Group

if typing.TYPE_CHECKING:
    from tfmm.index import store

_URL = click.argument("index_url", metavar="INDEX", type=str)
_MODALITY = click.argument("modality")
_ENCODER = click.argument("encoder_version", metavar="ENCODER")


@click.group("index", cls=Group)
def index() -> None:
    """Look at an item index, free space in it, and switch it from one encoder to another."""


@index.command(example="tfmm index status run/items.sqlite\ntfmm index status redis://host:6379/0?prefix=items --json")
@_URL
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object.")
def status(index_url: str, as_json: bool) -> None:
    """Show rows, coverage and age by encoder, how far each source of events was read, dead letters and bytes."""
    from rich import console, markup, table

    from tfmm.index import status as status_lib

    with _open(index_url) as opened:
        found = status_lib.read(opened)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    terminal = console.Console()
    tables = table.Table(title=f"{opened_name(index_url)}, newest change {found.newest_sequence}")
    for name in ("modality", "encoder", "active", "dim", "rows", "coverage", "newest change", "age"):
        tables.add_column(name, overflow="fold")  # other commands take an encoder's name, as a whole
    for one in found.tables:
        active, age = "yes" if one.active else "", "" if one.newest_age_s is None else duration(one.newest_age_s)
        cells = (one.modality, one.encoder_version, active, str(one.dim), f"{one.rows:,}")
        tables.add_row(*map(markup.escape, cells), f"{one.coverage.share:.2%}", str(one.newest_sequence), age)
    terminal.print(tables)
    for source in sorted({*found.positions, *found.dead_letters}):
        place = found.positions.get(source, "unknown")
        letters = found.dead_letters.get(source, 0)
        terminal.print(f"{source}: read to {place}, {letters:,} dead letters", markup=False, highlight=False)
    if found.size is not None:
        terminal.print(f"{found.size.total_bytes:,} bytes, {found.size.free_bytes:,} of them for later rows")


@index.command(example="tfmm index compact run/items.sqlite\ntfmm index compact run/items.sqlite --keep-letters 1000")
@_URL
@click.option(
    "--keep-letters",
    type=click.IntRange(min=0),
    help="Dead letters of each source that stay, those of the newest positions.  [default: all]",
)
def compact(index_url: str, keep_letters: int | None) -> None:
    """Free what withdrawn items, retired encoders and old dead letters cost; readers and writers go on meanwhile."""
    with _open(index_url) as opened:
        before = opened.size()
        done = opened.compact(keep_letters)
        after = opened.size()
    click.echo(f"{done.withdrawn:,} rows of withdrawn items and {done.dead_letters:,} dead letters are gone.")
    if before is not None and after is not None:
        click.echo(f"{before.total_bytes:,} bytes before, {after.total_bytes:,} now, {after.free_bytes:,} free.")


@index.command(example="tfmm index activate run/items.sqlite image 3f2a9c01")
@_URL
@_MODALITY
@_ENCODER
@click.option(
    "--min-coverage",
    type=click.FloatRange(0, 1),
    help="Share of the active encoder's items that it must have.  [default: 0.99]",
)
def activate(index_url: str, modality: str, encoder_version: str, min_coverage: float | None) -> None:
    """Switch to another encoder: snapshots take it from then on, and servers take models that were made with it."""
    from tfmm.index import coverage

    needed = coverage.ENOUGH if min_coverage is None else min_coverage
    with _open(index_url) as opened:
        found = coverage.of_active(opened, modality, encoder_version)
        if found.share < needed:
            raise ValueError(
                f"Encoder {encoder_version} must have {needed:.2%} of the {modality} items of the active one. "
                f"Received: {found.share:.2%}, {found}. Embed the catalog with it (`tfmm embed --no-activate`), or "
                "lower --min-coverage."
            )
        opened.activate(modality, encoder_version)
    click.echo(f"{modality}: {encoder_version} is active, with {found} of the one before.")


@index.command(example="tfmm index retire run/items.sqlite image 77aa01f3 --server 127.0.0.1:8500")
@_URL
@_MODALITY
@_ENCODER
@click.option("--server", "servers", multiple=True, help="host:port of gRPC, asked whether it needs it; repeat it.")
@click.option("--model-name", default="tfmm", show_default=True, help="The model's name at the servers.")
@click.option("--ca-file", default="", help="PEM file with who signed the servers' certificates.")
def retire(
    index_url: str, modality: str, encoder_version: str, servers: tuple[str, ...], model_name: str, ca_file: str
) -> None:
    """Delete an encoder's rows, once no model in service was made with it and no stream writes them."""
    from serving import channel, replica

    with _open(index_url) as opened:
        if any(e.active for e in opened.encoders() if e[:2] == (modality, encoder_version)):
            raise ValueError(
                f"The encoder must not be the active one of {modality}. Received: {encoder_version}. Activate another."
            )
        access = channel.Access(ca_file=ca_file)
        for target in servers:
            if versions := replica.versions_with(target, model_name, modality, encoder_version, access):
                raise ValueError(
                    f"No version at {target} must need encoder {encoder_version}. Received: versions {versions} of "
                    f"{model_name}. Wait until they are replaced."
                )
        deleted = opened.forget(modality, encoder_version)
    click.echo(f"{modality}: {deleted:,} rows of {encoder_version} are gone; `tfmm index compact` frees the space.")


def opened_name(index_url: str) -> str:
    """Returns an index's URL as it may be shown."""
    from tfmm import registered

    return registered.without_password(index_url)


def _open(index_url: str) -> store.IndexStore:
    from tfmm.index import store

    return store.open_store(index_url, create=False)


def duration(seconds: float) -> str:
    """Returns a time as people say it.

    >>> duration(5.04), duration(4000), duration(200000)
    ('5.0 s', '67 min', '56 h')
    """
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
