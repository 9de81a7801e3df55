"""Click examples: impressions joined with the user's earlier behaviors, split by time; vocabularies and statistics."""

from __future__ import annotations

import functools
import glob
import pathlib
import typing

import numpy as np
import tensorflow as tf

from tfmm.data import as_known, order_statistics
from tfmm.data import behaviors as behaviors_lib
from tfmm.features import ACTIONS, AGE, KEYS, Column, Feature, FeatureSet, Sequence
from tfmm.labels import LABEL, NEGATIVE_RATE, SAMPLE_WEIGHT

_BATCH = 1024
_GZIP = tf.io.TFRecordOptions(compression_type="GZIP", compression_level=1)
SECOND_US = 1_000_000
Columns = dict[str, np.ndarray]
# What the join itself knows of a behavior, beside features by name; no declared name begins so.
LATEST, ACTION, ORDER_LINE = "_latest", "_action", "_order_line"


def eval_start(times: np.ndarray, eval_fraction: float) -> int:
    """Returns the first timestamp of the eval split: about the last `eval_fraction` of the impressions.

    Args:
        times: int64 [n] microseconds; impressions of one instant fall into one split.

    >>> eval_start(np.array([50, 10, 20, 30, 40]), 0.2)
    50
    """
    if not len(times):
        raise ValueError("The impressions table must have rows. Received: none.")
    place = eval_place(len(times), eval_fraction)
    return int(np.partition(times, place)[place])


def eval_start_of_file(path: pathlib.Path, eval_fraction: float) -> int:
    """Returns what `eval_start` does, of instants int64 in a file, in memory that does not grow with their number."""
    num_rows = path.stat().st_size // 8
    if not num_rows:
        return eval_start(np.zeros(0, np.int64), eval_fraction)
    place = eval_place(num_rows, eval_fraction)

    def pieces() -> typing.Iterator[tuple[np.ndarray, None]]:
        with path.open("rb") as file:
            while len(piece := np.fromfile(file, np.int64, 2**20)):
                yield piece, None

    return int(order_statistics.select(pieces, np.array([place]), np.int64)[0])


def eval_place(num_rows: int, eval_fraction: float) -> int:
    """Returns which of the sorted timestamps is the first of the eval split."""
    return min(int(num_rows * (1 - eval_fraction)), num_rows - 1)


def build(
    impressions: Columns, behaviors: Columns, catalog: Columns, users: Columns, feature_set: FeatureSet
) -> Columns:
    """Joins impressions with users, items and histories.

    Args:
        impressions: `user_id`, `item_id`, `timestamp` (the earliest instant), `label`: int64 [B]; float32 [B] of
            what else the label declares; and, as all of these, a column per declared feature of its table, by the
            feature's name.
        behaviors: `user_id`, `item_id`, `timestamp`, `_action` (place in `features.ACTIONS`): int64 [n], in any order;
            perhaps `_order_line`; perhaps `_latest`, until when each may have happened (`tfmm.data.times`), else that
            is `timestamp`.
        catalog: `item_id`: int64 [m], ascending; in `as_known.order`, with its columns, where items have versions.
        users: `user_id`: int64 [k], by the same token.
        feature_set: features and sequences, lengths filled in.
    Returns:
        One array per column of the feature set, `timestamp` and those of the label, sorted by time (ties by a hash,
        so that the order of the rows given says nothing).
    """
    keys = [impressions[name] for name in (*KEYS, "timestamp")]
    order = np.lexsort((behaviors_lib.tie_break(*keys), keys[-1]))
    shown = {name: values[order] for name, values in impressions.items()}
    sources = {
        name: (table, as_known.look_up(shown[key], table, key, shown["timestamp"]))
        for name, table, key in (("items", catalog, "item_id"), ("users", users, "user_id"))
    }
    result: Columns = {}
    for column in feature_set.columns:
        if column.sequence is None:
            table = column.feature.table
            if column.name in KEYS or table == "impressions":
                result[column.name] = shown[column.name]
            else:
                result[column.name] = look_up(*sources[table], column)
    for sequence in feature_set.sequences:
        columns = [c for c in feature_set.columns if c.sequence is not None and c.sequence.name == sequence.name]
        result |= _history(shown, behaviors, catalog, sequence, columns)
    return {**result, **{name: shown[name] for name in ("timestamp", *feature_set.label.sources)}}


def _history(
    shown: Columns, behaviors: Columns, catalog: Columns, sequence: Sequence, columns: typing.Sequence[Column]
) -> Columns:
    """Returns a sequence's columns [B, L] for sorted impressions."""
    acts = in_order(behaviors, sequence)
    rows, mask = behaviors_lib.histories(
        shown["user_id"], shown["timestamp"], acts["user_id"], acts[LATEST], sequence.length
    )
    known = functools.cache(
        lambda: as_known.look_up(acts["item_id"], catalog, "item_id", shown["timestamp"], rows)
    )
    result: Columns = {}
    for column in columns:
        feature = column.feature
        if not len(acts[LATEST]):
            values = np.full(rows.shape, column.missing)
        elif feature.column == AGE and feature.role == "behavior":
            values = (shown["timestamp"][:, None] - acts["timestamp"][rows]) / SECOND_US
        elif feature.name == "item_id" or feature.role == "behavior":
            values = acts[feature.name][rows]
        else:
            values = look_up(catalog, known(), column)
        result[column.name] = np.where(mask, values, column.missing).astype(dtype_of(column))
    return result


def in_order(behaviors: Columns, sequence: Sequence) -> Columns:
    """Returns the behaviors of a sequence's actions, by user and time, with `_latest`."""
    known = {LATEST: behaviors["timestamp"]} | behaviors
    sorting = behaviors_lib.sort_behaviors(
        known["user_id"], known["timestamp"], known["item_id"], known.get(ORDER_LINE), known[LATEST]
    )
    if sequence.actions:
        places = [ACTIONS.index(action) for action in sequence.actions]
        sorting = sorting[np.isin(known[ACTION][sorting], places)]
    return {name: values[sorting] for name, values in known.items()}


def dtype_of(column: Column | Feature) -> type:
    """Returns the dtype of a column's values in an example."""
    kind = column.kind if isinstance(column, Feature) else column.feature.kind
    return np.float32 if kind in ("number", "boolean") else np.int64


def look_up(table: Columns, found: tuple[np.ndarray, np.ndarray], column: Column) -> np.ndarray:
    """Returns a feature's values [B, ...] or [B, L] at the rows that `as_known.look_up` found; else missing."""
    values, (places, known) = table[column.feature.name], found
    if not len(values):
        return np.full((*places.shape, *values.shape[1:]), column.missing, dtype_of(column))
    is_known = known.reshape(known.shape + (1,) * (values.ndim - 1))
    return np.where(is_known, values[places], column.missing).astype(dtype_of(column))


def time_order(columns: Columns) -> np.ndarray:
    """Returns the order by time, ties by a hash of ids: neither the files' order nor an id or a label orders rows."""
    ids = [columns[name] for name in ("user_id", "item_id", "timestamp") if name in columns]
    last = [columns[name] for name in (NEGATIVE_RATE, SAMPLE_WEIGHT, LABEL) if name in columns]
    return np.lexsort((*last, behaviors_lib.tie_break(*ids), columns["timestamp"]))


def serialize(columns: Columns) -> typing.Iterator[bytes]:
    """Yields one serialized tf.Example per row.

    Args:
        columns: int64 or float32, [B] or [B, L], by column.
    """
    names = list(columns)
    kinds = ["float_list" if columns[name].dtype.kind == "f" else "int64_list" for name in names]
    for row in zip(*(columns[name].tolist() for name in names)):
        example = tf.train.Example()
        feature = example.features.feature
        for name, kind, value in zip(names, kinds, row):
            getattr(feature[name], kind).value.extend(value if isinstance(value, list) else [value])
        yield example.SerializeToString()


def read_columns(pattern: str, spec: dict[str, tf.io.FixedLenFeature]) -> Columns:
    """Reads gzip TFRecord files of tf.Examples: arrays by column, rows in the files' order."""
    files = sorted(glob.glob(pattern))
    if not files:
        raise FileNotFoundError(f"{pattern} matches no file. Write the examples first.")
    batches = (
        tf.data.TFRecordDataset(files, "GZIP").batch(_BATCH).map(lambda records: tf.io.parse_example(records, spec))
    )
    parts = list(batches.as_numpy_iterator())
    return {name: np.concatenate([part[name] for part in parts]) for name in spec}
