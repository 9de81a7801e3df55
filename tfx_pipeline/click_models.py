"""What the four nodes that train a click model have in common: both models, from scratch and further."""

import pathlib
import typing

from tfx import v1 as tfx

from tfmm.config import RunConfig
from tfmm.stages import folders, run_file
from tfmm.training import progress
from tfx_pipeline.artifact_types import Dataset

Examples = tfx.types.standard_artifacts.Examples
Model = tfx.types.standard_artifacts.Model
TransformGraph = tfx.types.standard_artifacts.TransformGraph

VOCABULARY = "vocabulary"  # folder of a model's artifact


class Places(typing.NamedTuple):
    """The artifacts that both click models are made of, and the model's."""

    examples: Examples
    raw_examples: Examples
    transform_graph: TransformGraph
    dataset: Dataset
    model: Model


def train(
    config: RunConfig,
    places: Places,
    run_path: str,
    checkpoint_dir: str,
    progress_path: str,
    vectors: tuple[typing.Any, ...] | None = None,
    parent: Model | None = None,
) -> None:
    """Trains a click model for one epoch and exports it.

    Args:
        config: the run, as far as the node reads it.
        places: what it is made of.
        run_path: the whole run, which is copied beside it.
        checkpoint_dir: where it goes on from, if it was stopped.
        progress_path: JSON lines that tell how far it is.
        vectors: modalities, the snapshot's folder and MAKE's, or None for the parent's MAKE; None: of ids alone.
        parent: an earlier model that it goes on from.
    """
    from tfmm.ctr import state as state_lib
    from tfmm.data import spans
    from tfmm.stages import click_model
    from tfx_pipeline import preprocessing

    vocabulary = pathlib.Path(places.model.uri) / VOCABULARY
    known = pathlib.Path(parent.uri) / folders.STATE if parent else None
    extended = known / state_lib.VOCABULARY if known else None
    preprocessing.collect(places.transform_graph.uri, config.feature_set, vocabulary, extended)
    click_model.train_click_model(
        config,
        patterns(places.examples),
        vocabulary,
        places.dataset.uri,
        places.model.uri,
        checkpoint_dir,
        click_model.Vectors(*vectors) if vectors else None,
        progress.jsonl(progress_path),
        parent_dir=known,
        span=spans.read(places.raw_examples.uri),
    )
    run_file.copy(run_path, places.model.uri)


def patterns(examples: Examples) -> tuple[str, str]:
    """Returns the patterns of the train and the eval split's files."""
    train_files, eval_files = (f"{examples.uri}/Split-{split}/*" for split in folders.SPLITS)
    return train_files, eval_files
