"""A click model, trained and exported: the ID-only twin, or the multimodal one."""

from __future__ import annotations

import pathlib
import typing

from tfmm.config import RunConfig
from tfmm.ctr import train as train_lib
from tfmm.data import declared, spans
from tfmm.export import saved_model
from tfmm.stages.folders import SERVING, STATE, TRAINED, Folder
from tfmm.training import devices
from tfmm.training.progress import Progress, silent


class Vectors(typing.NamedTuple):
    """What the multimodal model has beyond ids: modalities, the snapshot with their vectors, pre-trained MAKE."""

    modalities: typing.Sequence[str]
    snapshot_dir: Folder
    make_dir: Folder | None  # None: of a model that goes on, which has its own


def train_click_model(
    run: RunConfig,
    patterns: tuple[str, str],
    vocabulary_dir: Folder,
    data_dir: Folder,
    output_dir: Folder,
    checkpoint_dir: Folder,
    vectors: Vectors | None = None,
    progress: Progress = silent,
    *,
    parent_dir: Folder | None = None,
    span: spans.Span | None = None,
) -> dict[str, typing.Any]:
    """Trains a click model and exports it, see `ctr.train.train` and `saved_model.export`.

    Args:
        run: says how.
        patterns: transformed examples, train and eval.
        vocabulary_dir: of the same Transform.
        data_dir: the tables, for the types of ids.
        output_dir: gets `Format-TFMM`, the model as it was trained, `Format-State`, what its training goes on from, and
            `Format-Serving`, its SavedModel.
        checkpoint_dir: where a stopped run goes on from.
        vectors: None for the ID-only twin.
        progress: called with the steps done.
        parent_dir: the state of the model that it goes on from, whose pre-ranking head it keeps; None: from scratch.
        span: what the join found of the data.
    Returns:
        The trained model's manifest.
    """
    folder = pathlib.Path(output_dir)
    manifest = train_lib.train(
        run.ctr,
        *patterns,
        vocabulary_dir,
        folder / TRAINED,
        run.feature_set,
        modalities=vectors.modalities if vectors else (),
        methods=run.methods if vectors else (),
        snapshot_dir=vectors.snapshot_dir if vectors else None,
        make_dir=vectors.make_dir if vectors else None,
        training=run.training,
        checkpoint_dir=checkpoint_dir,
        parent_dir=parent_dir,
        state_dir=folder / STATE,
        span=span,
        progress=progress,
    )
    head = saved_model.head_of(pathlib.Path(parent_dir).parent / SERVING) if parent_dir is not None else None
    devices.by_chief(
        run.training,
        lambda: saved_model.export(
            folder / TRAINED,
            vocabulary_dir,
            vectors.snapshot_dir if vectors else None,
            declared.id_types(data_dir, run.feature_set),
            run.export,
            folder / SERVING,
            head,
        ),
    )
    return manifest

