"""The command `tfmm demo`: all that is online, over a workdir that a quickstart has trained in."""

from __future__ import annotations

import pathlib
import typing

import click

from tfmm.cli_options import Command, ExistingFolder

if typing.TYPE_CHECKING:
    from serving.demo.trained import Trained


@click.command(cls=Command, example="tfmm demo quickstart\ntfmm demo quickstart --seconds 60")
@click.argument("workdir", type=ExistingFolder)
@click.option("--seconds", type=click.FloatRange(min=0), help="End after so long.  [default: at Ctrl-C]")
@click.option("--events-per-s", type=click.FloatRange(min=0), default=5.0, show_default=True, help="New items.")
@click.option("--requests-per-s", type=click.FloatRange(min=0), default=10.0, show_default=True, help="Of shoppers.")
@click.option(
    "--slice-rows",
    type=click.IntRange(min=1),
    default=2000,
    show_default=True,
    help="Impressions after which the near-line trainer's model is judged.",
)
def demo(
    workdir: pathlib.Path, seconds: float | None, events_per_s: float, requests_per_s: float, slice_rows: int
) -> None:
    """Run all that is online: Kafka, Redis, stream, server, near-line trainer, and a shop's traffic.

    WORKDIR is of `tfmm quickstart`; what the demo writes stands in its folder `demo`.
    """
    from serving.demo import run as demo_run
    from serving.demo.machinery import Rules

    options = demo_run.Options(seconds, events_per_s, requests_per_s, Rules(slice_rows=slice_rows))
    raise SystemExit(demo_run.Demo(trained_in(workdir.resolve()), options).main())


def trained_in(workdir: pathlib.Path) -> Trained:
    """Returns where a quickstart leaves what the demo, and a simulation, stand on, whether it is there or not."""
    from serving.demo.trained import Trained
    from tfmm import config
    from tfmm.stages import run_file
    from tfx_pipeline import environments, published

    run = run_file.read(workdir)
    links = {output: workdir / name for name, output in published.OUTPUTS.items()}
    place = environments.Environment(workdir, None, run or config.RunConfig())
    return Trained(
        workdir,
        run,
        tables=links["Marketplace.dataset"],
        index=pathlib.Path(place.index_url),
        encoders=place.encoders_dir,
        model=links["MultimodalTrainer.model"],
        id_model=links["IDTrainer.model"],
        version=environments.newest_version(place.serving_dir),
    )
