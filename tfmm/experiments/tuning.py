"""Settings for the tables, chosen on a validation split: the newest of the training rows, never the held-out ones."""

from __future__ import annotations

import itertools
import json
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfmm.assignments import override
from tfmm.config import RunConfig
from tfmm.data import schema, times
from tfmm.experiments.click_models import METHODS, with_methods
from tfmm.experiments.experiment import (
    ID,
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

BUDGET = 12  # settings tried of each method, of ids alone too, and of each encoder
ENCODER = " encoder"  # ends the name of a row that is no click model
CHOSEN = "tuned.json"  # beside the result: settings by row, for `tfmm experiments --tuned`
CLICK_MODELS = tuple(
    (f"ctr.learning_rate={rate}", f"ctr.embedding_learning_rate={embedding}", f"ctr.batch_size={batch}")
    for rate, embedding, batch in itertools.product((1e-3, 2e-3, 4e-3), (1e-2, 2e-2), (256, 512))
)
ENCODERS: tuple[dict[str, typing.Any], ...] = (
    *({"batch_size": b, "learning_rate": r} for b, r in itertools.product((64, 128, 256), (1e-3, 2e-3, 4e-3))),
    {"memory_bank_size": 0},
    {"temperature": 0.1},
    {"dim": 128},
)


def validation(workspace: Workspace, run: RunConfig) -> Workspace:
    """Returns a workspace on the data without the held-out impressions: what it holds out is the end of the rest.

    Impressions from the first held-out one on are left out; other tables are the same files, as a history ends before
    its impression, and an encoder's pairs where what is trained on ends. The impressions are read as a whole.
    """

    def write(folder: pathlib.Path) -> None:
        first = int(workspace.held_out(run).column("timestamp").min())
        parts = schema.table_parts(workspace.data_dir, "impressions")
        own = {pathlib.Path(part.path).resolve() for part in parts}
        data = folder / "data"
        data.mkdir()
        for path in sorted(workspace.data_dir.resolve().iterdir()):
            if not any(path == file or path in file.parents for file in own):
                (data / path.name).symlink_to(path)
        seen = times.resolutions(workspace.data_dir, run.data.time_zone, ["impressions"])["impressions"]
        _, latest = times.read_bounds(workspace.data_dir, "impressions", seen)
        rows = schema.concatenate([pq.read_table(part.path) for part in parts])
        kept = rows.filter(pa.array(latest < first))
        columns = [name for name in kept.column_names if name != "split"]  # it tells of the rows that are gone
        pq.write_table(kept.select(columns), data / "impressions.parquet")

    folder = workspace.made("validation", workspace.examples(run).name, [], write)
    return Workspace(workspace.folder, folder / "data", workspace.say, workspace.progress)


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
    learned = workspace.learned(run)
    if not learned:
        return []
    inside = validation(workspace, run)
    return [
        _inside(
            encoder_cell(_row(f"{modality}{ENCODER}", json.dumps(settings)), with_encoders(run, **settings), modality),
            inside,
            [f"{modality}.{name}={value}" for name, value in settings.items()],
        )
        for settings in ENCODERS[:BUDGET]
        for modality in learned
    ]


def _row(name: str, settings: str) -> str:
    return f"{name} | {settings}"


def _inside(cell: Cell, inside: Workspace, settings: typing.Sequence[str]) -> Cell:
    """Returns a cell that is made of the data without the held-out rows."""
    return cell._replace(make=lambda _: {**cell.make(inside), "settings": list(settings)})


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
        f"{BUDGET} settings of each, the same for every method and for ids alone, judged on the newest training rows; "
        f"the held-out rows were not scored. `--tuned {CHOSEN}` gives the best to the tables.",
    )
    columns = {"what": "name", "settings": "settings", "metric": "metric", "value": "value", "": "best"}
    return Result(columns, rows, (), notes, chosen=chosen)


EXPERIMENTS = (
    Experiment(
        "tune", "Settings", "Which settings suit this data? The tables start from them.",
        lambda basis: [*_click_cells(basis), *_encoder_cells(basis)], _tune,
    ),
)  # fmt: skip
