"""Row groups of a data folder as arrays, with what is left out: the part of the join that knows no engine."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import typing

import numpy as np
import pyarrow as pa

from tfmm.data import as_known, declared, examples, instants, rules, schema, times
from tfmm.data import behaviors as behaviors_lib
from tfmm.data.parts import Part
from tfmm.features import ACTIONS, KEYS, LABEL, FeatureSet

Columns = dict[str, np.ndarray]
ROW, IS_EVAL = "_row", "_is_eval"  # of an impression: its row of the table, and whether its split says eval
LOGS = ("impressions", "behaviors", "users")  # whose rows of one user are joined
_BASE = ("user_id", "item_id", "timestamp", "label")  # of an impression, whatever a run declares
_COLUMNS = {  # what the join itself needs of each table
    "impressions": ("user_id", "item_id", "timestamp", "split"),  # and the label's
    "behaviors": ("user_id", "item_id", "timestamp", "action", "order_line"),
    "items": ("item_id",),
    "users": ("user_id",),
}
DEAD_LETTER = pa.schema(
    [("table", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())]
)


_LETTERS = 4_096  # made at a time, as a poisoned row group is one of them per row


class DeadLetters:
    """The dead letters of some rows of a table, made while they are read: a dict by the columns of `DEAD_LETTER` each.

    Args:
        table: with those rows, and others.
        name: of the table.
        rows: int64 [n], the number of each of its rows in the data folder's table.
        bad: bool [n], which of them are left out.
        reasons: text [n], why.
    """

    def __init__(self, table: pa.Table, name: str, rows: np.ndarray, bad: np.ndarray, reasons: np.ndarray) -> None:
        places = np.flatnonzero(bad)
        self._name, self._rows, self._reasons = name, rows[places], reasons[places]
        self._table = table.take(pa.array(places)) if len(places) else table.slice(0, 0)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> typing.Iterator[dict[str, typing.Any]]:
        for start in range(0, len(self), _LETTERS):
            numbers, reasons = (values[start : start + _LETTERS].tolist() for values in (self._rows, self._reasons))
            for row, reason, content in zip(numbers, reasons, _plain(self._table.slice(start, _LETTERS))):
                text = json.dumps(content, default=str)
                yield {"table": self._name, "row": row, "reason": reason, "content": text}

    def batches(self) -> typing.Iterator[pa.Table]:
        """Yields them as tables."""
        letters = iter(self)
        while some := list(itertools.islice(letters, _LETTERS)):
            yield pa.Table.from_pylist(some, DEAD_LETTER)


class RowGroup(typing.NamedTuple):
    """A row group of one file of a table."""

    table: str
    part: Part
    group: int
    first: int  # row of the table with which it starts


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads row groups of one data folder.

    Attributes:
        feature_set: what is read of each table.
        seen: how fine each table's times are, those of versions among them (`as_known.verified`).
        has_behaviors: whether there is a table of them; else clicks stand for them.
        has_split: whether the impressions say to which split they belong.
        newest_us: microseconds since 1970, after which no impression has happened.
    """

    feature_set: FeatureSet
    seen: times.Seen
    has_behaviors: bool
    has_split: bool
    newest_us: int

    def catalog(self, group: RowGroup) -> tuple[Columns, DeadLetters]:
        """Returns `item_id` and the items' features; versions whose time is a fault are dead letters."""
        table, columns = self._columns(group)
        columns["item_id"] = schema.fingerprints(table["item_id"])
        own_rules = [rule for rule in rules.row_rules(group.table) if rule.column == schema.UPDATED_AT]
        bad, reasons = rules.broken(table, own_rules)
        rows = np.arange(group.first, group.first + table.num_rows)
        good = {name: values[~bad] for name, values in columns.items()}
        return good, DeadLetters(table, group.table, rows, bad, reasons)

    def log(self, group: RowGroup) -> tuple[dict[str, Columns], DeadLetters]:
        """Returns the good rows by table, as `examples.build` takes them, and what breaks a rule, with its reason."""
        name = group.table
        table, columns = self._columns(group)
        own_rules = rules.row_rules(
            name, has_split=self.has_split, tables=declared.tables(self.feature_set), label=self.feature_set.label,
            newest_us=self.newest_us,
        )  # fmt: skip
        bad, reasons = rules.broken(table, own_rules)
        rows = np.arange(group.first, group.first + table.num_rows)
        columns["user_id"] = schema.fingerprints(table["user_id"])
        if name != "users":
            columns["item_id"] = schema.fingerprints(table["item_id"])
            stored = times.read_stored(group.part, name, group.group)
            columns["timestamp"], columns[examples.LATEST] = times.bounds(stored, self.seen[name])
        if name == "impressions":
            columns[ROW] = rows
            is_held_out = pa.compute.equal(table["split"], schema.EVAL).fill_null(False)
            columns[IS_EVAL] = np.asarray(is_held_out.to_numpy(), bool)
        elif name == "behaviors":
            columns[examples.ACTION] = declared.action_places(table["action"])
            columns[examples.ORDER_LINE] = table["order_line"].fill_null(0).to_numpy()
        good = {name: {key: values[~bad] for key, values in columns.items()}}
        if name == "impressions" and not self.has_behaviors:
            good["behaviors"] = _clicks(good[name])
        return good, DeadLetters(table, name, rows, bad, reasons)

    def _columns(self, group: RowGroup) -> tuple[pa.Table, Columns]:
        """Returns a row group in the declared types, and the features that come from it, by name."""
        name, part = group.table, group.part
        labels = self.feature_set.label.sources if name == "impressions" else {}
        updated = [schema.UPDATED_AT] if times.VERSIONS.get(name) in self.seen else []
        wanted = declared.columns_of(name, (*_COLUMNS[name], *updated, *labels.values()), self.feature_set)
        table = schema.read_part(part, name, wanted, group.group, declared.tables(self.feature_set))
        columns = {
            f.name: declared.instants_of(part, name, group.group, f, self.seen)
            if f.kind == "time"
            else declared.values(table[f.column], f)
            for f in self.feature_set.of_table(name)
        }
        columns |= as_known.columns(as_known.updates(part, name, group.group, self.seen))
        return table, columns | {own: _label_values(table[column], own) for own, column in labels.items()}


def row_groups(data_dir: str | pathlib.Path, names: typing.Sequence[str], feature_set: FeatureSet) -> list[RowGroup]:
    """Returns the row groups of tables, file after file."""
    result, tables = [], declared.tables(feature_set)
    for name in names:
        first = 0
        for part in schema.table_parts(data_dir, name, tables):
            for group, num_rows in enumerate(part.row_groups):
                result.append(RowGroup(name, part, group, first))
                first += num_rows
    return result


def log_names(data_dir: str | pathlib.Path, feature_set: FeatureSet) -> list[str]:
    """Returns the tables, but for the catalog, that a data folder has for a feature set."""
    has_behaviors = schema.has_table(data_dir, "behaviors")
    names = ["impressions", *(["behaviors"] if has_behaviors else [])]
    return names + (["users"] if feature_set.of_table("users") else [])


def has_split(groups: typing.Iterable[RowGroup]) -> bool:
    """Returns whether an impression among row groups says to which split it belongs."""
    parts = (schema.read_part(g.part, g.table, ["split"], g.group) for g in groups if g.table == "impressions")
    return any(part["split"].null_count < part.num_rows for part in parts)


def shards_of(columns: Columns, num_shards: int) -> np.ndarray:
    """Returns the shard of each row, int64 [n]: a user's rows share one."""
    return (behaviors_lib.tie_break(columns["user_id"]) % np.uint64(num_shards)).astype(np.int64)


def unlisted(impressions: Columns, item_ids: np.ndarray) -> tuple[np.ndarray, DeadLetters]:
    """Returns which impressions are of an item that the catalog (int64, ascending) lacks, and their dead letters."""
    shown = pa.table({name: impressions[name] for name in _BASE})
    bad, reasons = rules.broken(shown, rules.row_rules("impressions", item_ids=item_ids))
    return bad, DeadLetters(shown, "impressions", impressions[ROW], bad, reasons)


def is_eval(impressions: Columns, first_eval: int | None) -> np.ndarray:
    """Returns which impressions are held out, bool [n]: by their split, or from an instant on (microseconds)."""
    return impressions[IS_EVAL] if first_eval is None else impressions["timestamp"] >= first_eval


def users_of(parts: list[Columns], feature_set: FeatureSet) -> Columns:
    """Returns the users of some parts, ascending by id; of no part, nobody."""
    return sorted_by("user_id", parts) if parts else _empty("users", ("user_id",), feature_set)


def behaviors_of(parts: list[Columns], feature_set: FeatureSet) -> Columns:
    """Returns the behaviors of some parts; of no part, none."""
    keys = (*KEYS, "timestamp", examples.ACTION)
    return stacked(parts) if parts else _empty("behaviors", keys, feature_set)


def stacked(parts: list[Columns]) -> Columns:
    """Stacks the columns that all parts have."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def sorted_by(key: str, parts: list[Columns]) -> Columns:
    """Stacks parts, ascending by a key, versions of one by `as_known.order`."""
    columns = stacked(parts)
    order = as_known.order(columns, key)
    return {name: values[order] for name, values in columns.items()}


def _empty(table: str, keys: typing.Iterable[str], feature_set: FeatureSet) -> Columns:
    own: Columns = {
        f.name: np.zeros((0, f.max_values) if f.kind == "ids" else 0, examples.dtype_of(f))
        for f in feature_set.of_table(table)
    }
    return own | {name: np.zeros(0, np.int64) for name in keys}


def _clicks(impressions: Columns) -> Columns:
    """Returns the clicked impressions as behaviors."""
    clicked = impressions["label"] == 1
    acts = {key: impressions[key][clicked] for key in (*KEYS, "timestamp", examples.LATEST)}
    acts[examples.ACTION] = np.full(int(clicked.sum()), ACTIONS.index("click"))
    return acts


def _label_values(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Returns int64 labels or float32 weights and rates; of rows that a rule leaves out, anything."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64 if name == LABEL else np.float32)
    return column.fill_null(0).to_numpy()


def _plain(table: pa.Table) -> list[dict[str, typing.Any]]:
    """Returns rows as plain values; times as text, since those that are bad may lie beyond all calendars."""
    columns = {
        name: instants.texts(table[name]) if pa.types.is_timestamp(table[name].type) else table[name].to_pylist()
        for name in table.column_names
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]
