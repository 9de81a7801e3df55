"""Impressions as examples with the model's inputs, without TFX; the DAG has Transform for the second half."""

from __future__ import annotations

import pathlib
import typing

from tfmm.config import RunConfig
from tfmm.data import beam, examples
from tfmm.stages.folders import SPLITS, Folder
from tfmm.training.examples import split_pattern

RAW, TRANSFORMED, VOCABULARY = "examples", "transformed", "vocabulary"


def make_examples(
    run: RunConfig, data_dir: Folder, output_dir: Folder, say: typing.Callable[[str], object]
) -> None:
    """Writes `examples/`, by Beam, and `transformed/` with `vocabulary/` inside; says which rows were left out."""
    folder = pathlib.Path(output_dir)
    beam.write_examples(data_dir, run.data, run.feature_set, folder / RAW, say)
    examples.transform(folder / RAW, folder / TRANSFORMED)


def raw_patterns(output_dir: Folder) -> tuple[str, str]:
    """Returns the patterns of the training and the evaluation examples, as the join made them."""
    train, evaluation = (split_pattern(pathlib.Path(output_dir) / RAW, split) for split in SPLITS)
    return train, evaluation


def transformed_patterns(output_dir: Folder) -> tuple[str, str]:
    """Returns the patterns of the training and the evaluation examples with the model's inputs."""
    train, evaluation = (split_pattern(pathlib.Path(output_dir) / TRANSFORMED, split) for split in SPLITS)
    return train, evaluation
