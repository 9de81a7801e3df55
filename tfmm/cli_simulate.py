"""The command `tfmm simulate`: an A/B of ids alone against item vectors, through the running system."""

from __future__ import annotations

import pathlib

import click

from tfmm.cli_demo import trained_in
from tfmm.cli_options import Command, ExistingFolder


@click.command(cls=Command, example="tfmm simulate quickstart\ntfmm simulate quickstart --days 1 --json simulated.json")
@click.argument("workdir", type=ExistingFolder)
@click.option("--days", type=int, default=7, show_default=True, help="Simulated, after the marketplace's week.")
@click.option("--visits-per-day", type=int, default=1024, show_default=True, help="At least: periods end with a block.")
@click.option("--slots", type=int, default=8, show_default=True, help="Items that a visit is shown.")
@click.option("--candidates", type=int, default=64, show_default=True, help="That compete for the slots.")
@click.option(
    "--push-hours", type=int, default=12, show_default=True, help="Simulated, between the trainers' new models."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Of visits and clicks.")
@click.option("--json", "json_path", type=click.Path(dir_okay=False, path_type=pathlib.Path), help="Gets the results.")
def simulate(
    workdir: pathlib.Path, days: int, visits_per_day: int, slots: int, candidates: int, push_hours: int, seed: int,
    json_path: pathlib.Path | None,
) -> None:  # fmt: skip
    """Simulate an A/B: ids alone against item vectors, with new items, an auction and near-line training.

    WORKDIR is of `tfmm quickstart`; what the simulation writes stands in its folder `simulation`.
    """
    from serving.simulation import settings as settings_lib
    from serving.simulation.run import Simulation

    if json_path is not None and not json_path.absolute().parent.is_dir():
        raise ValueError(f"`--json` must name a file in a folder that is there. Received: {json_path}.")
    settings = settings_lib.Settings(days, visits_per_day, slots, candidates, push_hours, seed)
    trained = trained_in(workdir.resolve())
    run = settings_lib.verify(trained)
    raise SystemExit(Simulation(trained, run, settings, json_path).main())
