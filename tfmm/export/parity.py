"""Checks that an exported version scores as the Keras model does, through the loader that TF Serving uses."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np
import tensorflow as tf

from tfmm import preprocessing, saved_model
from tfmm import vectors as vectors_lib
from tfmm.ctr import model as model_lib
from tfmm.export import signatures
from tfmm.index import item_vectors
from tfmm.index import snapshot as snapshot_lib

Path = str | pathlib.Path
TOLERANCE = 1e-5  # of a score: float32 sums in another order; the tier counts themselves are exact


@dataclasses.dataclass(frozen=True)
class Parity:
    """How far an exported version is from the model that it was made of."""

    num_rows: int
    max_score_difference: float
    max_logit_difference: float

    @property
    def holds(self) -> bool:
        return self.max_score_difference <= TOLERANCE


def check(
    version_dir: Path,
    model_dir: Path,
    vocabulary_dir: Path,
    snapshot_dir: Path | None,
    examples: typing.Sequence[bytes],
) -> Parity:
    """Scores examples with the SavedModel and with the Keras model on the same int8 rows.

    Args:
        version_dir: the exported version.
        model_dir: the click model that it was made of.
        vocabulary_dir: its vocabularies.
        snapshot_dir: the snapshot that the version's tables start from; None for a model of ids alone.
        examples: serialized raw tf.Examples.
    Raises:
        ValueError: no example is given.
    """
    if not examples:
        raise ValueError("`examples` must hold at least one serialized tf.Example.")
    with saved_model.load_session(version_dir) as loaded:
        served = loaded(signatures.EXAMPLES, {"examples": list(examples)})
    expected = keras_scores(model_dir, vocabulary_dir, snapshot_dir, examples)
    return Parity(
        len(examples),
        float(np.max(np.abs(served["score"] - expected["score"]))),
        float(np.max(np.abs(served["logit"] - expected["logit"]))),
    )


def keras_scores(
    model_dir: Path, vocabulary_dir: Path, snapshot_dir: Path | None, examples: typing.Sequence[bytes]
) -> dict[str, np.ndarray]:
    """Returns `score` and `logit` of raw examples, by the Keras model, called eagerly, without any table."""
    model = model_lib.load_model(model_dir)
    spec = preprocessing.raw_spec(model.feature_set)
    spec = {column.name: spec[column.name] for column in model.feature_set.columns}
    for column in model.feature_set.columns:
        if not column.is_served:
            value = signatures.served_value(column)
            spec[column.name] = tf.io.FixedLenFeature([], spec[column.name].dtype, value)
    raw = tf.io.parse_example(list(examples), spec)
    inputs = preprocessing.load(model.feature_set, vocabulary_dir)(raw)
    rows = snapshot_lib.load_snapshot(snapshot_dir) if snapshot_dir is not None else None
    for modality in model.modalities:
        if rows is None:
            raise ValueError(f"`snapshot_dir` must be given for a model with modalities {model.modalities}.")
        for side, ids in item_vectors.sides(model.feature_set).items():
            inputs |= vectors_lib.named(modality, side, rows[modality].lookup(raw[ids].numpy()))
    names = model_lib.input_names(model.feature_set, model.modalities)
    outputs = model({name: tf.convert_to_tensor(inputs[name]) for name in names}, training=False)
    return {name: outputs[name].numpy() for name in signatures.OUTPUTS}
