"""Rows of training from requests as they were served: raw columns, as the batch join would have written them."""

from __future__ import annotations

import typing

import numpy as np

from serving.nearline import records
from serving.nearline.joining import Waiting
from serving.streaming.events import EventError, shorten
from tfmm import fingerprints
from tfmm.declared_values import MAX_NUMBER
from tfmm.export import signatures
from tfmm.features import LABEL, PADDING, Column, FeatureSet
from tfmm.index.live_vectors import LiveFeatures

Columns = dict[str, np.ndarray]
TIME = "timestamp"
AT = "_at"  # microseconds: when a row has its turn, which is its time unless it came late


class Reader:
    """Turns requests with their labels into rows, one per item that was shown.

    What a request left out of items' features, as the model that served it may look them up itself, is taken from the
    index as it stands. What no request knows, such as the position, is what events told of the item.

    Args:
        feature_set: what the model was declared with.
        id_types: "int64" or "string" by feature of ids, as requests have them.
        features: of items, in the index.
    """

    def __init__(self, feature_set: FeatureSet, id_types: typing.Mapping[str, str], features: LiveFeatures):
        self._feature_set, self._id_types, self._stored = feature_set, id_types, features

    def read(self, waiting: Waiting) -> Columns:
        """Returns the rows of a request that was shown, in the order of its items.

        Returns:
            int64 or float32 [n, ...] by column, `timestamp`, `label` and `AT`.
        Raises:
            EventError: a value is not what was declared.
        """
        request = waiting.request
        places = {item: place for place, item in reversed(list(enumerate(request.items)))}  # the first of each
        shown = sorted(places[item] for item in waiting.labels if item in places)
        told = [waiting.values(request.items[place]) for place in shown]
        result: Columns = {}
        for column in self._feature_set.columns:
            if not column.is_served:
                result[column.name] = self._values(column, [values.get(column.feature.column) for values in told])
            elif column.name == "item_id":
                result[column.name] = self._ids(column, [request.items[place] for place in shown])
            elif column.side == "item":
                given = self._given(waiting, column)
                if given is not None:
                    if not isinstance(given, list) or len(given) != len(request.items):
                        raise EventError(
                            f"{column.name}: must be a list of {len(request.items)} values, one per item, not "
                            f"{shorten(given)}"
                        )
                    result[column.name] = self._values(column, [given[place] for place in shown])
        own = {c.name: self._of_user(waiting, c) for c in self._feature_set.served if c.side == "user"}
        result |= self._histories({name: value for name, value in own.items() if value is not None})
        self._complete(result, len(shown))
        labels = [waiting.labels[request.items[place]] for place in shown]
        return result | {
            LABEL: np.array(labels, np.int64),
            TIME: np.full(len(shown), records.time_us(request), np.int64),
            AT: np.full(len(shown), waiting.at_us, np.int64),
        }

    def _given(self, waiting: Waiting, column: Column) -> typing.Any:
        """Returns what the model looked up of a column, or the request says; None where neither says anything."""
        looked_up = (waiting.request.item_features or {}).get(column.name) if column.side == "item" else None
        return waiting.request.features.get(column.name) if looked_up is None else looked_up

    def _of_user(self, waiting: Waiting, column: Column) -> np.ndarray | None:
        """Returns a user's value or history, [W] or [1]; None where the request does not say it."""
        given = self._given(waiting, column)
        if given is None:
            return None
        if column.sequence is None and column.feature.kind != "ids":
            return self._values(column, given if isinstance(given, list) and len(given) == 1 else [given])
        if not isinstance(given, list):
            raise EventError(f"{column.name}: must be a list, not {shorten(given)}")
        if len(given) == 1 and isinstance(given[0], list):  # a batch of one, as callers send
            given = given[0]
        return self._values(column, [given] if column.sequence is None else given)

    def _histories(self, own: Columns) -> Columns:
        """Returns the user's columns with sequences of L: the newest behaviors, padded on the right."""
        for sequence in self._feature_set.sequences:
            columns = signatures.columns_of(self._feature_set, sequence)
            ids = own.get(sequence.item_ids, np.zeros(0, np.int64))
            used = int(np.flatnonzero(ids != PADDING)[-1]) + 1 if ids.any() else 0
            for column in columns:
                found = own.get(column.name)
                if found is None and column.name == sequence.item_ids:
                    found = ids
                if found is None:
                    continue
                if len(found) != len(ids):
                    raise EventError(
                        f"{column.name}: must have as many values as {sequence.item_ids}, {len(ids)}, not {len(found)}"
                    )
                newest = found[max(used - sequence.length, 0) : used]
                filler = np.full(sequence.length - len(newest), column.missing, found.dtype)
                own[column.name] = np.concatenate([newest, filler])[None]
        return own

    def _complete(self, result: Columns, count: int) -> None:
        """Looks up what is left out of items' features, repeats the user's side, and fills in what nobody knows."""
        for ids, columns in signatures.stored_columns(self._feature_set, self._stored.names).items():
            missing = [column for column in columns if column.name not in result]
            if missing and ids in result:
                items = result[ids]
                found = self._stored.lookup(items.ravel())
                for column in missing:
                    if column.feature.name in found:
                        values, has = found[column.feature.name]
                        has = (has & (items.ravel() != PADDING)).reshape(-1, *[1] * (values.ndim - 1))
                        known = np.where(has, values, column.missing).astype(values.dtype)
                        result[column.name] = known.reshape(*items.shape, *values.shape[1:])
        for column in self._feature_set.columns:
            dtype = np.float32 if column.is_float else np.int64
            if column.name not in result:
                result[column.name] = np.full((count, *column.shape), column.missing, dtype)
            elif column.side == "user" and column.is_served:
                result[column.name] = np.repeat(result[column.name], count, axis=0)
            result[column.name] = result[column.name].astype(dtype, copy=False)

    def _values(self, column: Column, given: typing.Sequence[typing.Any]) -> np.ndarray:
        """Returns values of a column, [n] or [n, M] of multi-valued ids."""
        kind = column.feature.kind
        if kind == "id":
            return self._ids(column, given)
        if kind == "ids":
            result = np.full((len(given), column.feature.max_values), PADDING, np.int64)
            for row, values in enumerate(given):
                if values is not None and not isinstance(values, list):
                    raise EventError(f"{column.name}: must be lists of ids, not {shorten(values)}")
                ids = self._ids(column, values or [])
                ids = ids[ids != PADDING][: column.feature.max_values]
                result[row, : len(ids)] = ids
            return result
        try:
            if kind == "time":
                return np.array([0 if value is None else int(value) for value in given], np.int64)
            numbers = np.array([np.nan if value is None else float(value) for value in given], np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise EventError(f"{column.name}: must hold values of kind {kind}, not {shorten(list(given))}") from error
        return np.where(np.abs(numbers) <= MAX_NUMBER, numbers, np.nan).astype(np.float32)

    def _ids(self, column: Column, given: typing.Sequence[typing.Any]) -> np.ndarray:
        """Returns ids as int64; texts as their fingerprints, which a model that looked one up logs as it holds it."""
        is_text = self._id_types.get(column.feature.name) == "string"
        ids = [PADDING if value is None else value for value in given]
        if wrong := [v for v in ids if isinstance(v, bool) or not isinstance(v, (str, int) if is_text else int)]:
            wanted = "texts" if is_text else "integers"
            raise EventError(f"{column.name}: must hold {wanted}, as the model's requests do, not {shorten(wrong[0])}")
        texts = [value for value in ids if isinstance(value, str)]
        found = iter(fingerprints.fingerprint(texts).tolist() if texts else ())
        try:
            return np.array([next(found) if isinstance(value, str) else value for value in ids], np.int64)
        except OverflowError as error:
            raise EventError(f"{column.name}: must hold 64-bit integers, not {shorten(ids)}") from error


class Buffer:
    """Rows that wait for their block, in order.

    Args:
        columns: rows that wait already; {}: none.
    """

    def __init__(self, columns: Columns):
        self._parts = [columns] if columns else []

    def __len__(self) -> int:
        return sum(len(part[AT]) for part in self._parts)

    def add(self, columns: Columns) -> None:
        self._parts.append(columns)

    @property
    def columns(self) -> Columns:
        """All of them; {}: there are none."""
        if len(self._parts) > 1:
            self._parts = [concatenate(self._parts)]
        return self._parts[0] if self._parts else {}

    def take(self, frontier_us: int, max_rows: int, max_us: int) -> Columns | None:
        """Takes the next block: `max_rows`, or those that have their turn within `max_us` of the first of them.

        Returns:
            None where the block is not whole: more rows may come that have their turn before its end.
        """
        rows = self.columns
        if not rows:
            return None
        end = int(rows[AT][0]) + max_us
        count = int(np.searchsorted(rows[AT], end))
        if count < max_rows and frontier_us < end and count == len(rows[AT]):
            return None
        count = min(count, max_rows)
        rest = {name: values[count:] for name, values in rows.items()}
        self._parts = [rest] if len(rest[AT]) else []
        return {name: values[:count] for name, values in rows.items()}


def concatenate(parts: typing.Sequence[Columns]) -> Columns:
    """Returns the rows of several blocks together."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
