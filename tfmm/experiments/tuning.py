"""Settings for the tables, chosen on a validation split: the newest of the training rows, never the held-out ones."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfmm.assignments import override
from tfmm.config import RunConfig
from tfmm.data import declared, schema, times
from tfmm.data import pairs as pairs_lib
from tfmm.experiments.click_models import METHODS, with_methods
from tfmm.experiments.experiment import (
    ID,
    NO_BANK,
    Basis,
    Cell,
    Experiment,
    Facts,
    Found,
    Result,
    encoder_cell,
    with_encoders,
)
from tfmm.experiments.workspace import SCL, Workspace

MIN_ROWS = 100
BUDGET = 12  # settings tried of each method, of ids alone too, and of each encoder
ENCODER = " encoder"  # ends the name of a row that is no click model
CHOSEN = "tuned.json"  # beside the result: settings by row, for `tfmm experiments --tuned`
CLICK_MODELS = tuple(
    (f"ctr.learning_rate={rate}", f"ctr.embedding_learning_rate={embedding}", f"ctr.batch_size={batch}")
    for rate, embedding, batch in itertools.product((1e-3, 2e-3, 4e-3), (1e-2, 2e-2), (256, 512))
)
ENCODERS: tuple[dict[str, typing.Any], ...] = (
    *({"batch_size": b, "learning_rate": r} for b, r in itertools.product((64, 128, 256), (1e-3, 2e-3, 4e-3))),
    NO_BANK,
    {"temperature": 0.1},
    {"dim": 128},
)


def validation(workspace: Workspace, run: RunConfig) -> Workspace:
    """Returns a workspace on the data without the held-out impressions: what it holds out is the end of the rest.

    Left out are impressions from the first held-out one on, or those that the table's `split` does not train on. Other
    tables are the same files, as a history ends before its impression. The impressions are read as a whole.

    Raises:
        ValueError: fewer than `MIN_ROWS` impressions are trained on.
    """
    tables = declared.tables(run.feature_set, run.modality_set)

    def write(folder: pathlib.Path) -> None:
        parts = schema.table_parts(workspace.data_dir, "impressions", tables)
        names = [name for name in (one.name for one in tables["impressions"].columns) if name in parts[0].schema.names]
        read = [schema.read_part(part, "impressions", names, None, tables) for part in parts]
        rows = schema.concatenate(read)
        if "split" in names:
            kept = rows.filter(pc.fill_null(pc.equal(rows["split"], "train"), False)).drop(["split"])
        else:
            first = int(workspace.held_out(run).column("timestamp").min())
            seen = times.resolutions(workspace.data_dir, run.data.time_zone, ["impressions"], tables)["impressions"]
            _, latest = times.read_bounds(workspace.data_dir, "impressions", seen, tables)
            kept = rows.filter(pa.array(latest < first))
        if len(kept) < MIN_ROWS:
            raise ValueError(
                f"Settings are tuned on at least {MIN_ROWS} impressions that are not held out. Received: {len(kept)}."
            )
        data = folder / "data"
        data.mkdir()
        for path in sorted(workspace.data_dir.iterdir()):
            if path.name.partition(".")[0] != "impressions":  # nothing is ever written through a link
                (data / path.name).symlink_to(path.resolve())
        pq.write_table(kept, data / "impressions.parquet")

    folder = workspace.made("validation", workspace.examples(run).name, [], write)
    inside = Workspace(workspace.folder, folder / "data", workspace.say, workspace.progress)
    inside.used = workspace.used
    return inside


def validation_pairs(workspace: Workspace, run: RunConfig, modality: str) -> pathlib.Path:
    """Returns a folder of one modality's training pairs, split by item once more: no held-out pair is among them."""
    found = workspace.pairs(run)

    def write(folder: pathlib.Path) -> None:
        pairs = pq.read_table(found / modality / "train.parquet")
        split = dataclasses.replace(run.pairs, seed=run.pairs.seed + 1)  # other items than those held out before
        held = pairs_lib.is_heldout(pairs["positive_item_id"].to_numpy().astype(np.int64), split)
        query, positive = (_plain(pairs[name]) for name in ("query", "positive"))
        shown = pc.is_in(query, positive.filter(pa.array(held)).unique())
        (folder / modality).mkdir()
        pq.write_table(pairs.filter(pa.array(held)), folder / modality / "heldout.parquet")
        pq.write_table(pairs.filter(pa.array(~held & ~shown.to_numpy())), folder / modality / "train.parquet")

    return workspace.made("validation_pairs", modality, [found], write)


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _click_cells(basis: Basis) -> list[Cell]:
    run, workspace = basis.run, basis.workspace
    inside, untuned = validation(workspace, run), Basis(run, workspace)
    runs = {ID: (run, None), **{name: (with_methods(run, methods), SCL) for name, methods in METHODS.items()}}
    return [
        _inside(
            untuned.click_cell(_row(name, " ".join(settings)), override(changed, settings), vectors), inside, settings
        )
        for settings in CLICK_MODELS[:BUDGET]
        for name, (changed, vectors) in runs.items()
    ]


def _encoder_cells(basis: Basis) -> list[Cell]:
    run, workspace = basis.run, basis.workspace
    cells = []
    for settings, modality in itertools.product(ENCODERS[:BUDGET], workspace.learned(run)):
        pairs = functools.partial(validation_pairs, run=run, modality=modality)
        cell = encoder_cell(
            _row(f"{modality}{ENCODER}", json.dumps(settings)),
            with_encoders(run, modality, **settings),
            modality,
            pairs,
        )
        cells.append(_inside(cell, workspace, settings))
    return cells


def _row(name: str, settings: str) -> str:
    return f"{name} | {settings}"


def _inside(cell: Cell, inside: Workspace, settings: typing.Any) -> Cell:
    """Returns a cell that is made in a workspace of what is not held out."""
    return cell._replace(make=lambda _: {**cell.make(inside), "settings": settings})


def _tune(found: Found) -> Result:
    best: dict[str, tuple[float, Facts]] = {}
    rows: list[Facts] = []
    for name, cells in found.facts.items():
        what, _, shown = name.partition(" | ")
        key = "acc_at_1" if "acc_at_1" in cells[0] else "gauc"
        value = float(np.mean([cell[key] for cell in cells]))
        rows.append({"name": what, "settings": shown, "metric": key, "value": value})
        if what not in best or value > best[what][0]:
            best[what] = (value, cells[0])
    chosen = {what: facts["settings"] for what, (_, facts) in best.items()}
    for row in rows:
        row["best"] = "best" if row["value"] == best[row["name"]][0] else ""
    rows.sort(key=lambda row: (row["name"], -row["value"]))
    notes = (
        f"{BUDGET} settings of each, the same for every method and for ids alone, judged on the newest training rows, "
        "encoders on pairs of items that are trained on else; nothing that is held out was looked at. "
        f"`--tuned {CHOSEN}` gives the best to the tables.",
    )
    columns = {"what": "name", "settings": "settings", "metric": "metric", "value": "value", "": "best"}
    return Result(columns, rows, (), notes, chosen=chosen)


EXPERIMENTS = (
    Experiment(
        "tune", "Settings", "Which settings suit this data? The tables start from them.",
        lambda basis: [*_click_cells(basis), *_encoder_cells(basis)], _tune,
    ),
)  # fmt: skip
