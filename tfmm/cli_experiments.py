"""The command `tfmm experiments`: the paper's tables and figures on any data."""

from __future__ import annotations

import logging
import pathlib
import shlex
import sys

import click

from tfmm.cli_options import Command, ExistingFolder, Folder, load_config, run_options

NAMES = ("tune", "table2", "fig6a", "bank", "table3", "fig3", "fig6b", "fig6c", "tiers")


@click.command(
    cls=Command,
    example="tfmm experiments table3 --data my_tables\ntfmm experiments all --seeds 1 --budget-minutes 60",
)
@click.argument("names", nargs=-1, required=True, type=click.Choice([*NAMES, "all"]))
@click.option("--data", "data_dir", type=ExistingFolder, help="Parquet tables.  [default: the run's marketplace]")
@click.option(
    "--output",
    "output_dir",
    type=Folder,
    default=pathlib.Path("experiments"),
    show_default=True,
    help="Pages, results, and all that was trained; run again to go on where it stopped.",
)
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="How many.")
@click.option("--budget-minutes", type=click.FloatRange(0, min_open=True), help="Begin nothing more after that.")
@click.option(
    "--tuned",
    "tuned_path",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="Settings that `tfmm experiments tune` chose: its tuned.json.",
)
@run_options
def experiments(
    names: tuple[str, ...],
    data_dir: pathlib.Path | None,
    output_dir: pathlib.Path,
    seeds: int,
    budget_minutes: float | None,
    tuned_path: pathlib.Path | None,
    run: str,
    assignments: tuple[str, ...],
) -> None:
    """Make the paper's tables and figures, a page each, on any data; `all` is all but tune."""
    from tfmm.data import declared, unread
    from tfmm.experiments import catalog

    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it counts the graphs of one process: here are many
    config = load_config(run, assignments)
    if data_dir is not None:
        unread.say(data_dir, click.echo, declared.tables(config.feature_set, config.modality_set))
    chosen = list(catalog.ALL) if "all" in names else list(dict.fromkeys(names))
    catalog.run_all(
        chosen,
        config,
        output_dir,
        data_dir=data_dir,
        seeds=seeds,
        tuned_path=tuned_path,
        budget_minutes=float("inf") if budget_minutes is None else budget_minutes,
        command=shlex.join(["tfmm", *sys.argv[1:]]),
        say=click.echo,
    )
