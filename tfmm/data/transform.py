"""Vocabularies and statistics of training shards, as TFX's Transform finds them: counted where a value is stored once.

An item's value counts as often as rows show the item, a behavior's as often as rows show the behavior; so each pass is
over rows, items and behaviors, never over histories row by row. Only what is of a row is: a behavior's age, and what
was known of its item where items have versions.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import tensorflow as tf

from tfmm import artifacts, preprocessing
from tfmm import config as config_lib
from tfmm.config import DataConfig
from tfmm.data import distinct, order_statistics, shards
from tfmm.features import PADDING, Column, Feature, FeatureSet

KIND = "vocabulary"
Weighted = tuple[np.ndarray, np.ndarray | None]  # values, and how often each counts; None: once
ValuesOf = typing.Callable[[Column], typing.Iterable[Weighted]]  # all values of a column in training, in pieces


def fit(
    examples_dir: str | pathlib.Path, output_dir: str | pathlib.Path, parent_dir: str | pathlib.Path | None = None
) -> dict[str, typing.Any]:
    """Writes the vocabularies and statistics of the training rows, see `tfmm.preprocessing`.

    Args:
        examples_dir: as `join.write_examples` left it.
        output_dir: made where missing.
        parent_dir: vocabularies and statistics of a model that goes on: its ids keep their places, those that these
            rows bring follow, and its statistics stay. None: of these rows alone.
    Returns:
        The manifest.
    """
    source, folder = pathlib.Path(examples_dir), pathlib.Path(output_dir)
    manifest = artifacts.read_manifest(source, shards.KIND, ("feature_set", "digests"))
    train = _Train(shards.Shards(sorted(map(str, source.glob("train-*")))))
    new = vocabularies(train.feature_set, train.values)
    if parent_dir is None:
        preprocessing.write(folder, new, statistics(train.feature_set, train.values))
    else:
        preprocessing.write_extended(train.feature_set, parent_dir, new, folder)
    sizes = preprocessing.load(train.feature_set, folder).sizes
    config = config_lib.from_dict(DataConfig, manifest["config"])
    return artifacts.write_manifest(folder, KIND, config, parents=[source], vocabulary_sizes=sizes)


class _Train:
    """The training rows, and how often they show each item as a target and in each sequence."""

    def __init__(self, rows: shards.Shards):
        self.rows, self.feature_set = rows, rows.feature_set
        num_items = len(rows.items)
        self._targets = np.zeros(num_items, np.int64)
        self._histories = {sequence.name: np.zeros(num_items, np.int64) for sequence in self.feature_set.sequences}
        for piece in rows.pieces():
            self._targets += np.bincount(piece[shards.ITEM], minlength=num_items)
        for sequence in self.feature_set.sequences:
            for acts in rows.histories(sequence):
                shown = np.bincount(acts[shards.ITEM], acts[shards.SHOWN], num_items)
                self._histories[sequence.name] += shown.astype(np.int64)

    def values(self, column: Column) -> typing.Iterator[Weighted]:
        """Yields all values of a column, in pieces; those of padding may be among them."""
        feature, sequence = column.feature, column.sequence
        if sequence is not None and self._is_of_rows(feature):
            for start in range(0, self.rows.num_rows, shards.AGES):
                places = np.arange(start, min(start + shards.AGES, self.rows.num_rows))
                yield self.rows.gather(places, [column.name])[column.name].ravel(), None
                self.rows.release()
        elif shards.is_of_items(feature):
            counts = self._targets if sequence is None else self._histories[sequence.name]
            yield self.rows.items[feature.name], counts
        elif sequence is None:
            for piece in self.rows.pieces():
                yield piece[feature.name], None
        else:
            for acts in self.rows.histories(sequence):
                yield acts[feature.name], acts[shards.SHOWN]

    def _is_of_rows(self, feature: Feature) -> bool:
        """Returns whether a behavior has another value in each row that shows it."""
        has_versions = self.rows.has_versions and feature.name != "item_id"
        return shards.is_age(feature) or (has_versions and shards.is_of_items(feature))


def vocabularies(feature_set: FeatureSet, values_of: ValuesOf) -> dict[str, np.ndarray]:
    """Returns, per vocabulary, int64 ids, the most frequent first, ties by id; never 0.

    Ids seen less often than their `min_count` are left out; an id is counted wherever it stands, in a history too.
    Memory grows with the distinct ids.
    """
    result = {}
    for name in feature_set.vocabularies:
        sharing = [c for c in feature_set.columns if c.feature.has_vocabulary and c.feature.embedding == name]
        seen = distinct.Distinct()
        for column in sharing:
            for values, weights in values_of(column):
                seen.add(values, weights)
        ids, counts = seen.counted()
        kept = (counts > 0) & (counts >= sharing[0].feature.min_count) & (ids != PADDING)
        ids, counts = ids[kept], counts[kept]
        result[name] = ids[np.lexsort((ids, -counts))]
    return result


def statistics(feature_set: FeatureSet, values_of: ValuesOf) -> dict[str, np.ndarray]:
    """Returns what scales numbers, float32; as Transform's, to about 1e-6."""
    result = {}
    for feature in feature_set.numbers:
        columns = [c for c in feature_set.columns if c.feature.name == feature.name]
        if feature.scaling == "quantiles":
            result[feature.name] = _boundaries(values_of, feature, columns)
        else:
            moments = tf.constant(_moments(values_of, feature, columns), tf.float64)
            result[feature.name] = preprocessing.scaling(*tf.unstack(moments)).numpy()
    return result


def _numbers(values_of: ValuesOf, columns: typing.Iterable[Column]) -> typing.Iterator[Weighted]:
    """Yields the values that are numbers and stand in a row."""
    for column in columns:
        for values, weights in values_of(column):
            good = preprocessing.is_number(tf.constant(values)).numpy()
            good &= True if weights is None else weights > 0
            yield values[good], None if weights is None else weights[good]


def _moments(values_of: ValuesOf, feature: Feature, columns: typing.Sequence[Column]) -> tuple[float, float]:
    """Returns mean and variance, float64, by two passes; 0 and 0 where no row has the number."""

    def total(of: typing.Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
        found = 0.0, 0.0
        for values, weights in _numbers(values_of, columns):
            scalable = of(preprocessing.scalable(tf.constant(values), feature).numpy().astype(np.float64))
            count = len(scalable) if weights is None else weights.sum()
            found = found[0] + float(scalable.sum() if weights is None else weights @ scalable), found[1] + float(count)
        return found

    sum_, count = total(lambda values: values)
    if not count:
        return 0.0, 0.0
    mean = sum_ / count
    return mean, total(lambda values: np.square(values - mean))[0] / count


def _boundaries(values_of: ValuesOf, feature: Feature, columns: typing.Sequence[Column]) -> np.ndarray:
    """Returns float32 [num_quantiles - 1]: the values that begin parts of about one size, as Transform has them."""
    counts = (len(values) if weights is None else weights.sum() for values, weights in _numbers(values_of, columns))
    num_values = int(sum(counts))
    if not num_values:
        return np.zeros(feature.num_quantiles - 1, np.float32)
    ranks = np.arange(1, feature.num_quantiles) * num_values // feature.num_quantiles
    return order_statistics.select(lambda: _numbers(values_of, columns), ranks, np.float32)
