"""All experiments by name, and the run of some of them one after another."""

from __future__ import annotations

import json
import pathlib
import time
import typing

from tfmm import folder_lock
from tfmm.config import RunConfig
from tfmm.experiments import click_models, encoder_runs, page, tuning
from tfmm.experiments.experiment import Experiment, Result, carry_out, with_encoders
from tfmm.experiments.workspace import Say, Workspace
from tfmm.marketplace import generator
from tfmm.stages import run_file
from tfmm.training import progress as progress_lib

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one for one in (*tuning.EXPERIMENTS, *encoder_runs.EXPERIMENTS, *click_models.EXPERIMENTS)
}
ALL = tuple(name for name in EXPERIMENTS if name not in [one.name for one in tuning.EXPERIMENTS])


def run_all(
    names: typing.Sequence[str],
    run: RunConfig,
    output_dir: pathlib.Path,
    *,
    data_dir: pathlib.Path | None = None,
    seeds: int = 3,
    tuned_path: pathlib.Path | None = None,
    budget_minutes: float = float("inf"),
    command: str = "",
    say: Say = print,
    progress: progress_lib.Progress = progress_lib.silent,
) -> dict[str, Result]:
    """Carries out experiments one after another, and writes each into a folder of its name.

    What was made stays in `<output_dir>/artifacts`: the same call goes on where it was stopped, and an artifact that
    two experiments need is made once. Nothing is ever removed there.

    Args:
        names: keys of `EXPERIMENTS`.
        run: the settings that all start from.
        output_dir: gets `<name>/index.html`, `result.json` and plots.
        data_dir: the tables; None: the marketplace that the run declares.
        seeds: how many, from the run's own on.
        tuned_path: what `tune` chose, as it wrote it.
        budget_minutes: no further cell is begun after so many; each experiment has an equal share of what is left.
        command: what was typed, for the page.
        say: is told what happens.
        progress: called with the steps done.
    Returns:
        The results by name.
    Raises:
        ValueError: settings or data that an experiment cannot work with; of several, the others are carried out.
        BlockingIOError: another process is at work in the folder.
    """
    chosen = {} if tuned_path is None else json.loads(tuned_path.read_text())
    for row, settings in chosen.items():
        if row.endswith(tuning.ENCODER):
            run = with_encoders(run, row.removesuffix(tuning.ENCODER), **settings)
    results: dict[str, Result] = {}
    begun = time.monotonic()
    with folder_lock.hold(output_dir):
        data = data_dir or _marketplace(run, output_dir / "marketplace", say)
        workspace = Workspace(output_dir / "artifacts", data, lambda line: say(f"  {line}"), progress)
        for number, name in enumerate(names):
            left = budget_minutes * 60.0 - (time.monotonic() - begun)
            until = time.monotonic() + left / (len(names) - number)
            experiment = EXPERIMENTS[name]
            many = range(run.seed, run.seed + seeds)
            try:
                result, how = carry_out(experiment, run, workspace, many, say, chosen, until)
            except ValueError as error:
                if len(names) == 1:
                    raise
                say(f"{name} was left out: {error}")
                continue
            how |= {"command": command, "data": "the marketplace" if data_dir is None else str(data_dir)}
            folder = output_dir / name
            page.write(folder, experiment, result, how)
            if result.chosen:
                (folder / tuning.CHOSEN).write_text(json.dumps(result.chosen, indent=2) + "\n")
            say(f"{folder / page.PAGE}: {how['minutes']} minutes")
            results[name] = result
    return results


def _marketplace(run: RunConfig, folder: pathlib.Path, say: Say) -> pathlib.Path:
    """Returns the marketplace of the run, made where missing."""
    made_by = run_file.read(folder)
    if made_by is None or made_by.marketplace != run.marketplace:
        say("Making the marketplace.")
        generator.generate(run.marketplace, folder)
        run_file.write(run, folder)
    return folder
