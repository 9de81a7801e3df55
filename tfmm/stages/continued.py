"""A run that goes on from the click models of an earlier one: which they are, and whether it may."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

from tfmm.config import RunConfig
from tfmm.ctr import lineage
from tfmm.ctr import state as state_lib
from tfmm.data import instants, spans
from tfmm.data.spans import Before
from tfmm.days import DaysConfig
from tfmm.stages import run_file
from tfmm.stages.folders import ID, MULTIMODAL, STATE, Folder

# Settings that a model that goes on may have otherwise than its parent: how it trains on, not what it is.
_OF_TRAINING = (
    "batch_size", "block_rows", "decay_from", "embedding_learning_rate", "epochs", "hidden_behaviors_fraction",
    "hidden_weight", "learning_rate", "seed", "segments",
)  # fmt: skip
MAY_DIFFER = (
    *(f"ctr.{name}" for name in _OF_TRAINING), "data.eval_fraction", "data.max_bad_fraction", "data.min_id_count",
    "export", "image", "pairs", "seed", "text",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Parent:
    """What a run goes on from.

    Attributes:
        states: of each click model, by `folders.ID` and `folders.MULTIMODAL`.
        before: what the models know of the data.
    """

    states: typing.Mapping[str, pathlib.Path]
    before: Before

    @property
    def vocabulary_dir(self) -> pathlib.Path:
        return self.states[MULTIMODAL] / state_lib.VOCABULARY


def from_scratch(days: DaysConfig) -> Before:
    """Returns what is known before a training that goes on from nothing: how much is held out."""
    return Before(heldout_rows=days.heldout_rows, heldout_s=days.heldout_s)


def run_of(parent_dir: Folder, output_dir: Folder) -> str:
    """Returns where the run lies that models go on with, their own, once nothing speaks against the folders.

    Raises:
        ValueError: `tfmm train` did not end in the parent's folder, or the new models would replace it.
    """
    path = pathlib.Path(parent_dir) / run_file.FILE
    if pathlib.Path(parent_dir).resolve() == pathlib.Path(output_dir).resolve():
        raise ValueError(
            "`--output` must be another folder than `--continue-from`, whose models are gone on from. Received both: "
            f"{output_dir}."
        )
    if not path.is_file():
        raise ValueError(
            f"{parent_dir} must hold models of a `tfmm train` that has ended. Received: no {run_file.FILE}, which is "
            "written last. Run that command to its end, or name the folder of the models before."
        )
    return str(path)


def parent(
    run: RunConfig,
    model_dirs: typing.Mapping[str, Folder],
    made_by: RunConfig | None,
    snapshot_dir: Folder | None = None,
    modalities: typing.Sequence[str] = (),
) -> Parent:
    """Returns what a run goes on from, once nothing speaks against it.

    Args:
        run: that goes on.
        model_dirs: `id` and `multimodal`, as `click_model.train_click_model` wrote them.
        made_by: the run that made them.
        snapshot_dir: the vectors to go on with; None: they are not known yet, the training looks at them.
        modalities: those of the data.
    Raises:
        FileNotFoundError: a model has no state.
        ValueError: all that speaks against it: another declaration, vectors of other encoders, states of two runs, more
            gaps in a table than `days.max_gaps`.
    """
    states = {name: pathlib.Path(model_dirs[name]) / STATE for name in (ID, MULTIMODAL)}
    found = {name: state_lib.read_manifest(folder) for name, folder in states.items()}
    trained = {name: manifest["training"] for name, manifest in found.items()}
    through = {name: facts["trained_through"]["timestamp"] for name, facts in trained.items()}
    faults = [_declared(made_by, run) if made_by else f"{run_file.FILE} must lie beside them. Received: none"]
    if through[ID] != through[MULTIMODAL] or trained[ID].get("examples") != trained[MULTIMODAL].get("examples"):
        said = ", ".join(
            f"{name} through {spans.moment(at)} of examples {trained[name].get('examples')}"
            for name, at in through.items()
        )
        faults.append(f"both click models must be of one run. Received: {said}")
    if snapshot_dir is not None:
        try:
            lineage.require_encoders(trained[MULTIMODAL], lineage.encoder_versions(snapshot_dir, modalities))
        except ValueError as error:
            faults.append(str(error))
    faults += _gaps(run, states, through)
    if faults := [fault for fault in faults if fault]:
        raise ValueError(f"{pathlib.Path(model_dirs[MULTIMODAL])} cannot be gone on from:\n- " + "\n- ".join(faults))
    newest, seen = trained[MULTIMODAL]["newest"], found[MULTIMODAL]["seen"]
    before = dataclasses.replace(
        from_scratch(run.days), watermark=through[MULTIMODAL], newest=newest, seen=seen
    )
    return Parent(states, before)


def _declared(made_by: RunConfig, run: RunConfig) -> str:
    """Returns which settings stand against going on; "": none."""
    found = [
        line
        for line in run_file.differences(made_by, run, "models")
        if not any(line.startswith((f"{name}:", f"{name}.")) for name in MAY_DIFFER)
    ]
    if not found:
        return ""
    return (
        "the model was declared otherwise, and what it is made of cannot change in its life; these may: "
        f"{', '.join(MAY_DIFFER)}. Received: {'; '.join(found[:5])}{'; and more' if len(found) > 5 else ''}. Leave "
        "--run and --set out, or train in full"
    )


def _gaps(
    run: RunConfig, states: typing.Mapping[str, pathlib.Path], through: typing.Mapping[str, int]
) -> typing.Iterator[str]:
    for name, folder in states.items():
        before = through[name] - run.days.unseen_days * instants.DAY_US
        for table, share in state_lib.gaps(folder, before).items():
            if share > run.days.max_gaps:
                yield (
                    f"of {table!r} in the {name} model, {share:.0%} of the rows belong to ids that no span of the last "
                    f"{run.days.unseen_days} days has shown, and `days.max_gaps` is {run.days.max_gaps:.0%}. Train in "
                    "full on a folder without the rows of before, which leaves them out, or raise the bound"
                )
