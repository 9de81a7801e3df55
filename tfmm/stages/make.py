"""The multimodal knowledge extractor, pre-trained on clicks."""

from __future__ import annotations

import typing

from tfmm.config import RunConfig
from tfmm.make import train as train_lib
from tfmm.stages.folders import Folder
from tfmm.training.progress import Progress, silent


def train_make(
    run: RunConfig,
    sequences: typing.Collection[str],
    patterns: tuple[str, str],
    snapshot_dir: Folder,
    output_dir: Folder,
    checkpoint_dir: Folder,
    progress: Progress = silent,
) -> dict[str, typing.Any]:
    """Trains MAKE on the transformed examples of `patterns` (train, eval), see `make.train.train`.

    `sequences` are those that a method of the run reads (`ctr.integrations.make_sequences`); no method is looked at.
    """
    return train_lib.train(
        run.make,
        *patterns,
        snapshot_dir,
        output_dir,
        run.feature_set,
        sequences=sequences,
        training=run.training,
        checkpoint_dir=checkpoint_dir,
        progress=progress,
    )
