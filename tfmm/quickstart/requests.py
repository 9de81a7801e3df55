"""Requests made of the tables themselves, with the values that a caller would send."""

from __future__ import annotations

import datetime
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfmm.data import declared, schema
from tfmm.features import AGE, Column, Feature, FeatureSet, Sequence

Values = dict[str, typing.Any]
_EPOCH = datetime.datetime(1970, 1, 1)


def busiest_user(data: pathlib.Path, feature_set: FeatureSet) -> Values:
    """Returns the user side of a request: the user with most behaviors, as its newest rows describe it."""
    behaviors = _behaviors(data, feature_set)
    counts = behaviors["user_id"].value_counts()
    user = counts.field("values")[int(np.argmax(counts.field("counts").to_numpy()))]
    own = behaviors.filter(pc.equal(behaviors["user_id"], user)).sort_by("timestamp")
    items = _by_id(schema.read_table(data, "items", tables=declared.tables(feature_set)), "item_id")
    rows = {name: _newest_row(data, name, user, feature_set) for name in ("users", "impressions")}
    result: Values = {"user_id": user.as_py()}
    for column in feature_set.served:
        if column.sequence is not None:
            result[column.name] = _ride(column, column.sequence, own, items)
        elif column.side == "user" and column.name != "user_id":
            result[column.name] = _plain(rows[column.feature.table].get(column.feature.column), column.feature)
    return result


def first_items(data: pathlib.Path, feature_set: FeatureSet, count: int) -> Values:
    """Returns the candidate side of a request: the catalog's first items."""
    items = schema.read_table(data, "items", tables=declared.tables(feature_set)).slice(0, count).to_pylist()
    return candidates_of(feature_set, items)


def candidates_of(feature_set: FeatureSet, items: typing.Sequence[typing.Mapping[str, typing.Any]]) -> Values:
    """Returns the candidate side of a request for rows of the catalog; what they lack is missing."""
    return {
        column.name: [_plain(item.get(column.feature.column), column.feature) for item in items]
        for column in feature_set.served
        if column.side == "item"
    }


def _behaviors(data: pathlib.Path, feature_set: FeatureSet) -> pa.Table:
    if schema.has_table(data, "behaviors"):
        return schema.read_table(data, "behaviors", tables=declared.tables(feature_set))
    label = feature_set.label.column
    columns = ["user_id", "item_id", "timestamp", label]
    shown = schema.read_table(data, "impressions", columns, declared.tables(feature_set))
    return shown.filter(pc.equal(shown[label], 1))


def _newest_row(data: pathlib.Path, name: str, user: typing.Any, feature_set: FeatureSet) -> Values:
    tables = declared.tables(feature_set)
    if not feature_set.of_table(name) or not schema.has_table(data, name, tables):
        return {}
    table = schema.read_table(data, name, tables=tables)
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
        return [_plain(items.get(row["item_id"], {}).get(feature.column), feature) for row in rows]
    if feature.column == AGE:
        return [(rows[-1]["timestamp"] - row["timestamp"]).total_seconds() for row in rows]
    return [_plain(row.get(feature.column), feature) for row in rows]


def _plain(value: typing.Any, feature: Feature) -> typing.Any:
    """Returns a table's value as a request has it."""
    if isinstance(value, datetime.datetime):
        return (value.replace(tzinfo=None) - _EPOCH) // datetime.timedelta(microseconds=1)
    return float(value) if value is not None and feature.kind == "number" else value
