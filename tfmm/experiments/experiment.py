"""One experiment: its cells, each a run under one seed, and what they say together."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
import typing

import numpy as np

from tfmm.assignments import override
from tfmm.config import RunConfig
from tfmm.experiments import gains
from tfmm.experiments.workspace import SCL, SCORES, Say, Workspace, read_facts

Facts = dict[str, typing.Any]
ID, BOTH = "ID", "simtier+make"  # rows: of ids alone, and of the paper's two methods together
NO_BANK: typing.Any = {"bank": "ours", "memory_bank_size": 0, "in_batch_negatives": True}  # settings of an encoder


class Cell(typing.NamedTuple):
    """One run of an experiment.

    Attributes:
        row: what it stands for in the table.
        seed: of all that is drawn.
        make: makes its artifacts, or finds them made; returns what is known of them.
    """

    row: str
    seed: int
    make: typing.Callable[[Workspace], Facts]


class Basis(typing.NamedTuple):
    """What the cells of one seed start from.

    Attributes:
        run: seeded; encoders as they were tuned.
        workspace: keeps what is made.
        chosen: settings that were tuned, by row.
    """

    run: RunConfig
    workspace: Workspace
    chosen: typing.Mapping[str, typing.Any] = {}

    def click_cell(
        self, row: str, run: RunConfig, vectors: str | None = SCL, is_served: bool = False, **more: typing.Any
    ) -> Cell:
        """Returns the cell of a click model, tuned where it was; of ids alone where `vectors` is None.

        What was not tuned takes the settings of simtier+make, the nearest that was. Where it `is_served`, it is
        exported and its answers are timed.
        """
        tuned = override(run, self.chosen.get(row if vectors is not None else ID, self.chosen.get(BOTH, ())))

        def make(workspace: Workspace) -> Facts:
            snapshot = None if vectors is None else workspace.vectors(tuned, vectors)
            folder = workspace.click_model(tuned, snapshot, **more)
            served = {"serving_ms": workspace.serving_ms(tuned, folder, snapshot)} if is_served else {}
            return {**read_facts(folder), **served, "folder": str(folder)}

        return Cell(row, run.seed, make)


class Figure(typing.NamedTuple):
    """Lines or bars of a plot, and what the axes show."""

    title: str
    x: str
    y: str
    series: dict[str, list[tuple[typing.Any, float]]]
    kind: str = "line"  # line, points or bars


@dataclasses.dataclass(frozen=True)
class Result:
    """What an experiment found.

    Attributes:
        columns: of the table: a key of the rows by heading.
        rows: values by key; `name` is the row's.
        figures: plots.
        notes: sentences: what was not run, what is ours and not the paper's.
        paper: the paper's own figures: rows by name, values by heading.
        chosen: settings by row, of an experiment that chooses them.
    """

    columns: dict[str, str]
    rows: list[Facts]
    figures: tuple[Figure, ...] = ()
    notes: tuple[str, ...] = ()
    paper: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)
    chosen: dict[str, typing.Any] = dataclasses.field(default_factory=dict)


class Found:
    """The cells that were made: facts by row, one per seed, in the order of the seeds."""

    def __init__(self, run: RunConfig, workspace: Workspace):
        self.run, self.workspace = run, workspace
        self.facts: dict[str, list[Facts]] = {}
        self._rows: gains.Rows | None = None

    @property
    def held_out(self) -> gains.Rows:
        """The held-out rows, which all click models of the experiment score."""
        if self._rows is None:
            self._rows = gains.Rows.of(self.workspace.held_out(self.run), self.run.label)
        return self._rows

    def scores(self, row: str) -> list[np.ndarray]:
        """Returns the held-out scores of a click model's row, per seed."""
        return [np.load(pathlib.Path(facts["folder"]) / SCORES) for facts in self.facts[row]]

    def mean(self, row: str, key: str) -> float:
        """Returns the mean of a fact over the seeds."""
        return float(np.mean([facts[key] for facts in self.facts[row]]))


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One of the paper's tables or figures, or one of ours.

    Attributes:
        name: on the command line.
        title: of its page.
        about: what is asked, and by what; what the paper leaves open and we chose is marked as ours.
        cells: the cells of one seed.
        result: what the cells say.
    """

    name: str
    title: str
    about: str
    cells: typing.Callable[[Basis], list[Cell]]
    result: typing.Callable[[Found], Result]


def carry_out(
    experiment: Experiment,
    run: RunConfig,
    workspace: Workspace,
    seeds: typing.Sequence[int],
    say: Say,
    chosen: typing.Mapping[str, typing.Any] | None = None,
    until: float = float("inf"),
) -> tuple[Result, Facts]:
    """Makes the cells, all rows of a seed before the next seed, and says what they found.

    Args:
        experiment: which.
        run: the settings that the rows change.
        workspace: keeps what was made.
        seeds: one or more.
        say: is told a line per cell.
        chosen: settings that were tuned, see `Basis`.
        until: no further cell is begun after this, in seconds of `time.monotonic`.
    Returns:
        The result; `seeds`, `cells` and `left_out` (names of cells that there was no time for), the `minutes`
        that making its artifacts took, whenever that was, and their `folders`, per row and seed.
    """
    found, left_out, count = Found(run, workspace), [], 0
    workspace.used.clear()
    for seed in seeds:
        for cell in experiment.cells(Basis(run.with_seed(seed), workspace, chosen or {})):
            if time.monotonic() > until:
                left_out.append(f"{cell.row}, seed {seed}")
                continue
            facts = cell.make(workspace)
            count += 1
            found.facts.setdefault(cell.row, []).append(facts)
            shown = " ".join(f"{name} {facts[name]:.4f}" for name in ("acc_at_1", "gauc", "auc") if facts.get(name))
            say(f"{experiment.name}: {cell.row}, seed {seed}: {shown}")
    result = experiment.result(found) if found.facts else Result({}, [])
    if left_out:
        note = f"There was no time for {len(left_out)} cells: {'; '.join(left_out)}."
        result = dataclasses.replace(result, notes=(*result.notes, note))
    minutes = round(workspace.seconds() / 60.0, 2)
    folders = {row: [facts.get("folder", "") for facts in cells] for row, cells in found.facts.items()}
    return result, {"seeds": list(seeds), "cells": count, "left_out": left_out, "minutes": minutes, "folders": folders}


def encoder_cell(
    row: str,
    run: RunConfig,
    modality: str,
    pairs: typing.Callable[[Workspace], pathlib.Path] | None = None,
) -> Cell:
    """Returns the cell of one encoder: what its manifest says; of the run's pairs, or of those that `pairs` returns."""

    def make(workspace: Workspace) -> Facts:
        folder = workspace.encoder(run, modality, pairs(workspace) if pairs else None) / modality
        history = json.loads((folder / "history.json").read_text())
        return {**json.loads((folder / "manifest.json").read_text()), "folder": str(folder), "history": history}

    return Cell(row, run.seed, make)


def with_encoders(run: RunConfig, modality: str | None = None, **settings: typing.Any) -> RunConfig:
    """Returns the run with settings of every encoder that is trained, or of one modality's.

    >>> with_encoders(RunConfig(), triplet_weight=0.0).text.triplet_weight
    0.0
    >>> with_encoders(RunConfig(), "image", dim=32).text.dim
    64
    """
    modalities = tuple(
        dataclasses.replace(one, settings={**one.settings, **settings})
        if one.is_trained and modality in (None, one.name)
        else one
        for one in run.modalities
    )
    bases = {
        name: dataclasses.replace(getattr(run, name), **settings)
        for name in ("image", "text")
        if not modalities and modality in (None, name)
    }
    return dataclasses.replace(run, modalities=modalities, **bases)
