"""How many ids the tables have of each vocabulary: what their embeddings take, before anything is trained."""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfmm.data import distinct, schema
from tfmm.data.parts import Part
from tfmm.declared_values import size_fault
from tfmm.features import NUM_SPECIAL, PADDING, Feature, FeatureSet


def num_ids(
    data_dir: str | pathlib.Path, feature_set: FeatureSet, tables: schema.Tables, vocabulary: str
) -> int:
    """Returns how many ids the data has of a vocabulary: no more rows of its embedding are trained.

    Args:
        data_dir: the tables.
        feature_set: what is declared, with its least counts; rare ids are left out where rows tell how rare they are.
        tables: as declared.
        vocabulary: its name.
    """
    by_row, others = distinct.Distinct(), distinct.Distinct()
    riding = {name for sequence in feature_set.sequences for name in sequence.features}
    sharing = _sharing(feature_set, vocabulary)
    for feature in sharing:
        is_by_row = feature.table == "impressions" and feature.name not in riding  # else a row counts many times
        for table, part in _parts_with(data_dir, feature, tables):
            for group in range(len(part.row_groups)):
                column = schema.read_part(part, table, [feature.column], group, tables)[feature.column]
                ids = pc.list_flatten(column) if pa.types.is_list(column.type) else column
                (by_row if is_by_row else others).add(schema.fingerprints(ids))
    ids, counts = by_row.counted()
    found = np.union1d(ids[counts >= sharing[0].min_count], others.counted()[0])
    return int((found != PADDING).sum())


def faults(
    data_dir: str | pathlib.Path,
    feature_set: FeatureSet,
    tables: schema.Tables,
    readable: typing.Collection[str],
) -> list[str]:
    """Returns which vocabularies have more ids than memory has room for, a line each.

    Ids are counted only where the rows are that many, and not where rare ones are left out of which tables do not tell
    how rare they are: an item's id counts as often as examples show it.

    Args:
        data_dir, feature_set, tables: as `num_ids` takes them.
        readable: the features whose columns are there, as they are declared.
    """
    found = []
    for vocabulary in feature_set.vocabularies:
        sharing = _sharing(feature_set, vocabulary)
        if any(feature.name not in readable for feature in sharing):
            continue  # which is said elsewhere
        dim, most = sharing[0].dim, NUM_SPECIAL
        for feature in sharing:
            rows = sum(sum(part.row_groups) for _, part in _parts_with(data_dir, feature, tables))
            most += rows * (feature.max_values if feature.kind == "ids" else 1)
        if size_fault(dim, most) and not (sharing[0].min_count > 1 and _has_catalog_ids(sharing)):
            count = num_ids(data_dir, feature_set, tables, vocabulary)
            if text := size_fault(dim, count + NUM_SPECIAL):
                found.append(
                    f"feature {sharing[0].name!r}: {text}, for the {count:,} ids of the data. Lower `dim`, or hash "
                    "them into `num_buckets`"
                )
    return found


def _has_catalog_ids(sharing: typing.Iterable[Feature]) -> bool:
    """Returns whether an id counts wherever its item or user is shown, and not by the rows of its own table."""
    return any(feature.table in ("items", "users") or feature.name == "item_id" for feature in sharing)


def _sharing(feature_set: FeatureSet, vocabulary: str) -> list[Feature]:
    return [f for f in feature_set.features if f.has_vocabulary and f.embedding == vocabulary]


def _parts_with(
    data_dir: str | pathlib.Path, feature: Feature, tables: schema.Tables
) -> typing.Iterator[tuple[str, Part]]:
    """Yields the files that bring ids of a feature, each with its table: items come in histories, too."""
    for table in dict.fromkeys((feature.table, "behaviors") if feature.name == "item_id" else (feature.table,)):
        for part in schema.table_parts(data_dir, table, tables):
            if feature.column in part.schema.names:
                yield table, part
