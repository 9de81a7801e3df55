"""The commands `tfmm pipeline ...`: what the DAG has done in a workdir."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import click

from tfmm.cli_options import ExistingFolder, Group


@click.group(cls=Group)
def pipeline() -> None:
    """Look at the runs of the batch DAG."""


@pipeline.command(
    "status",
    example="tfmm pipeline status --workdir quickstart\ntfmm pipeline status --workdir quickstart --json",
)
@click.option(
    "--workdir",
    type=ExistingFolder,
    envvar="TFMM_WORKDIR",
    default="tfmm_workdir",
    show_default=True,
    show_envvar=True,
    help="Of the runs.",
)
@click.option("--run", "run_id", help="Whose nodes are shown, by id or its beginning.  [default: the last]")
@click.option("--lineage", is_flag=True, help="Show the run's artifacts too, and what each was made of.")
@click.option("--json", "as_json", is_flag=True, help="Everything about all runs, as one JSON object.")
def status(workdir: pathlib.Path, run_id: str | None, lineage: bool, as_json: bool) -> None:
    """Show runs, states, seconds per node, artifacts and lineage, also while a run goes on."""
    from rich import console

    from tfx_pipeline import status as status_lib

    found = status_lib.read(workdir)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), ensure_ascii=False))
        return
    terminal = console.Console()
    for table in status_lib.tables(found, run_id, lineage):
        terminal.print(table)
    if found.at_work:
        terminal.print(f"At work now: {found.at_work}", markup=False, highlight=False)
