"""The command `tfmm similar`: what the index holds beside an item, and the same as a SavedModel."""

from __future__ import annotations

import pathlib
import typing

import click

from tfmm.cli_options import Command, ExistingFolder, Folder


@click.command(
    cls=Command,
    example="tfmm similar 1000001 --index run/items.sqlite --data my_tables\n"
    "tfmm similar --export run/similar/1 --snapshot run/snapshot --modality image --kind streaming",
)
@click.argument("item", required=False)
@click.option("--index", "index_url", help="The item index, a path or a URL.")
@click.option("--snapshot", "snapshot_dir", type=ExistingFolder, help="A snapshot of it, as `tfmm embed` wrote it.")
@click.option("--modality", help="Whose vectors.  [default: each of the index]")
@click.option("--count", type=click.IntRange(1), default=10, show_default=True, help="Items shown, or answered.")
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables: titles are shown beside.")
@click.option("--export", "output_dir", type=Folder, help="Write a SavedModel that answers instead: a version folder.")
@click.option("--kind", type=click.Choice(["brute_force", "streaming"]), default="brute_force", show_default=True)
def similar(
    item: str | None,
    index_url: str | None,
    snapshot_dir: pathlib.Path | None,
    modality: str | None,
    count: int,
    data_dir: pathlib.Path | None,
    output_dir: pathlib.Path | None,
    kind: str,
) -> None:
    """Show the items most similar to ITEM, or export what answers that in TF Serving (--export)."""
    from tfmm.index import snapshot as snapshot_lib
    from tfmm.index import store

    if (index_url is None) == (snapshot_dir is None):
        raise ValueError(f"Name --index or --snapshot: where the vectors are. Received: {_both(index_url)}.")
    if (item is None) == (output_dir is None):
        raise ValueError(f"Name an ITEM to look at, or --export. Received: {_both(item)}.")
    if output_dir is not None:
        _export(snapshot_dir, output_dir, modality, kind, count)
        return
    if snapshot_dir is not None:
        found = snapshot_lib.load_snapshot(snapshot_dir)
    else:
        with store.open_store(str(index_url), create=False) as index:
            found = snapshot_lib.take_snapshot(index)
    _show(found, str(item), modality, count, data_dir)


def _both(given: object) -> str:
    return "both" if given else "neither"


def _export(
    snapshot_dir: pathlib.Path | None, output_dir: pathlib.Path, modality: str | None, kind: str, count: int
) -> None:
    from tfmm.retrieval import top_k

    if snapshot_dir is None or modality is None:
        raise ValueError(
            "--export needs --snapshot, which it is made of, and --modality. Received: one of them, or none."
        )
    top_k.export(snapshot_dir, output_dir, modality, kind, count)
    click.echo(f"Wrote {output_dir}: signatures serving_default (vectors) and similar_items (item_ids).")


def _show(snapshot: typing.Any, item: str, modality: str | None, count: int, data_dir: pathlib.Path | None) -> None:
    from rich import console, markup

    from tfmm import terminal_tables
    from tfmm.data import as_known
    from tfmm.retrieval import similar as similar_lib

    if modality is not None and modality not in snapshot.modalities:
        raise ValueError(f"--modality must be one of {', '.join(snapshot.modalities)}. Received: {modality}.")
    found, lacking = {}, []
    for name in snapshot.modalities if modality is None else [modality]:
        own = int(item) if item.lstrip("-").isdigit() and int(item) in snapshot[name].ids else item
        try:
            found[name] = similar_lib.similar(snapshot[name], own, count)
        except ValueError as error:
            lacking.append(f"{name}: {error}")
    if not found:
        raise ValueError("\n".join(lacking))
    items = None if data_dir is None else as_known.read_table(data_dir, "items", "UTC", ["item_id", "title"])
    terminal = console.Console()
    for name, (ids, cosines) in found.items():
        rows = [{"item_id": int(one)} for one in ids] if items is None else similar_lib.titles(items, ids)
        title = f"{name}: most similar to {item}"
        shown = terminal_tables.folded("item", "cosine", "title", title=title, title_justify="left")
        for row, cosine in zip(rows, cosines, strict=True):
            shown.add_row(str(row["item_id"]), f"{cosine:.4f}", markup.escape(str(row.get("title") or "")))
        terminal.print(shown)
    for line in lacking:
        terminal.print(line, markup=False, highlight=False)
