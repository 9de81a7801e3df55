"""The light head of a ranking model that is trained: taught by it, and exported beside it."""

from __future__ import annotations

import glob
import pathlib
import typing

from tfmm import artifacts
from tfmm.config import RunConfig
from tfmm.ctr import distillation
from tfmm.data import declared
from tfmm.export import saved_model
from tfmm.modalities import CHECKPOINTS
from tfmm.stages import examples
from tfmm.stages.folders import MULTIMODAL, PRE_RANKING, SERVING, TRAINED, Folder
from tfmm.training import devices
from tfmm.training.progress import Progress, silent


def require_ranking(models_dir: Folder) -> None:
    """Raises a FileNotFoundError where a folder has no ranking model, or not the examples that taught it."""
    path = pathlib.Path(models_dir) / MULTIMODAL / TRAINED / artifacts.MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"A pre-ranking head is taught by the ranking model, and {path} is missing. Run `tfmm train` with this "
            "`--output` to its end first; then again with `--head pre-ranking`."
        )
    if not glob.glob(examples.patterns(models_dir)[0]):
        raise FileNotFoundError(
            f"A pre-ranking head reads the examples that the ranking model was trained on, and {models_dir} has none: "
            "models of `tfmm quickstart` and of the pipeline have theirs elsewhere. Train a ranking model by `tfmm "
            "train --data DATA --snapshot WORKDIR/snapshot --output MODELS`, then its head with `--output MODELS "
            "--head pre-ranking`."
        )


def train_pre_ranking(
    run: RunConfig, data_dir: Folder, snapshot_dir: Folder, models_dir: Folder, progress: Progress = silent
) -> dict[str, typing.Any]:
    """Trains the head of `multimodal` on the examples that it was trained on, and exports both in one SavedModel.

    Args:
        run: says how.
        data_dir: the tables, for the types of ids.
        snapshot_dir: vectors of the ranking model's encoders.
        models_dir: as `tfmm train` wrote it; gets `pre_ranking`, and `multimodal`'s SavedModel anew.
        progress: called with the steps done.
    Returns:
        The head's manifest.
    """
    folder = pathlib.Path(models_dir)
    ranking, head, vocabulary = folder / MULTIMODAL, folder / PRE_RANKING / TRAINED, folder / examples.VOCABULARY
    manifest = distillation.train(
        run.pre_ranking,
        *examples.patterns(folder),
        vocabulary,
        ranking / TRAINED,
        snapshot_dir,
        head,
        training=run.training,
        checkpoint_dir=folder / CHECKPOINTS / PRE_RANKING,
        progress=progress,
    )
    devices.by_chief(
        run.training,
        lambda: saved_model.export(
            ranking / TRAINED,
            vocabulary,
            snapshot_dir,
            declared.id_types(data_dir, run.feature_set),
            run.export,
            ranking / SERVING,
            head,
        ),
    )
    return manifest
