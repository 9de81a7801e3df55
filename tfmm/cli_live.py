"""The command `tfmm live`: the gate's metrics of versions in service, by what became of what they served."""

from __future__ import annotations

import pathlib

import click

from tfmm.cli_options import Command, ExistingFolder


@click.command(cls=Command, example="tfmm live --served logs/served --events logs/events --label-window 3600")
@click.option("--served", "log_dir", type=ExistingFolder, required=True, help="As `tfmm serve --served_log` wrote it.")
@click.option("--events", "events_dir", type=ExistingFolder, required=True, help="What was shown and clicked.")
@click.option("--label", default="label", show_default=True, help="The field of an event that says a click.")
@click.option(
    "--label-window",
    "window_s",
    type=click.FloatRange(min=0, min_open=True),
    default=86_400.0,
    show_default=True,
    help="Seconds after an item was shown in which a click counts.",
)
@click.option("--since", type=float, default=0.0, help="Seconds since 1970, of the first request that counts.")
def live(log_dir: pathlib.Path, events_dir: pathlib.Path, label: str, window_s: float, since: float) -> None:
    """Show AUC, GAUC, LogLoss and calibration of each version in service, and how it differs from the one before."""
    from tfmm.evaluate import live as live_lib

    found, said = live_lib.slices(log_dir, events_dir, label=label, window_s=window_s, since=since)
    for line in said:
        click.echo(line)
    if not found:
        click.echo("No item that was shown is known yet.")
    before: dict[str, live_lib.Slice] = {}
    for (model, version), one in found.items():
        click.echo(
            f"{model} version {version}: {one.requests:,} requests, {one.rows:,} items shown to {one.users:,} users, "
            f"click rate {one.clicks / one.rows:.4f}, mean score {one.mean_score:.4f}"
        )
        for name, value in one.metrics.items():
            text = f"  {name} {value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
            other = live_lib.difference(one, before[model], name) if model in before else None
            if other is not None:
                text += f"; {other.value:+.4f} ({other.low:+.4f} to {other.high:+.4f}) over the version before"
            click.echo(text)
        before[model] = one
