"""From raw columns to the click model's inputs: one pure function, called by Transform, by training and by serving.

What it needs of the training data are vocabularies and the statistics of numbers. Both are text files in one folder,
as Transform writes them: a vocabulary's ids, one a line, the most frequent first; a number's statistics on one line.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import typing

import numpy as np
import tensorflow as tf

from tfmm.declared_values import MAX_NUMBER
from tfmm.features import LABEL, NUM_SPECIAL, PADDING, PARTS, STATISTICS_SUFFIX, Column, Feature, FeatureSet

Lookup = typing.Callable[[tf.Tensor], tf.Tensor]
Tensors = dict[str, tf.Tensor]
MAX_SCALED = 1e6  # of a standardized number, in size: among fewer than 10^12 rows of training there is none above it
MIN_DEVIATION = 1e-30  # what spreads less is a constant
_HOUR_US = 3_600_000_000
_EPOCH_WEEKDAY = 3  # 1970-01-01 was a Thursday; Monday is 0


def raw_spec(feature_set: FeatureSet) -> dict[str, tf.io.FixedLenFeature]:
    """Returns the parse spec of raw examples: the columns, `timestamp` and those of the label."""
    spec = {
        column.name: tf.io.FixedLenFeature(column.shape, tf.float32 if column.is_float else tf.int64)
        for column in feature_set.columns
    }
    kinds = {"timestamp": tf.int64} | {n: tf.int64 if n == LABEL else tf.float32 for n in feature_set.label.sources}
    return spec | {name: tf.io.FixedLenFeature([], kind) for name, kind in kinds.items()}


def transformed_spec(feature_set: FeatureSet) -> dict[str, tf.io.FixedLenFeature]:
    """Returns the parse spec of transformed examples: the raw columns, and the model's inputs."""
    inputs = {
        column.input: tf.io.FixedLenFeature(column.shape, tf.int64 if column.feature.is_embedded else tf.float32)
        for column in feature_set.columns
    }
    return raw_spec(feature_set) | inputs


def preprocess(
    raw: typing.Mapping[str, tf.Tensor],
    columns: typing.Iterable[Column],
    lookups: typing.Mapping[str, Lookup],
    statistics: typing.Mapping[str, tf.Tensor],
) -> Tensors:
    """Returns the model's inputs for raw columns.

    Args:
        raw: int64 or float32 tensors of any shape by column; a column that is not there is left out of the result.
        columns: of a feature set.
        lookups: per vocabulary, a function from int64 ids to int64 vocabulary lines, -1 where the id is unknown.
        statistics: per number, float32 [2], the mean of what is scaled and one over its standard deviation (not
            the deviation: a graph optimizer would turn the quotient into a product), or the ascending boundaries of
            its quantiles.
    Returns:
        By `Column.input`, of the shape of the column: int64 indices, where 0 is missing (and, of ids, 1 is unknown),
        or float32 numbers of about mean 0 and spread 1, NaN where missing.
    """
    result = {}
    for column in columns:
        if column.name in raw:
            result[column.input] = _input(raw[column.name], column.feature, lookups, statistics)
    return result


def _input(
    values: tf.Tensor,
    feature: Feature,
    lookups: typing.Mapping[str, Lookup],
    statistics: typing.Mapping[str, tf.Tensor],
) -> tf.Tensor:
    if feature.kind in ("id", "ids"):
        if feature.num_buckets:
            index = tf.math.floormod(values, feature.num_buckets) + NUM_SPECIAL
        else:
            index = lookups[feature.embedding](values) + NUM_SPECIAL
        return tf.where(values == PADDING, tf.zeros_like(values), index)
    if feature.kind == "boolean":
        return tf.cast(tf.where(is_number(values), tf.where(values > 0.5, 2, 1), 0), tf.int64)
    if feature.kind == "time":
        hours = tf.math.floordiv(values, _HOUR_US)
        part = hours if feature.part == "hour" else tf.math.floordiv(hours, 24) + _EPOCH_WEEKDAY
        return tf.where(values == PADDING, tf.zeros_like(values), tf.math.floormod(part, PARTS[feature.part]) + 1)
    if feature.scaling == "quantiles":
        place = tf.searchsorted(statistics[feature.name], tf.reshape(values, [-1]), side="right")
        index = tf.reshape(tf.cast(place, tf.int64) + 1, tf.shape(values))
        return tf.where(is_number(values), index, tf.zeros_like(index))
    mean, inverse_deviation = tf.unstack(statistics[feature.name])
    scaled = tf.clip_by_value((scalable(values, feature) - mean) * inverse_deviation, -MAX_SCALED, MAX_SCALED)
    return tf.where(is_number(values), scaled, tf.fill(tf.shape(scaled), float("nan")))


def is_number(values: tf.Tensor) -> tf.Tensor:
    """Returns where a float32 is a number, bool; NaN, infinities and what is larger than `MAX_NUMBER` are missing."""
    return tf.abs(values) <= MAX_NUMBER


def scalable(values: tf.Tensor, feature: Feature) -> tf.Tensor:
    """Returns what is scaled of a number: the value, or sign(x) log(1 + |x|)."""
    if feature.scaling == "log":
        return tf.sign(values) * tf.math.log1p(tf.abs(values))
    return values


def scaling(mean: tf.Tensor, variance: tf.Tensor) -> tf.Tensor:
    """Returns what scales a number, float32 [2], see `preprocess`; 0 and 1 where no row has the number.

    Args:
        mean, variance: float64 [], of `scalable` over the rows that have it; anything where none has.
    """
    deviation = tf.sqrt(variance)
    is_spread = deviation > MIN_DEVIATION
    inverse = tf.where(is_spread, 1.0 / tf.where(is_spread, deviation, tf.ones_like(deviation)), 1.0)
    return tf.cast(tf.stack([tf.where(tf.math.is_finite(mean), mean, tf.zeros_like(mean)), inverse]), tf.float32)


class Preprocessor:
    """`preprocess` with the vocabularies and statistics of one training run.

    Args:
        feature_set: what it was run with.
        vocabularies: per name of `feature_set.vocabularies`, int64 ids, the most frequent first.
        statistics: per name of `feature_set.numbers`, float32.

    Attributes:
        sizes: number of indices per embedding table, special ones included.
        resources: the tables that it looks up in, for a module that tracks them.
        digest: hash of vocabularies and statistics.
    """

    def __init__(
        self,
        feature_set: FeatureSet,
        vocabularies: typing.Mapping[str, np.ndarray],
        statistics: typing.Mapping[str, np.ndarray],
    ):
        self.feature_set = feature_set
        self.sizes = {
            name: feature.num_indices or len(vocabularies[name]) + NUM_SPECIAL
            for name, feature in feature_set.embeddings.items()
        }
        self.resources = {name: table(vocabularies[name]) for name in feature_set.vocabularies}
        found = {name: np.asarray(vocabularies[name]) for name in feature_set.vocabularies}
        found |= {f.name: np.asarray(statistics[f.name], np.float32) for f in feature_set.numbers}
        self.digest = hashlib.sha256(b"".join(n.encode() + v.tobytes() for n, v in sorted(found.items()))).hexdigest()
        self._statistics = {f.name: np.asarray(statistics[f.name], np.float32) for f in feature_set.numbers}

    def __call__(self, raw: typing.Mapping[str, tf.Tensor]) -> Tensors:
        """Returns the model's inputs for those of the columns that `raw` has."""
        lookups = {name: known.lookup for name, known in self.resources.items()}
        statistics = {name: tf.constant(values) for name, values in self._statistics.items()}
        return preprocess(raw, self.feature_set.columns, lookups, statistics)


def table(ids: np.ndarray) -> tf.lookup.StaticHashTable:
    """Returns a table from ids int64 [n] to their lines, -1 where unknown."""
    ids = ids if len(ids) else np.array([PADDING])  # a table must have a key, and that one is never looked at
    keys, lines = tf.constant(ids, tf.int64), tf.range(len(ids), dtype=tf.int64)
    return tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, lines), default_value=-1)


def load(feature_set: FeatureSet, folder: str | os.PathLike[str]) -> Preprocessor:
    """Loads what Transform, or `write`, left in a folder.

    Raises:
        FileNotFoundError: a vocabulary or statistic is missing.
    """

    return Preprocessor(feature_set, vocabularies(feature_set, folder), statistics(feature_set, folder))


def vocabularies(feature_set: FeatureSet, folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the vocabularies in a folder, int64 ids by name; raises as `load`."""
    return {name: _read(folder, name, np.int64) for name in feature_set.vocabularies}


def statistics(feature_set: FeatureSet, folder: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the statistics of numbers in a folder, float32 by name; raises as `load`."""
    return {f.name: _read(folder, f.name + STATISTICS_SUFFIX, np.float32) for f in feature_set.numbers}


def _read(folder: str | os.PathLike[str], name: str, kind: type) -> np.ndarray:
    path = pathlib.Path(folder) / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing. Transform the examples first; that writes it.")
    return np.array(path.read_text().split(), kind)


def copy(feature_set: FeatureSet, source: str | os.PathLike[str], folder: str | os.PathLike[str]) -> None:
    """Copies vocabularies and statistics, byte by byte."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name in (*feature_set.vocabularies, *(f.name + STATISTICS_SUFFIX for f in feature_set.numbers)):
        shutil.copyfile(pathlib.Path(source) / name, path / name)


def write(
    folder: str | os.PathLike[str],
    vocabularies: typing.Mapping[str, np.ndarray],
    statistics: typing.Mapping[str, np.ndarray],
) -> None:
    """Writes vocabularies and statistics as `load` reads them."""
    path = pathlib.Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, ids in vocabularies.items():
        (path / name).write_text("".join(f"{i}\n" for i in ids.tolist()))
    for name, values in statistics.items():
        (path / (name + STATISTICS_SUFFIX)).write_text(" ".join(f"{v:.9g}" for v in values.tolist()) + "\n")


def write_extended(
    feature_set: FeatureSet,
    parent_dir: str | os.PathLike[str],
    new: typing.Mapping[str, np.ndarray],
    folder: str | os.PathLike[str],
) -> None:
    """Writes the vocabularies of a folder, extended by new ids, and its statistics as they are."""
    copy(feature_set, parent_dir, folder)
    write(folder, extended(vocabularies(feature_set, parent_dir), new), {})


def extended(
    parents: typing.Mapping[str, np.ndarray], new: typing.Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Returns vocabularies that go on: the parents' in their order, then those of the new ids that they lack.

    >>> extended({"item_id": np.array([7, 5])}, {"item_id": np.array([9, 5, 8])})["item_id"].tolist()
    [7, 5, 9, 8]
    """
    return {name: np.append(ids, new[name][~np.isin(new[name], ids)]) for name, ids in parents.items()}
