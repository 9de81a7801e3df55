"""Requests made of the tables themselves, with the values that a caller would send."""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfmm.data import as_known, declared, schema, times
from tfmm.features import AGE, Column, Feature, FeatureSet, Sequence

Values = dict[str, typing.Any]
_INSTANT = "_instant_"  # begins no declared column


def busiest_user(data: pathlib.Path, feature_set: FeatureSet, time_zone: str) -> Values:
    """Returns the user side of a request: the user with most behaviors, as its newest rows describe it.

    Args:
        data: the tables.
        feature_set: what a request brings.
        time_zone: of times that name none, see `DataConfig`.
    """
    return busiest_users(data, feature_set, time_zone, 1)[0]


def busiest_users(data: pathlib.Path, feature_set: FeatureSet, time_zone: str, count: int) -> list[Values]:
    """Returns the user sides of `count` users, or as many as there are, those with most behaviors first."""
    behaviors = _behaviors(data, feature_set, time_zone)
    counted = behaviors["user_id"].value_counts()
    order = np.argsort(-counted.field("counts").to_numpy(), kind="stable")[:count]
    items = _by_id(_read(data, "items", feature_set, time_zone), "item_id")
    tables = {name: _table_of_users(data, name, feature_set, time_zone) for name in ("users", "impressions")}
    found = []
    for user in counted.field("values").take(pa.array(order)):
        own = behaviors.filter(pc.equal(behaviors["user_id"], user)).sort_by("timestamp")
        rows = {name: _newest_row(table, user) for name, table in tables.items()}
        result: Values = {"user_id": user.as_py()}
        for column in feature_set.served:
            if column.sequence is not None:
                result[column.name] = _ride(column, column.sequence, own, items)
            elif column.side == "user" and column.name != "user_id":
                result[column.name] = _value(rows[column.feature.table], column.feature)
        found.append(result)
    return found


def first_items(data: pathlib.Path, feature_set: FeatureSet, count: int, time_zone: str) -> Values:
    """Returns the candidate side of a request: the catalog's first items."""
    return candidates_of(feature_set, _read(data, "items", feature_set, time_zone).slice(0, count).to_pylist())


def catalog(data: pathlib.Path, feature_set: FeatureSet, time_zone: str) -> dict[typing.Any, Values]:
    """Returns the catalog's rows by item id, as `candidates_of` takes them."""
    return _by_id(_read(data, "items", feature_set, time_zone), "item_id")


def candidates_of(feature_set: FeatureSet, items: typing.Sequence[typing.Mapping[str, typing.Any]]) -> Values:
    """Returns the candidate side of a request for rows of the catalog; what they lack is missing."""
    return {
        column.name: [_value(item, column.feature) for item in items]
        for column in feature_set.served
        if column.side == "item"
    }


def _read(data: pathlib.Path, name: str, feature_set: FeatureSet, time_zone: str) -> pa.Table:
    """Reads a table with the instants of its declared times, int64 microseconds under the feature's name.

    Of versions, the newest.
    """
    tables = declared.tables(feature_set)
    table = as_known.read_table(data, name, time_zone, tables=tables)
    seen = times.resolutions(data, time_zone)
    for feature in feature_set.of_table(name):
        if feature.kind == "time":
            found = [
                declared.instants_of(part, name, group, feature, seen)[slice(None) if rows is None else rows]
                for part, group, rows in as_known.row_groups(data, name, time_zone, tables)
            ]
            table = table.append_column(_INSTANT + feature.name, pa.array(np.concatenate(found)))
    return table


def _behaviors(data: pathlib.Path, feature_set: FeatureSet, time_zone: str) -> pa.Table:
    if schema.has_table(data, "behaviors"):
        return _read(data, "behaviors", feature_set, time_zone)
    label = feature_set.label.column
    columns = ["user_id", "item_id", "timestamp", label]
    shown = schema.read_table(data, "impressions", columns, declared.tables(feature_set))
    return shown.filter(pc.equal(shown[label], 1))


def _table_of_users(data: pathlib.Path, name: str, feature_set: FeatureSet, time_zone: str) -> pa.Table | None:
    """Returns a table that has features of users, or of requests; None: there are none in it."""
    tables = declared.tables(feature_set)
    if not feature_set.of_table(name) or not schema.has_table(data, name, tables):
        return None
    return _read(data, name, feature_set, time_zone)


def _newest_row(table: pa.Table | None, user: typing.Any) -> Values:
    if table is None:
        return {}
    own = table.filter(pc.equal(table["user_id"], user))
    if "timestamp" in own.column_names:
        own = own.sort_by("timestamp")
    return own.slice(own.num_rows - 1).to_pylist()[0] if own.num_rows else {}


def _by_id(table: pa.Table, key: str) -> dict[typing.Any, Values]:
    return {row[key]: row for row in table.to_pylist()}


def _ride(column: Column, sequence: Sequence, own: pa.Table, items: typing.Mapping[typing.Any, Values]) -> list:
    rows = own.to_pylist()
    if sequence.actions and "action" in own.column_names:
        rows = [row for row in rows if row["action"] in sequence.actions]
    rows, feature = rows[-sequence.length :], column.feature
    if feature.name == "item_id":
        return [row["item_id"] for row in rows]
    if feature.role == "item":
        return [_value(items.get(row["item_id"], {}), feature) for row in rows]
    if feature.column == AGE:
        return [(rows[-1]["timestamp"] - row["timestamp"]).total_seconds() for row in rows]
    return [_value(row, feature) for row in rows]


def _value(row: typing.Mapping[str, typing.Any], feature: Feature) -> typing.Any:
    """Returns a feature of a table's row as a request has it."""
    value = row.get(_INSTANT + feature.name if feature.kind == "time" else feature.column)
    return float(value) if value is not None and feature.kind == "number" else value
