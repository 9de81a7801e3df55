"""One item encoder per modality, by contrastive learning."""

from __future__ import annotations

import pathlib
import typing

from tfmm.config import RunConfig
from tfmm.pretrain import in_words
from tfmm.pretrain import train as train_lib
from tfmm.stages.folders import Folder
from tfmm.training.progress import Progress, silent


def train_encoders(
    run: RunConfig,
    modalities: typing.Iterable[str],
    pairs_dir: Folder,
    output_dir: Folder,
    checkpoint_dir: Folder,
    say: typing.Callable[[str], object],
    progress: Progress = silent,
) -> dict[str, dict[str, typing.Any]]:
    """Trains or exports the encoders of modalities, one after another, see `pretrain.train.train`.

    Args:
        run: says how.
        modalities: those of the data; ready vectors have no encoder.
        pairs_dir: one folder of pairs per modality.
        output_dir: gets one encoder folder per modality.
        checkpoint_dir: where a stopped run goes on from.
        say: is told what each has learned, once it is written, and what it has not.
        progress: called with the steps done.
    Returns:
        The manifests by modality.
    """
    manifests = {}
    for name, config in run.encoders(modalities).items():
        pairs, output, checkpoints = (pathlib.Path(folder) / name for folder in (pairs_dir, output_dir, checkpoint_dir))
        manifests[name] = train_lib.train(
            config, pairs, output, training=run.training, checkpoint_dir=checkpoints, progress=progress
        )
        for line in in_words.encoder_lines(manifests[name]):
            say(line)
    return manifests
