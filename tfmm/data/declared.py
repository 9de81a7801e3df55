"""The tables as a run declares them: the documented ones, and in them the columns that its features come from."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfmm import modalities
from tfmm.data import casting, instants, schema, times, vocabulary_sizes
from tfmm.data.parts import Part
from tfmm.data.schema import Column, Table
from tfmm.declared_values import MAX_NUMBER
from tfmm.features import ACTIONS, AGE, KEYS, LABEL, PADDING, Feature, FeatureSet, Label
from tfmm.labels import NEGATIVE_RATE, SAMPLE_WEIGHT
from tfmm.modalities import UNDECLARED, ModalitySet
from tfmm.scl_config import MAX_DIM

USERS = Table(
    "users",
    "what is known of users",
    (
        Column("user_id", "id", "unique, or at each `updated_at`", required=True),
        Column(schema.UPDATED_AT, "timestamp", "from when on the row holds; a user may have a row per time"),
    ),
    required=True,
)
_KINDS = {"id": "id", "ids": "ids", "number": "number", "boolean": "boolean", "time": "timestamp"}
_LABEL_MEANINGS = {SAMPLE_WEIGHT: "how often a row counts", NEGATIVE_RATE: "share of such negatives that the log keeps"}
_UNIQUE = {"items": "item_id", "users": "user_id", "searches": "search_id"}


def tables(feature_set: FeatureSet, modality_set: ModalitySet = UNDECLARED) -> dict[str, Table]:
    """Returns the tables with the columns of modalities, features and label; `users` where a feature comes from it.

    A declared column that the data lacks is a fault, so it is required; its values may be null.
    """
    result = schema.documented(modality_set)
    result["impressions"] = _with_label(result["impressions"], feature_set.label)
    if feature_set.of_table("users"):
        result["users"] = USERS
    for feature in feature_set.features:
        if feature.source == f"behaviors.{AGE}":
            continue
        table = result[feature.table]
        if all(column.name != feature.column for column in table.columns):
            column = Column(feature.column, _KINDS[feature.kind], f"feature {feature.name!r}", is_key=False)
            result[table.name] = dataclasses.replace(table, columns=(*table.columns, column))
    return result


def _with_label(impressions: Table, label: Label) -> Table:
    """Returns the table with the label's columns in place of the documented one."""
    columns = [
        dataclasses.replace(column, name=label.column) if column.name == LABEL else column
        for column in impressions.columns
    ]
    known = [column.name for column in columns]
    for name, source in label.sources.items():
        if source not in known:
            columns.append(Column(source, "number", _LABEL_MEANINGS[name]))
    return dataclasses.replace(impressions, columns=tuple(columns))


def unique_key(table: str) -> str | None:
    """Returns the column of a table that names a row, or None."""
    return _UNIQUE.get(table)


def faults(
    data_dir: str | pathlib.Path,
    feature_set: FeatureSet,
    modality_set: ModalitySet = UNDECLARED,
    dims: typing.Mapping[str, int] | None = None,
) -> list[str]:
    """Returns what the data lacks of a declaration, a line each, by headers, and by actions and contents.

    Args:
        data_dir: the data folder.
        feature_set, modality_set: what the run declares.
        dims: of items' vectors, by column (`vector_dim`), as far as they are known; others are read.
    """
    found, known = [], tables(feature_set, modality_set)
    kinds: dict[str, str] = {}
    for feature in feature_set.features:
        if feature.source == f"behaviors.{AGE}":
            continue
        name, place = f"feature {feature.name!r}", f"{feature.table}.{feature.column}"
        parts = schema.table_parts(data_dir, feature.table, known)
        if not parts:
            if not (feature.table == "behaviors" and feature.name in KEYS):
                found.append(
                    f"{name}: its table {feature.table!r} must be there, {feature.table}.parquet or a folder of that "
                    "name. Add it, or leave the feature out"
                )
        elif all(feature.column not in part.schema.names for part in parts):
            if (feature.table, feature.column) != ("items", "category"):  # a documented column that may be absent
                names = ", ".join(dict.fromkeys(n for part in parts for n in part.schema.names))
                found.append(
                    f"{name}: column {place} must be there. Received the columns {names}. Name another `source`, or "
                    "leave the feature out"
                )
        elif wrong := _type_faults(data_dir, feature, known):
            found += wrong
        elif stored := _id_kinds(data_dir, feature, known):
            kinds[feature.name] = stored[0]
            if len(stored) > 1 and feature.name not in KEYS:  # keys are compared over all tables
                found.append(f"{name}: {place} must have ids of one type in all files. Received: int64 and string")
            if text := _serving_fault(feature, stored[0]):
                found.append(f"{name}: {text}, as {place} is")
    found += _mixed(kinds, feature_set) + vocabulary_sizes.faults(data_dir, feature_set, known, kinds)
    found += _content_faults(data_dir, modality_set, known, dims or {}) + _action_faults(data_dir, feature_set, known)
    return found + _label_faults(data_dir, feature_set.label, known)


def require(data_dir: str | pathlib.Path, feature_set: FeatureSet) -> None:
    """Raises a ValueError where a data folder lacks what a run declares, all faults at once, or mixes types of ids."""
    if found := faults(data_dir, feature_set):
        raise ValueError(f"{data_dir} must have what the run declares. Received:\n- " + "\n- ".join(found))
    id_types(data_dir, feature_set)


def _content_faults(
    data_dir: str | pathlib.Path, modality_set: ModalitySet, known: schema.Tables, dims: typing.Mapping[str, int]
) -> list[str]:
    """Returns what the data lacks of declared modalities; the default ones take what there is."""
    found = []
    ways_out = {
        "items": "Name another `column`, or leave the modality out",
        "searches": "Name another `query_column`, or leave it out: pairs then come from orders and clicks",
    }
    for modality in modality_set.modalities:
        for table, way_out in ways_out.items():
            for column, kind, _ in modality.columns(table):
                name, place = f"modality {modality.name!r}", f"{table}.{column}"
                documented = known[table].column(column).kind
                parts = schema.table_parts(data_dir, table, known)
                names = ", ".join(dict.fromkeys(n for part in parts for n in part.schema.names)) or "none"
                if not any(column in part.schema.names for part in parts):
                    found.append(f"{name}: column {place} must be there. Received the columns {names}. {way_out}")
                elif kind not in (documented, modalities.OWN) or documented not in modalities.KINDS:
                    found.append(f"{name}: {place} is {documented}, so no content of {modality.encoder}. {way_out}")
                elif text := _unreadable(parts, table, column, known):
                    found.append(f"{name}: {text} {way_out}")
                elif not schema.has_value(parts, column):
                    found.append(f"{name}: {place} must hold something in at least one row. {way_out}")
                elif modality.is_ready:
                    dim = dims[column] if column in dims else vector_dim(parts, column)
                    found += [f"{name}: {place} {text}" for text in (dim_fault(dim),) if text]
    return found


def dim_fault(dim: int) -> str:
    """Returns what is wrong with vectors of a length that no index takes; "" of others."""
    if dim <= MAX_DIM:
        return ""
    return f"must have 1 to {MAX_DIM} values, not {dim} as most have: shorten them, by principal components say"


def vector_dim(parts: typing.Sequence[Part], column: str) -> int:
    """Returns the most frequent length of a column's vectors, the least of several; 0 where there is none."""
    counts: collections.Counter[int] = collections.Counter()
    for part in parts:
        for group in range(len(part.row_groups)):
            if column in part.schema.names:
                values = casting.cast(part.read([column], group)[column], column, "vector", "items")
                for found in pc.value_counts(pc.list_value_length(values)).to_pylist():
                    counts[found["values"] or 0] += found["counts"]
    counts.pop(0, None)  # null or empty: none
    return min(counts, key=lambda length: (-counts[length], length), default=0)


def _type_faults(data_dir: str | pathlib.Path, feature: Feature, known: schema.Tables) -> list[str]:
    documented, wanted = known[feature.table].column(feature.column).kind, _KINDS[feature.kind]
    if documented != wanted and not (documented == "integer" and wanted == "number"):
        return [
            f"feature {feature.name!r}: {feature.table}.{feature.column} is read as {documented}, by another feature "
            f"or by the schema, so it cannot be of kind {wanted}. Declare another `kind`, or copy the column under "
            "another name"
        ]
    text = _unreadable(schema.table_parts(data_dir, feature.table, known), feature.table, feature.column, known)
    return [f"feature {feature.name!r}: {text} Declare another `kind`, or change the column"] if text else []


def _unreadable(parts: typing.Sequence[Part], table: str, column: str, known: schema.Tables) -> str:
    """Returns why a column's stored type cannot be read as what is declared; "" where it can."""
    try:
        for part in parts:
            if column in part.schema.names:
                schema.conform(part.schema.empty_table().select([column]), table, [column], known)
    except ValueError as error:
        return str(error)
    return ""


def _lacks(parts: typing.Sequence[Part], table: str, column: str, known: schema.Tables) -> bool:
    """Returns whether a required column cannot be read in all files."""
    is_there = all(column in part.schema.names for part in parts)
    return not is_there or bool(_unreadable(parts, table, column, known))


def _label_faults(data_dir: str | pathlib.Path, label: Label, known: schema.Tables) -> list[str]:
    """Returns what the data lacks of the label; that of the documented name is checked with its table."""
    found = []
    parts = schema.table_parts(data_dir, "impressions", known)
    names = list(dict.fromkeys(name for part in parts for name in part.schema.names))
    for name, column in label.sources.items():
        field, place = "column" if name == LABEL else name.removeprefix("sample_"), f"impressions.{column}"
        if column not in names and column != LABEL:
            found.append(f"label: column {place} must be there. Received the columns {', '.join(names)}. Name another")
        elif name != LABEL and (text := _unreadable(parts, "impressions", column, known)):
            found.append(f"label: {text} Name a column of numbers as its {field}")
    is_readable = not _lacks(parts, "impressions", label.column, known)  # else it is said with its table
    if not found and label.negative_rate_column and is_readable:
        found += _rate_faults(schema.read_table(data_dir, "impressions", list(label.sources.values()), known), label)
    return found


def _rate_faults(shown: pa.Table, label: Label) -> list[str]:
    """Returns a fault where clicks have rate 1, as they were kept, and not the rate of negatives like them."""
    rates, clicked = shown[label.negative_rate_column], pc.equal(shown[label.column], 1)
    of_clicks, of_negatives = rates.filter(clicked), rates.filter(pc.invert(clicked))
    if pc.min(of_clicks).as_py() == 1.0 and (pc.max(of_negatives).as_py() or 1.0) < 1.0:
        return [
            f"label: impressions.{label.negative_rate_column} must be, of a clicked row too, the share of negatives "
            "like it that the log keeps. Received: 1 for all clicks, less for all negatives. Write the negatives' rate "
            "beside clicks"
        ]
    return []


def _action_faults(data_dir: str | pathlib.Path, feature_set: FeatureSet, known: schema.Tables) -> list[str]:
    wanted = [(s.name, action) for s in feature_set.sequences for action in s.actions]
    if not wanted:
        return []
    if parts := schema.table_parts(data_dir, "behaviors", known):
        if _lacks(parts, "behaviors", "action", known):
            names = ", ".join(dict.fromkeys(name for name, _ in wanted))
            return [
                f"sequences {names}: behaviors.action must be there and hold strings. Add it, or leave `actions` out"
            ]
        actions = set(pc.unique(schema.read_table(data_dir, "behaviors", ["action"])["action"]).to_pylist())
    else:
        actions = {"click"}  # histories are the clicked impressions
    return [
        f"sequence {name!r}: nobody did {action!r}. The behaviors are of {', '.join(sorted(filter(None, actions)))}. "
        "Leave it out of `actions`, or the sequence out"
        for name, action in wanted
        if action not in actions
    ]


def id_types(data_dir: str | pathlib.Path, feature_set: FeatureSet) -> dict[str, str]:
    """Returns the types of declared ids at the edge, "int64" or "string", by feature.

    Raises:
        ValueError: one id, or one vocabulary, has ids of both types.
    """
    documented, known = schema.id_types(data_dir), tables(feature_set)
    result: dict[str, str] = {}
    for feature in feature_set.features:
        if feature.name in KEYS:
            result[feature.name] = documented[feature.name]
        elif feature.kind in ("id", "ids"):
            result[feature.name] = (*_id_kinds(data_dir, feature, known), "int64")[0]
    if found := _mixed(result, feature_set):
        raise ValueError("\n".join(f"{text}." for text in found))
    return result


def _id_kinds(data_dir: str | pathlib.Path, feature: Feature, known: schema.Tables) -> list[str]:
    """Returns the types that the files have of a feature's ids, sorted; none where it is no id, or all are null."""
    found = set()
    for part in schema.table_parts(data_dir, feature.table, known) if feature.kind in ("id", "ids") else ():
        if feature.column in part.schema.names:
            empty = part.schema.empty_table().select([feature.column])
            kind = schema.conform(empty, feature.table, [feature.column], known)[feature.column].type
            kind = kind.value_type if pa.types.is_list(kind) else kind
            if not pa.types.is_null(kind):
                found.add("int64" if pa.types.is_integer(kind) else "string")
    return sorted(found)


def _mixed(kinds: typing.Mapping[str, str], feature_set: FeatureSet) -> list[str]:
    """Returns which vocabularies would hold ids of both types, which have nothing in common."""
    found: list[str] = []
    of_vocabulary: dict[str, str] = {}
    for feature in feature_set.features:
        if feature.name in kinds:
            first = of_vocabulary.setdefault(feature.embedding, kinds[feature.name])
            if first != kinds[feature.name]:
                found.append(
                    f"Features of vocabulary {feature.embedding!r} must have ids of one type. Received: {first} and "
                    f"{kinds[feature.name]}, of {feature.name!r}"
                )
    return found


def _serving_fault(feature: Feature, kind: str) -> str:
    """Returns why an id that stands for a feature in service is none of the data's; "" where it may be."""
    value = feature.serving_value
    given = "string" if isinstance(value, str) else "int64"
    if not value or given == kind:  # 0 and "" are missing in both
        return ""
    return f"`serving_value` must be of type {kind}, not {value!r}"


def values(column: pa.ChunkedArray, feature: Feature) -> np.ndarray:
    """Returns a declared column as examples hold it: int64 or float32 [n], or int64 [n, M] of multi-valued ids.

    Times are read as they are stored, see `instants_of`.
    """
    if feature.kind == "id":
        return schema.fingerprints(column)
    if feature.kind == "ids":
        return _first_ids(column, feature.max_values)
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan, np.float32)
    numbers = column.cast(pa.float32()).to_numpy().astype(np.float32)
    return np.where(np.abs(numbers) <= MAX_NUMBER, numbers, np.float32(np.nan))


def instants_of(part: Part, name: str, row_group: int, feature: Feature, seen: times.Seen) -> np.ndarray:
    """Returns a declared column of times as examples hold it: the earliest instants, int64 [n] microseconds.

    Args:
        part, name, row_group: of the table.
        feature: of kind `time`.
        seen: of impressions at least, whose zone is that of all times that name none.
    """
    if feature.column not in part.schema.names:
        return np.full(part.row_groups[row_group], PADDING, np.int64)
    stored = times.read_stored(part, name, row_group, feature.column)
    is_known = name in seen and times.COLUMNS[name] == feature.column
    resolution = seen[name] if is_known else times.Resolution(seen["impressions"].time_zone)
    earliest, _ = times.bounds(stored, resolution)
    told = schema.microseconds(instants.to_timestamps(stored))
    return np.where((told >= instants.FIRST_US) & (told <= instants.LAST_US), earliest, PADDING)


def _first_ids(column: pa.ChunkedArray, count: int) -> np.ndarray:
    result = np.full((len(column), count), PADDING, np.int64)
    if pa.types.is_null(column.type):
        return result
    lists = column.combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) and lists.num_chunks else lists
    if not len(lists):
        return result
    parents = pc.list_parent_indices(lists).to_numpy()
    ids = schema.fingerprints(lists.flatten())
    given = ids != PADDING
    parents, ids = parents[given], ids[given]
    places = np.arange(len(parents)) - np.searchsorted(parents, parents)
    kept = places < count
    result[parents[kept], places[kept]] = ids[kept]
    return result


def columns_of(table: str, base: typing.Sequence[str], feature_set: FeatureSet) -> list[str]:
    """Returns the columns to read of a table: those that the join needs, and those of declared features."""
    return list(dict.fromkeys((*base, *(feature.column for feature in feature_set.of_table(table)))))


def action_places(column: pa.ChunkedArray) -> np.ndarray:
    """Returns the places of actions in `features.ACTIONS`, int64 [n]; -1 for others."""
    if pa.types.is_null(column.type):
        return np.full(len(column), -1, np.int64)
    return pc.fill_null(pc.index_in(column, pa.array(ACTIONS)), -1).to_numpy().astype(np.int64)
