"""Experiments on encoders: table 2, figure 6a, and the memory bank."""

from __future__ import annotations

import json
import pathlib
import typing

import numpy as np

from tfmm import config
from tfmm.config import RunConfig, SCLConfig
from tfmm.evaluate import encoders as evaluate_encoders
from tfmm.experiments import content_baselines, gains, image_text
from tfmm.experiments.click_models import METHODS, with_methods
from tfmm.experiments.experiment import (
    BOTH,
    ID,
    NO_BANK,
    Basis,
    Cell,
    Experiment,
    Facts,
    Figure,
    Found,
    Result,
    encoder_cell,
    with_encoders,
)
from tfmm.experiments.workspace import FACTS, SCL, UNTRAINED, Workspace
from tfmm.stages import examples

IMAGE_TEXT = "picture against description"
FULL, NO_TRIPLET, IN_BATCH = "SCL", "without triplet loss", "without triplet loss and bank"
ACCURACIES = ("acc_at_1", "acc_at_5")
PAPER = {
    "CLIP-O": {"Acc@1": "0.2559", "Acc@5": "0.3575"},
    "CLIP-E": {"Acc@1": "0.2952", "Acc@5": "0.3917"},
    FULL: {"Acc@1": "0.7474", "Acc@5": "0.8850"},
    NO_TRIPLET: {"Acc@1": "0.6957", "Acc@5": "0.8604"},
    IN_BATCH: {"Acc@1": "0.5760", "Acc@5": "0.7590"},
}
TABLE2 = {"encoder": "name", "Acc@1": "acc_at_1", "by seed": "acc_at_1_by_seed", "Acc@5": "acc_at_5"}


def _without_content(pairs_config: SCLConfig) -> tuple[str, typing.Callable[..., dict[str, float]]] | None:
    """Returns the name and the function of the baseline that no encoder is needed for; None for an own modality."""
    kind = pairs_config.encoder or pairs_config.modality
    found = {"image": ("pixels", content_baselines.pixels), "text": ("TF-IDF", content_baselines.tf_idf)}
    return found.get(kind)


def _table2_cells(basis: Basis) -> list[Cell]:
    run, workspace = basis.run, basis.workspace
    variants = {
        IN_BATCH: with_encoders(run, triplet_weight=0.0, **NO_BANK),
        NO_TRIPLET: with_encoders(run, triplet_weight=0.0),
        FULL: run,
    }
    cells = []
    for modality, settings in _learned(run, workspace).items():
        if baseline := _without_content(settings):
            cells.append(_baseline_cell(f"{modality}: {baseline[0]}", run, modality, settings, baseline[1]))
        cells += [encoder_cell(f"{modality}: {name}", changed, modality) for name, changed in variants.items()]
    learned = _learned(run, workspace)
    if [learned.get(side) and (learned[side].encoder or side) for side in image_text.SIDES] == list(image_text.SIDES):
        cells += [Cell(f"{side}: {IMAGE_TEXT}", run.seed, _image_text(run, side)) for side in image_text.SIDES]
    return cells


def _image_text(run: RunConfig, side: str) -> typing.Callable[[Workspace], Facts]:
    def make(workspace: Workspace) -> Facts:
        configs, pairs = workspace.learned(run), workspace.pairs(run)

        def write(folder: pathlib.Path) -> None:
            found = image_text.fit(configs, workspace.data_dir, pairs, run.modality_set, run.data.time_zone)
            (folder / FACTS).write_text(json.dumps(found))

        settings = [config.to_dict(configs[name]) for name in image_text.SIDES]
        return json.loads((workspace.made("image_text", settings, [pairs], write) / FACTS).read_text())[side]

    return make


def _baseline_cell(
    row: str, run: RunConfig, modality: str, settings: SCLConfig, read: typing.Callable[..., dict[str, float]]
) -> Cell:
    return Cell(row, run.seed, lambda workspace: read(settings, workspace.pairs(run) / modality))


def _table2(found: Found) -> Result:
    rows = [_accuracy_row(found, name) for name in found.facts]
    for name, cells in found.facts.items():
        if name.endswith(f": {FULL}"):
            modality = name.partition(":")[0]
            for suffix in ("untrained", "chance"):
                values = {f"{key}": float(np.mean([cell[f"{key}_{suffix}"] for cell in cells])) for key in ACCURACIES}
                rows.append({"name": f"{modality}: {suffix}", **values})
    rows.sort(key=lambda row: (row["name"].partition(":")[0], row["acc_at_1"]))
    bars = {"Acc@1": [(row["name"], row["acc_at_1"]) for row in rows]}
    notes = (
        "CLIP-O and CLIP-E were not run: they need the weights of CLIP, by path. In place of CLIP-E stands the same "
        "training, picture against description, from our encoders. Pixels or TF-IDF, untrained and chance are ours.",
        *sorted({warning for cells in found.facts.values() for cell in cells for warning in cell.get("warnings", [])}),
    )
    figure = Figure("Acc@1 on held-out items", "encoder", "Acc@1", bars, "bars")
    return Result(TABLE2, rows, (figure,), notes, PAPER)


def _accuracy_row(found: Found, name: str) -> Facts:
    by_seed = [cell["acc_at_1"] for cell in found.facts[name]]
    return {"name": name, "acc_at_1_by_seed": by_seed, **{key: found.mean(name, key) for key in ACCURACIES}}


BANKS, MOMENTA = (0, 64, 256, 1_024, 8_192, 196_800), (0.9, 0.99, 0.999)


def _bank_cells(basis: Basis) -> list[Cell]:
    run, workspace = basis.run, basis.workspace
    cells = []
    for modality in _learned(run, workspace):
        for size in BANKS:
            sizes = {**NO_BANK, "memory_bank_size": size, "lone_positive_bank": size, "memory_bank_share": float(size)}
            cells.append(encoder_cell(f"{modality}: K={size:,}", with_encoders(run, **sizes), modality))
        for momentum in MOMENTA:
            name = f"{modality}: bank alone, momentum {momentum}"
            alone = with_encoders(
                run, bank="ours", in_batch_negatives=False, momentum=momentum, memory_bank_size=BANKS[-1]
            )
            cells.append(encoder_cell(name, alone, modality))
    return cells


def _bank(found: Found) -> Result:
    rows = [{**_accuracy_row(found, name), "size": found.mean(name, "memory_bank_size")} for name in found.facts]
    series: dict[str, list[tuple[typing.Any, float]]] = {}
    for row in rows:
        modality, _, what = row["name"].partition(": ")
        if what.startswith("K="):
            series.setdefault(modality, []).append((max(row["size"], 1.0), row["acc_at_1"]))
    items = max(cell["distinct_positives"] for cells in found.facts.values() for cell in cells)
    notes = (
        f"The catalog gives {items:,} distinct positives; the paper's bank of 196,800 stands beside hundreds of "
        "millions. K is what is asked for, the column says what was held. `bank alone` has no in-batch negatives, as "
        "the paper's.",
    )
    columns = TABLE2 | {"keys held": "size"}
    return Result(columns, rows, (Figure("Acc@1 by the size of the bank", "keys, log", "Acc@1", series),), notes)


ENCODERS: dict[str, dict[str, typing.Any]] = {  # of figure 6a, from little learned to much
    "an eighth of the epochs": {"share": 8},
    "half of the epochs": {"share": 2},
    IN_BATCH: {"triplet_weight": 0.0, **NO_BANK},
    NO_TRIPLET: {"triplet_weight": 0.0},
    FULL: {},
}


def _figure6a_cells(basis: Basis) -> list[Cell]:
    run, workspace = basis.run, basis.workspace
    both = with_methods(run, METHODS[BOTH])
    cells = [basis.click_cell(ID, run, None), _worth_cell(basis, "untrained", both, UNTRAINED)]
    for name, settings in ENCODERS.items():
        changed = {key: value for key, value in settings.items() if key != "share"}
        if "share" in settings:
            most = _learned(run, workspace).values()
            for setting in ("epochs", "max_pairs_seen"):  # whichever ends it
                changed[setting] = max(1, max(getattr(one, setting) for one in most) // settings["share"])
        cells.append(_worth_cell(basis, name, with_encoders(both, **changed), SCL))
    return cells


def _worth_cell(basis: Basis, row: str, run: RunConfig, vectors: str) -> Cell:
    """Returns the cell of a click model beside its encoders' Acc@1, and what their vectors say without a model."""

    def make(workspace: Workspace) -> Facts:
        names = _learned(run, workspace)
        suffix = "_untrained" if vectors == UNTRAINED else ""
        manifests = [encoder_cell("", run, name).make(workspace) for name in names]
        facts = basis.click_cell(BOTH, run, vectors).make(workspace)
        facts["acc_at_1"] = float(np.mean([one[f"acc_at_1{suffix}"] for one in manifests]))
        return {**facts, "probe": probed(workspace, run, vectors)}

    return Cell(row, run.seed, make)


def probed(workspace: Workspace, run: RunConfig, vectors: str) -> float:
    """Returns the GAUC of the largest cosine of target and history, the mean over modalities; no model between."""
    _, held_out = examples.patterns(workspace.examples(run))
    found = evaluate_encoders.probe_encoders(held_out, run.feature_set, workspace.vectors(run, vectors))
    return float(np.mean([facts["probe"]["gauc"] for facts in found.values()]))


def _figure6a(found: Found) -> Result:
    rows, series = [], {"Acc@1": [], "probe": []}  # type: ignore[var-annotated]
    for name in found.facts:
        if name == ID:
            continue
        gain = gains.gain(found.held_out, found.scores(name), found.scores(ID))["gauc"]
        rows.append({
            "name": name, "acc_at_1": found.mean(name, "acc_at_1"), "probe": found.mean(name, "probe"),
            "gauc_gain": gain["value"], "gauc_interval": [gain["low"], gain["high"]],
        })  # fmt: skip
    for key, name in (("acc_at_1", "Acc@1"), ("probe", "probe")):
        series[name] = [(row[key], row["gauc_gain"]) for row in rows]
    notes = tuple(
        f"{name} against the gain: correlation {value:+.2f} [{low:+.2f}, {high:+.2f}] over {len(rows)} encoders; "
        f"{slope:+.4f} GAUC for {step} more."
        for name, (value, low, high, slope), step in (
            ("Acc@1", correlation(series["Acc@1"], 0.1), ".1"), ("The probe", correlation(series["probe"], 0.01), ".01")
        )
    )  # fmt: skip
    notes += (
        "The probe is ours: GAUC of the largest cosine between target and history, without any click model. The paper "
        "leaves better metrics of an encoder as an open question (section 6.2.1).",
    )
    columns = {"encoder": "name", "Acc@1": "acc_at_1", "probe": "probe", "GAUC gain": "gauc_gain",
               "95 % of users": "gauc_interval"}  # fmt: skip
    figures = tuple(
        Figure(f"{name} and what it brings", name, "GAUC gain", {"encoders": points}, "points")
        for name, points in series.items()
    )
    return Result(columns, rows, figures, notes)


def correlation(points: typing.Sequence[tuple[float, float]], step: float) -> tuple[float, float, float, float]:
    """Returns Pearson's correlation of points with its 95 % interval by Fisher's z, and the rise of y for `step` of x.

    NaN where fewer than four points, or points of one x or y, say nothing.
    """
    x, y = np.array(points, float).reshape(-1, 2).T
    if len(x) < 4 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return (float("nan"),) * 4
    found = float(np.corrcoef(x, y)[0, 1])
    z, half = np.arctanh(np.clip(found, -0.999999, 0.999999)), 1.96 / np.sqrt(len(x) - 3)
    return found, float(np.tanh(z - half)), float(np.tanh(z + half)), float(np.polyfit(x, y, 1)[0] * step)


def _learned(run: RunConfig, workspace: Workspace) -> dict[str, SCLConfig]:
    found = workspace.learned(run)
    if not found:
        raise ValueError(
            f"Experiments on encoders need data that trains one: titles or images with searches, orders or clicks. "
            f"Received: {workspace.data_dir}, whose items bring ready vectors, or nothing. Run table3, fig3, fig6b, "
            "fig6c or tiers."
        )
    return found


EXPERIMENTS = (
    Experiment(
        "table2", "What teaches an encoder (table 2)",
        "What do hard negatives and the memory bank bring, and is training better than none? Section 6.2.",
        _table2_cells, _table2,
    ),
    Experiment(
        "fig6a", "From accuracy to clicks (figure 6a)",
        "Does an encoder of higher Acc@1 make a better click model, and what tells it sooner? Section 6.2.1.",
        _figure6a_cells, _figure6a,
    ),
    Experiment(
        "bank", "The memory bank",
        "How many keys, at what momentum, and from what catalog on? Ours.", _bank_cells, _bank,
    ),
)  # fmt: skip
