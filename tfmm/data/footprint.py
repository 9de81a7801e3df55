"""How much memory a join needs that holds all its rows there, told from the tables' sizes and the declared lengths."""

from __future__ import annotations

import math
import pathlib

from tfmm import preprocessing
from tfmm.data import declared, schema
from tfmm.features import FeatureSet

BYTES_PER_VALUE = (36, 61)  # of a row's values, at least and at most: measured by benchmarks/engines.py


def num_rows(data_dir: str | pathlib.Path, feature_set: FeatureSet) -> int:
    """Returns the number of impressions of a data folder."""
    parts = schema.table_parts(data_dir, "impressions", declared.tables(feature_set))
    return sum(sum(part.row_groups) for part in parts)


def values_per_row(feature_set: FeatureSet) -> int:
    """Returns how many values an example has; histories are padded to their whole length.

    >>> values_per_row(FeatureSet().resolved(max_behaviors=50, min_count=1))
    105
    """
    return sum(math.prod(column.shape) for column in preprocessing.raw_spec(feature_set).values())


def bytes_of(rows: int, feature_set: FeatureSet) -> tuple[int, int]:
    """Returns how many bytes rows take, at least and at most."""
    least, most = (rows * values_per_row(feature_set) * size for size in BYTES_PER_VALUE)
    return least, most
