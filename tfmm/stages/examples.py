"""Impressions as examples, without TFX, with vocabularies beside them; the DAG has Beam and Transform for both."""

from __future__ import annotations

import pathlib
import shutil
import typing

from tfmm.config import RunConfig
from tfmm.data import join, served_examples, transform
from tfmm.stages.continued import Parent, from_scratch
from tfmm.stages.folders import SPLITS, Folder
from tfmm.training.examples import split_pattern

EXAMPLES, VOCABULARY = "examples", "vocabulary"


def make_examples(
    run: RunConfig,
    data_dir: Folder,
    output_dir: Folder,
    say: typing.Callable[[str], object],
    parent: Parent | None = None,
    log: served_examples.Log | None = None,
) -> None:
    """Writes `examples/` and `vocabulary/`; says which rows were left out.

    Of a `log` they are what was served, and the tables' impressions are not read.

    Of a run that goes on, the examples are those after its parent's, and the vocabularies its, extended.

    Raises:
        EmptySpan: nothing came after the parent's.
    """
    folder = pathlib.Path(output_dir)
    shutil.rmtree(folder / VOCABULARY, ignore_errors=True)  # of the examples before
    before, known = (parent.before, parent.vocabulary_dir) if parent else (from_scratch(run.days), None)
    if log is None:
        join.write_examples(data_dir, run.data, run.feature_set, folder / EXAMPLES, say, before)
    else:
        served_examples.write_examples(log, run.data, run.feature_set, folder / EXAMPLES, say, before)
    transform.fit(folder / EXAMPLES, folder / VOCABULARY, known)


def patterns(output_dir: Folder) -> tuple[str, str]:
    """Returns the patterns of the training and the evaluation examples."""
    train, evaluation = (split_pattern(pathlib.Path(output_dir) / EXAMPLES, split) for split in SPLITS)
    return train, evaluation
