"""`tfmm train --head pre-ranking`: the light head of the models that lie in `--output`."""

from __future__ import annotations

import contextlib
import pathlib
import typing

import click

from tfmm.cli_options import take_config


def train(
    others: typing.Mapping[str, object],
    data_dir: pathlib.Path | str,
    snapshot_dir: pathlib.Path,
    models_dir: pathlib.Path,
    run: str | None,
    assignments: tuple[str, ...],
) -> None:
    """Trains the head and exports it, see `stages.pre_ranking.train_pre_ranking`.

    Args:
        others: options by name that are of the ranking model's training alone; None: not given.
        data_dir, snapshot_dir, models_dir, run, assignments: as `tfmm train` takes them.
    Raises:
        FileNotFoundError: there is no ranking model.
        ValueError: another option was given, or the run differs from the models' in what they are made of.
    """
    from tfmm import folder_lock
    from tfmm.stages import folders, pre_ranking, run_file
    from tfmm.training import devices, progress

    if given := [name for name, value in others.items() if value is not None]:
        raise ValueError(
            "`--head pre-ranking` reads the examples that the ranking model in --output was trained on, so that "
            f"{', '.join(others)} must be left out. Received: {', '.join(given)}."
        )
    pre_ranking.require_ranking(models_dir)
    config = take_config("models", models_dir, run, assignments, is_training=True)
    with contextlib.ExitStack() as stack:
        if devices.is_chief(config.training):
            stack.enter_context(folder_lock.hold(models_dir))  # nobody trains the ranking model meanwhile
            stack.enter_context(run_file.beside(config, models_dir / folders.PRE_RANKING))
        lines = progress.lines(click.echo)
        manifest = pre_ranking.train_pre_ranking(config, data_dir, snapshot_dir, models_dir, lines)
    found = ", ".join(f"{name} {value:.4f}" for name, value in manifest["metrics"].items())
    click.echo(f"pre-ranking: {found}; `pre_rank` is in {models_dir / folders.MULTIMODAL / folders.SERVING}")
