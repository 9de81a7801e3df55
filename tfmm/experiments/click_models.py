"""Experiments on click models: table 3, figures 3, 6b and 6c, and the form of tiers."""

from __future__ import annotations

import dataclasses
import functools
import json
import pathlib
import typing

import numpy as np

from tfmm.config import Method, RunConfig
from tfmm.evaluate import report
from tfmm.experiments import gains, projection, serving_time
from tfmm.experiments.experiment import BOTH, ID, Basis, Cell, Experiment, Facts, Figure, Found, Result
from tfmm.experiments.workspace import RANDOM, UNTRAINED, Workspace
from tfmm.metrics import item_frequencies
from tfmm.stages import examples
from tfmm.training.examples import example_files, read_columns

METHODS = {  # of table 3, in its order
    "vector": ("vector",),
    "simscore": ("simscore",),
    "simtier": ("simtier",),
    "make": ("make",),
    BOTH: ("simtier", "make"),
}
BEYOND = {"semantic_id": ("semantic_id",), "sa_ta": ("sa_ta",)}
SEARCH = f"behavior_search, {BOTH}"
BY_VECTORS = {f"{BOTH} on untrained encoders": UNTRAINED, f"{BOTH} on random vectors": RANDOM}
PAPER = {
    ID: {"GAUC gain": "-", "AUC gain": "-"},
    "vector": {"GAUC gain": "+0.29%", "AUC gain": "+0.18%"},
    "simscore": {"GAUC gain": "+0.77%", "AUC gain": "+0.40%"},
    "simtier": {"GAUC gain": "+0.96%", "AUC gain": "+0.59%"},
    "make": {"GAUC gain": "+0.93%", "AUC gain": "+0.51%"},
    BOTH: {"GAUC gain": "+1.25%", "AUC gain": "+0.75%"},
}
GAINS = {
    "method": "name", "GAUC": "gauc", "AUC": "auc", "LogLoss": "logloss", "GAUC gain": "gauc_gain",
    "95 % of users": "gauc_interval", "seeds": "gauc_gain_by_seed", "AUC gain": "auc_gain",
}  # fmt: skip
SERVED = {"serving ms": "serving_ms"}
COSTS = {"parameters": "parameters", "bytes an item": "bytes_per_item", "training rows/s": "rows_per_s"}


def with_methods(run: RunConfig, names: typing.Sequence[str]) -> RunConfig:
    """Returns the run with methods by name, each with the settings that the run has of it."""
    own = {method.name: method for method in run.methods}
    return dataclasses.replace(run, methods=tuple(own.get(name, Method(name)) for name in names))


def gain_rows(found: Found, baseline: str = ID) -> list[Facts]:
    """Returns a row of the table per click model, with its gain over the baseline."""
    rows = []
    for name, cells in found.facts.items():
        facts: Facts = {"name": name, **gains.means(found.held_out, found.scores(name))}
        facts |= {key: found.mean(name, key) for key in (COSTS | SERVED).values() if key in cells[0]}
        if name != baseline and baseline in found.facts:
            gain = gains.gain(found.held_out, found.scores(name), found.scores(baseline))
            facts |= {
                "gain": gain, "gauc_gain": gain["gauc"]["value"], "auc_gain": gain["auc"]["value"],
                "gauc_interval": [gain["gauc"]["low"], gain["gauc"]["high"]],
                "gauc_gain_by_seed": gain["gauc"]["by_seed"],
            }  # fmt: skip
        rows.append(facts)
    return rows


def _table3_cells(basis: Basis) -> list[Cell]:
    run, served = basis.run, functools.partial(basis.click_cell, is_served=True)
    cells = [served(ID, run, None)]
    cells += [served(name, with_methods(run, methods)) for name, methods in (METHODS | BEYOND).items()]
    both = with_methods(run, METHODS[BOTH])
    half = max(1, max(one.length for one in run.feature_set.sequences) // 2)
    searched = (Method("behavior_search", {"num_selected": half}), *both.methods)
    cells.append(served(SEARCH, dataclasses.replace(run, methods=searched)))
    kinds = BY_VECTORS if basis.workspace.learned(run) else {f"{BOTH} on random vectors": RANDOM}
    return cells + [basis.click_cell(name, both, kind) for name, kind in kinds.items()]


def _table3(found: Found) -> Result:
    rows = gain_rows(found)
    bars = {"GAUC gain": [(row["name"], row["gauc_gain"]) for row in rows if "gauc_gain" in row]}
    lengths = ", ".join(f"{one.name} {one.length}" for one in found.run.feature_set.sequences)
    notes = (
        f"L is the same for every method: {lengths}. Gains are absolute; the paper's are relative.",
        "semantic_id, sa_ta and behavior_search, which keeps half of a history, are not in the paper's table.",
        f"Serving is the median of {serving_time.CALLS} calls of `rank`, one user and "
        f"{serving_time.candidates(found.run.export)} candidates, of the exported SavedModel in a session of this "
        "process, without a network, on the machine as it was; the same model on other vectors takes as long.",
        "Untrained encoders and random vectors tell what is content, what is learning, and what is more parameters.",
    )
    figure = Figure("Gain over ids alone", "method", "GAUC", bars, "bars")
    return Result(GAINS | COSTS | SERVED, rows, (figure,), notes, PAPER)


FIG3_EPOCHS, FIG3_EVALUATIONS = 5, 4


def _figure3_cells(basis: Basis) -> list[Cell]:
    run = basis.run
    ids = dataclasses.replace(run, ctr=dataclasses.replace(run.ctr, epochs=FIG3_EPOCHS, decay_from=1.0))
    alone = with_methods(dataclasses.replace(run, make=dataclasses.replace(run.make, epochs=FIG3_EPOCHS)), ["make"])

    def multimodal(workspace: Workspace) -> Facts:
        folder = workspace.make_block(alone, workspace.vectors(alone))
        history = json.loads((folder / "history.json").read_text())
        lines = [{"epoch": n + 1.0, "gauc": _mean_of(line, "gauc")} for n, line in enumerate(history)]
        return {"lines": lines, "gauc": lines[-1]["gauc"], "folder": str(folder)}

    def of_ids(workspace: Workspace) -> Facts:
        facts = basis.click_cell(ID, ids, None, evaluations=FIG3_EVALUATIONS).make(workspace)
        history = json.loads((pathlib.Path(facts["folder"]) / "model" / "history.json").read_text())
        per_epoch = len(history) // FIG3_EPOCHS
        lines = [
            {"epoch": (n + 1) / per_epoch, "gauc": line["gauc"]} for n, line in enumerate(history) if "gauc" in line
        ]
        return {**facts, "lines": lines}

    return [Cell("ids alone", run.seed, of_ids), Cell("multimodal alone", run.seed, multimodal)]


def _figure3(found: Found) -> Result:
    rows, series = [], {}
    for name, cells in found.facts.items():
        lines = {
            epoch: float(np.mean([_at(cell["lines"], epoch) for cell in cells]))
            for epoch in [line["epoch"] for line in cells[0]["lines"]]
        }
        series[name] = list(lines.items())
        first, last = lines.get(1.0, float("nan")), list(lines.values())[-1]
        rows.append({"name": name, "first": first, "last": last, "change": last - first})
    notes = (
        "Multimodal alone is MAKE's extractor, a DIN over item vectors, the mean over modalities; ids alone is the ID "
        "model at a rate that does not fall. The paper's Figure 3 rises for the first and falls after epoch 1 for the "
        "second; it gives no numbers.",
    )
    columns = {"model": "name", "GAUC after epoch 1": "first", f"after epoch {FIG3_EPOCHS}": "last", "change": "change"}
    return Result(columns, rows, (Figure("GAUC by epoch", "epoch", "GAUC", series),), notes)


def _figure6b_cells(basis: Basis) -> list[Cell]:
    both = with_methods(basis.run, METHODS[BOTH])
    return [basis.click_cell(ID, basis.run, None), basis.click_cell(BOTH, both)]


def _figure6b(found: Found) -> Result:
    if {ID, BOTH} - set(found.facts):
        return Result({}, [])
    rows = found.held_out
    pattern = examples.patterns(found.workspace.examples(found.run))[0]
    shown = read_columns(example_files(pattern), found.run.feature_set, ("item_id",))["item_id"]
    counts = item_frequencies(shown, rows.items)
    mean = {name: np.mean(found.scores(name), axis=0) for name in found.facts}
    groups = report.frequency_groups(mean, rows.labels, rows.items, counts, ID, weights=rows.weights)[BOTH]
    table = [
        {
            "name": f"{number + 1}: shown {group['min_count']} to {group['max_count']} times",
            **group,
        }
        for number, group in enumerate(groups)
    ]
    bars = {
        name: [(str(n + 1), group[key]) for n, group in enumerate(groups) if group[key] is not None]
        for name, key in (("AUC", "auc_improvement"), ("LogLoss", "log_loss_improvement"))
    }
    columns = {
        "items by frequency": "name", "items": "items", "rows": "impressions", "AUC, relative": "auc_improvement",
        "LogLoss, relative": "log_loss_improvement",
    }  # fmt: skip
    notes = ("Groups of equally many items, the least shown in training first; scores are the mean over seeds.",)
    figure = Figure("Gain by item frequency", "group", "relative gain", bars, "bars")
    return Result(columns, table, (figure,), notes)


MAKE_EPOCHS = (0, 1, 2, 4, 8)
FINE_TUNED, PROJECTED = "fine-tuned with the click model", "and a projection that the click model trains"
PROJECTION = Method(f"{projection.__name__}:{projection.Projection.__name__}")


def _figure6c_cells(basis: Basis) -> list[Cell]:
    run, cells = basis.run, [basis.click_cell(ID, basis.run, None)]
    both = with_methods(run, METHODS[BOTH])
    for epochs in MAKE_EPOCHS:
        cells.append(basis.click_cell(_epochs(epochs), _with_epochs(both, epochs)))
    # Of the epochs of the run, which one row above has where these are its own.
    trained = _with_epochs(both, max(run.make.epochs, 1))
    tuned = tuple(
        dataclasses.replace(one, settings={**one.settings, "fine_tune": True}) if one.name == "make" else one
        for one in trained.methods
    )
    for row, methods in ((FINE_TUNED, tuned), (PROJECTED, (*trained.methods, PROJECTION))):
        changed = dataclasses.replace(trained, methods=methods)
        cells.append(basis.click_cell(f"{_epochs(trained.make.epochs)}, {row}", changed))
    return cells


def _with_epochs(run: RunConfig, epochs: int) -> RunConfig:
    return dataclasses.replace(run, make=dataclasses.replace(run.make, epochs=epochs))


def _epochs(epochs: int) -> str:
    return f"{epochs} epochs" if epochs else "0 epochs: trained jointly"


def _figure6c(found: Found) -> Result:
    rows = gain_rows(found)
    notes = (
        "The paper's Figure 6(c) rises with the epochs; it gives no numbers.",
        "Ours: a MAKE that goes on learning with the click model, and beside a frozen one a matrix on the item vectors "
        "that the click model trains, by which clicks reach the representation as they would in joint training.",
    )
    return Result(GAINS, rows, _figures6c(rows), notes)


def _figures6c(rows: list[Facts]) -> tuple[Figure, Figure]:
    gains_of = {row["name"]: row["gauc_gain"] for row in rows if "gauc_gain" in row}
    line = [(epochs, gains_of[_epochs(epochs)]) for epochs in MAKE_EPOCHS if _epochs(epochs) in gains_of]
    beyond = [name for name in gains_of if name.endswith((FINE_TUNED, PROJECTED))]
    compared = [_epochs(0), *dict.fromkeys(name.partition(",")[0] for name in beyond), *beyond]
    bars = {BOTH: [(name, gains_of[name]) for name in compared if name in gains_of]}
    return (
        Figure("Gain by MAKE's epochs", "epochs of MAKE", "GAUC gain over ids alone", {BOTH: line}),
        Figure("What training together adds", "MAKE", "GAUC gain over ids alone", bars, "bars"),
    )


NUM_TIERS, FORMS = (5, 10, 20, 40), ("count", "log1p", "ratio")


def _tiers_cells(basis: Basis) -> list[Cell]:
    run, cells = basis.run, [basis.click_cell(ID, basis.run, None)]
    for count in NUM_TIERS:
        for form in FORMS if count == 20 else ("log1p",):
            method = Method("simtier", {"num_tiers": count, "tier_output": form})
            cells.append(basis.click_cell(f"{count} tiers, {form}", dataclasses.replace(run, methods=(method,))))
    return cells


def _tiers(found: Found) -> Result:
    rows = gain_rows(found)
    bars = {"GAUC gain": [(row["name"], row["gauc_gain"]) for row in rows if "gauc_gain" in row]}
    notes = ("Ours: the paper names neither the number of tiers nor the form of the counts.",)
    return Result(GAINS | COSTS, rows, (Figure("Gain over ids alone", "tiers", "GAUC", bars, "bars"),), notes)


def _mean_of(line: Facts, metric: str) -> float:
    return float(np.mean([value for name, value in line.items() if name.startswith(f"{metric}_")]))


def _at(lines: list[Facts], epoch: float) -> float:
    return next(line["gauc"] for line in lines if line["epoch"] == epoch)


EXPERIMENTS = (
    Experiment(
        "table3", "Ways to use item vectors (table 3)",
        "Which method brings how much over ids alone, and what it costs? Section 6.3.1.", _table3_cells, _table3,
    ),
    Experiment(
        "fig3", "More than one epoch (figure 3)",
        "Do ids overfit after one epoch, and do item vectors go on learning? Section 4.3.", _figure3_cells, _figure3,
    ),
    Experiment(
        "fig6b", "Rare items (figure 6b)",
        "Where does the gain lie, by how often training showed an item? Section 6.3.3.", _figure6b_cells, _figure6b,
    ),
    Experiment(
        "fig6c", "Epochs of MAKE (figure 6c)",
        "How long must MAKE be pre-trained? Section 6.3.2.", _figure6c_cells, _figure6c,
    ),
    Experiment(
        "tiers", "Tiers of SimTier", "How many tiers, and in what form? Ours.", _tiers_cells, _tiers,
    ),
)  # fmt: skip
