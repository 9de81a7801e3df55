"""The commands `tfmm data ...` and `tfmm run ...`: what a run reads, and what it declares."""

from __future__ import annotations

import pathlib
import typing

import click

from tfmm.cli_options import DataFolder, ExistingFolder, Folder, Group, load_config, run_options


@click.group(cls=Group)
def run() -> None:
    """Look at what a run declares."""


@run.command("show", example="tfmm run show --run my_team.runs:weekly\ntfmm run show --data my_tables --run run.toml")
@click.option("--data", "data_dir", type=DataFolder, help="Parquet tables: what they lack of it, and how many ids.")
@run_options
def run_show(data_dir: pathlib.Path | str | None, run: str, assignments: tuple[str, ...]) -> None:
    """Print what a declaration means: features, sequences, methods, embedding tables, inputs of the signatures."""
    from rich import console

    from tfmm.quickstart import declaration

    config, terminal = load_config(run, assignments, data_dir=data_dir), console.Console()
    for part in declaration.tables(config, data_dir):
        terminal.print(part)
    if data_dir is not None:
        click.echo(f"{data_dir} has what is declared.")


@click.group(cls=Group)
def data() -> None:
    """Make, check and convert data folders."""


@data.command("schema", example="tfmm data schema\ntfmm data schema --run my_team.runs:weekly")
@run_options
def data_schema(run: str, assignments: tuple[str, ...]) -> None:
    """Print the tables and columns that a data folder may hold, those that the run declares among them."""
    from tfmm.data import declared, schema

    config = load_config(run, assignments)
    click.echo(schema.schema_text(declared.tables(config.feature_set, config.modality_set)))


@data.command("check", example="tfmm data check my_tables --set data.time_zone=Europe/Berlin")
@click.argument("data_dir", type=DataFolder)
@run_options
def data_check(data_dir: pathlib.Path | str, run: str, assignments: tuple[str, ...]) -> None:
    """Check a data folder against the schema: every fault with table, row, column, rule, and a count."""
    from rich import console, markup, table

    from tfmm import runs
    from tfmm.assignments import override
    from tfmm.data import checks, unread

    config = override(runs.load(run), assignments)
    report = checks.check(data_dir, config.data, config.feature_set, config.modality_set, config.max_pixels)
    faults = [*(checks.Fault("run", "", text, 1) for text in runs.faults(config)), *report.faults]
    terminal = console.Console()
    terminal.print(", ".join(f"{name}: {rows:,} rows" for name, rows in report.counts.items()))
    for line in unread.in_words(report.unread):
        terminal.print(line, style="yellow", markup=False, highlight=False)
    for note in report.notes:
        terminal.print(f"[yellow]Note:[/] {markup.escape(note)}")
    if not faults:
        terminal.print("[green]No fault found.")
        return
    told = table.Table("table", "column", "rule", "count", "first rows", "values", title="Faults")
    for fault in faults:
        cells = (fault.table, fault.column, fault.rule, f"{fault.count:,}", _joined(fault.rows), _joined(fault.values))
        told.add_row(*(markup.escape(cell) for cell in cells))
    for column in told.columns:
        column.overflow = "fold"  # a narrow terminal cuts no name
    terminal.print(told)
    raise SystemExit(1)


def _joined(values: typing.Iterable[object]) -> str:
    return ", ".join(map(str, values))


@data.command("marketplace", example="tfmm data marketplace my_tables --preset small")
@click.argument("output_dir", type=Folder)
@run_options
def data_marketplace(output_dir: pathlib.Path, run: str, assignments: tuple[str, ...]) -> None:
    """Make the synthetic marketplace: images, titles, searches, purchases, a week of impressions."""
    from tfmm.marketplace import generator

    generator.generate(load_config(run, assignments).marketplace, output_dir)
    click.echo(f"Wrote the marketplace to {output_dir}.")


@data.command("convert", example="tfmm data convert online-retail downloads/online_retail my_tables")
@click.argument("source", type=click.Choice(["online-retail", "taobao-mm"]))
@click.argument("source_dir", type=ExistingFolder)
@click.argument("output_dir", type=Folder)
def data_convert(source: str, source_dir: pathlib.Path, output_dir: pathlib.Path) -> None:
    """Convert a public data set to the tables that `tfmm data schema` describes."""
    from tfmm.data.sources import online_retail, taobao_mm

    {"online-retail": online_retail, "taobao-mm": taobao_mm}[source].convert(source_dir, output_dir)
    click.echo(f"Wrote {source} to {output_dir}.")


@data.command("copy-log", example="tfmm data copy-log kafka://127.0.0.1:9092/served logs/served")
@click.argument("url", type=str)
@click.argument("output_dir", metavar="FOLDER", type=Folder)
def data_copy_log(url: str, output_dir: pathlib.Path) -> None:
    """Copy what is new in a log of requests or of events, such as a topic, into a folder that training reads."""
    from serving.streaming import log_copy

    log_copy.copy(url, output_dir, click.echo)
