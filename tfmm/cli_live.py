"""The command `tfmm live`: the gate's metrics of versions in service, by what became of what they served."""

from __future__ import annotations

import pathlib
import typing

import click

from tfmm.cli_options import Command, DataFolder, ExistingFolder

if typing.TYPE_CHECKING:
    from tfmm.evaluate.live import Slice


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
@click.option("--data", "data_dir", type=DataFolder, help="Parquet tables: show items in their first day apart.")
@click.option("--time-zone", default="UTC", show_default=True, help="Of times in the tables that have none.")
def live(
    log_dir: pathlib.Path,
    events_dir: pathlib.Path,
    label: str,
    window_s: float,
    since: float,
    data_dir: pathlib.Path | None,
    time_zone: str,
) -> None:
    """Show AUC, GAUC, LogLoss and calibration of each version in service, and how it differs from the one before."""
    from tfmm.data import unread
    from tfmm.data.parts import LayoutError
    from tfmm.evaluate import live as live_lib

    if data_dir is not None:
        try:
            unread.say(data_dir, click.echo)
        except LayoutError as error:  # perhaps of another table than what is read here, which says it itself
            click.echo(f"not used: {error}")
    found, said = live_lib.slices(
        log_dir, events_dir, label=label, window_s=window_s, since=since, data_dir=data_dir, time_zone=time_zone
    )
    for line in said:
        click.echo(line)
    if not found:
        click.echo("No item that was shown is known yet.")
    before: dict[str, Slice] = {}
    for (model, version), one in found.items():
        older = before.get(model)
        click.echo(f"{model} version {version}: {one.requests:,} requests, {_counts(one)}")
        _show_metrics(one, older)
        if data_dir is not None and one.first_day is None:
            click.echo(f"  items in their first day: none {'is known' if one.unknown_age else 'was shown'}")
        elif one.first_day is not None:
            click.echo(f"  items in their first day: {_counts(one.first_day)}")
            _show_metrics(one.first_day, older and older.first_day, indent="    ")
        if one.unknown_age:
            click.echo(
                f"  left out of these: {one.unknown_age:,} impressions show items that the tables lack, or tell no "
                "`created_at` of: export the tables anew"
            )
        before[model] = one


def _counts(one: Slice) -> str:
    return (
        f"{one.rows:,} items shown to {one.users:,} users, click rate {one.clicks / one.rows:.4f}, mean score "
        f"{one.mean_score:.4f}"
    )


def _show_metrics(one: Slice, before: Slice | None, indent: str = "  ") -> None:
    from tfmm.evaluate import live as live_lib

    for name, value in one.metrics.items():
        text = f"{indent}{name} {value.value:.4f} ({value.low:.4f} to {value.high:.4f})"
        other = live_lib.difference(one, before, name) if before is not None else None
        if other is not None:
            text += f"; {other.value:+.4f} ({other.low:+.4f} to {other.high:+.4f}) over the version before"
        click.echo(text)
