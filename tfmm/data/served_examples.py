"""Examples of what was served: the shards that `tfmm.data.join` writes, of a server's log in place of the tables.

Features, histories and what was looked up of items are those of the request, whatever the tables say by now. A request
stores each history once, for all of its rows; the table of items has a row for each state in which an item was served.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import time
import typing

import numpy as np

from tfmm import artifacts, fingerprints
from tfmm import config as config_lib
from tfmm.config import DataConfig
from tfmm.data import examples, instants, join, left_out, records, schema, served_rows, shards, spans, unread
from tfmm.data.served import Served
from tfmm.data.served_rows import Shown
from tfmm.declared_values import MAX_NUMBER
from tfmm.features import LABEL, PADDING, Column, FeatureSet

LABEL_WINDOW_S = 86_400.0
_PARTS, _TIMES = ".parts", "times.bin"
Columns = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Log:
    """What a training reads in place of impressions.

    Attributes:
        requests: folder of the log, see `tfmm.data.served`.
        events: folder of what became of its items.
        window_s: seconds after an item was shown in which a click counts; docs/training.md says what that biases.
        until: seconds since 1970, by which windows must have ended; None: now.
    """

    requests: str | os.PathLike[str]
    events: str | os.PathLike[str]
    window_s: float = LABEL_WINDOW_S
    until: float | None = None


def write_examples(
    log: Log,
    config: DataConfig,
    feature_set: FeatureSet,
    output_dir: str | pathlib.Path,
    say: typing.Callable[[str], object] = lambda line: None,
    before: spans.Before = spans.FROM_SCRATCH,
) -> dict[str, typing.Any]:
    """Joins a log with its events, as `join.write_examples` does tables, and says what it left out.

    Returns:
        The manifest.
    Raises:
        EmptySpan: no row is later than the watermark.
        ValueError: a split came out empty, or a reason leaves out more than `config.max_bad_fraction` of the records or
            events.
        FileNotFoundError: a folder is not there.
    """
    folder = pathlib.Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    join.remove_examples(folder)
    parts, letters = folder / _PARTS, served_rows.Letters(folder)
    until = time.time() if log.until is None else log.until
    sources = feature_set.label.sources
    told = tuple(column for name, column in sources.items() if name != LABEL)
    labels = served_rows.Labels(sources[LABEL], log.window_s, until, told)
    try:
        parts.mkdir()
        spread = served_rows.Spread(log.requests, log.events, labels, parts, letters)
        counts, digests, span = _write(spread, letters, config, feature_set, folder, parts, before, until)
    finally:
        letters.close()
        shutil.rmtree(parts, ignore_errors=True)
    span.write(folder)
    counts["dead_letter"] = letters.count
    for line in (*unread.in_words(spread.unread), *span.lines(), *_lines(counts, spread)):
        say(line)
    found = sorted(letters.found.values(), key=lambda one: -one.count)
    for one in found:
        say(f"left out: {one}")
    left_out.verify(found, spread.read, config.max_bad_fraction, folder)
    left_out.verify_splits({split: counts[split] > 0 for split in schema.SPLITS}, before.goes_on, str(counts))
    facts: dict[str, typing.Any] = {**counts, "digests": digests, "label_window_s": log.window_s}
    facts["feature_set"] = config_lib.to_dict(feature_set)
    return artifacts.write_manifest(folder, shards.KIND, config, parents=[], **facts)


def _lines(counts: typing.Mapping[str, int], spread: served_rows.Spread) -> typing.Iterator[str]:
    yield (
        f"examples as served: {counts['train']:,} train, {counts['eval']:,} eval, of {spread.read['served']:,} "
        f"requests and {spread.read['events']:,} events; {counts['dead_letter']:,} left out"
    )
    if spread.early:
        yield f"labels: {spread.early:,} items that were shown are not known yet: their window has not ended"
    if spread.late:
        yield f"labels: {spread.late:,} clicks came after their window: they count as none"


def _write(
    spread: served_rows.Spread,
    letters: served_rows.Letters,
    config: DataConfig,
    feature_set: FeatureSet,
    folder: pathlib.Path,
    parts: pathlib.Path,
    before: spans.Before,
    until: float,
) -> tuple[dict[str, int], dict[str, str], spans.Span]:
    tally = spans.Tally(before, int(until * examples.SECOND_US) + instants.AHEAD_US)
    usable = _Usable(feature_set, letters)
    with (parts / _TIMES).open("wb") as shown_at:
        for number in range(spread.num_parts):
            for record, shown in spread.rows(number):
                if usable(record, shown):
                    at = np.full(len(shown), _instant(record))
                    records.write(shown_at, at[tally.add(at)])
    first_eval = spans.held_out_from(parts / _TIMES, config.eval_fraction, tally)
    span = tally.span()
    items = _Items(feature_set)
    names = {sequence: folder / shards.history_name(sequence) for sequence in feature_set.sequences}
    histories = {s: records.Writer(path, shards.history_dtype(feature_set, s)) for s, path in names.items()}
    for number in range(spread.num_parts):
        found = [
            pair for pair in spread.rows(number) if usable(*pair, again=True) and _instant(pair[0]) > before.watermark
        ]
        if not found:
            continue
        rows = _rows(found, feature_set, items, histories, first_eval)
        for split, own in zip(schema.SPLITS, (rows["timestamp"] < first_eval, rows["timestamp"] >= first_eval)):
            if own.any():
                with (parts / f"{split}-{number}").open("wb") as file:
                    records.write(file, rows[own])
    for writer in histories.values():
        writer.close()
    table = items.table()
    np.save(folder / shards.ITEMS, table)
    dtype = shards.row_dtype(feature_set)
    counts = {s: join.in_time_order(parts, s, spread.num_parts, folder, table, dtype) for s in schema.SPLITS}
    return counts, join.digests(folder), span


def _instant(record: Served) -> int:
    return round(record.time * examples.SECOND_US)


class _Usable:
    """Says whether a record has what a run declares; one that lacks it becomes a dead letter, once."""

    def __init__(self, feature_set: FeatureSet, letters: served_rows.Letters):
        self._features, self._letters = feature_set, letters

    def __call__(self, record: Served, shown: typing.Sequence[Shown], again: bool = False) -> bool:
        lacking, uneven, wrong = [], [], []
        for column in self._features.served:
            if column.name == "item_id":
                continue
            looked_up = (record.item_features or {}).get(column.name) if column.side == "item" else None
            told = record.features.get(column.name) if looked_up is None else looked_up
            if column.name not in record.features and looked_up is None:
                lacking.append(column.name)
            elif column.side == "item" and len(_as_list(told)) != len(record.items):
                uneven.append(column.name)
            depth = len(column.shape) + (column.side == "item")  # a value of each candidate
            wrong += [] if _is_of_kind(told, column, depth) else [column.name]
        for column in self._features.columns:
            if not column.is_served and not all(
                _is_of_kind(_told(record, one, column), column, len(column.shape)) for one in shown
            ):
                wrong.append(column.feature.column)
        for sequence in self._features.sequences:
            lengths = {len(_as_list(record.features.get(name))) for name in sequence.columns}
            uneven += [sequence.name] if len(lengths) > 1 else []
        reason = f"`features` must have what the run declares, which lacks {', '.join(lacking)}" if lacking else ""
        if uneven:
            reason = reason or f"`features` must be as long as the ids beside them, not {', '.join(uneven)}"
        if wrong:
            reason = reason or f"`features` must be of the kinds that the run declares, not {', '.join(wrong)}"
        if reason and not again:
            self._letters.add(served_rows.REQUESTS, -1, reason, record.request_id)
        return not reason


def _is_of_kind(told: typing.Any, column: Column, depth: int) -> bool:
    """Returns whether a value, or lists of them `depth` deep at most, are of a column's kind, or missing."""
    if isinstance(told, list):
        return depth > 0 and all(_is_of_kind(one, column, depth - 1) for one in told)
    if column.feature.kind in ("id", "ids"):
        return told is None or isinstance(told, str) or (isinstance(told, int) and not isinstance(told, bool))
    return told is None or isinstance(told, (int, float) if column.is_float else int)


def _rows(
    found: typing.Sequence[tuple[Served, list[Shown]]],
    feature_set: FeatureSet,
    items: _Items,
    histories: typing.Mapping[typing.Any, records.Writer],
    first_eval: int,
) -> np.ndarray:
    """Returns the rows of requests in time order, and appends the histories that they show."""
    found = sorted(found, key=lambda pair: _instant(pair[0]))
    sizes = np.array([len(shown) for _, shown in found])
    of_request = np.repeat(np.arange(len(found)), sizes)
    targets = [(record, one) for record, shown in found for one in shown]
    rows = np.zeros(len(targets), shards.row_dtype(feature_set))
    times = np.array([_instant(record) for record, _ in found])
    rows["timestamp"] = times[of_request]
    rows[LABEL] = [one.label for _, one in targets]
    for name, source in feature_set.label.sources.items():
        if name != LABEL:
            rows[name] = [one.values[source] for _, one in targets]
    states: Columns = {}
    for column in feature_set.columns:
        if column.sequence is not None:
            continue
        values = _values([_told(record, one, column) for record, one in targets], column)
        if shards.is_of_items(column.feature):
            states[column.feature.name] = values
        else:
            rows[column.name] = values
    rows[shards.ITEM] = items.places(states, len(targets))
    trained = np.where(times < first_eval, sizes, 0)
    for sequence, history in histories.items():
        windows = [_window(record, sequence) for record, _ in found]
        lengths = np.array([end - start for start, end in windows])
        acts = np.zeros(int(lengths.sum()), shards.history_dtype(feature_set, sequence))
        states = {}
        for column in (c for c in feature_set.columns if c.sequence == sequence):
            told = [
                one
                for (record, _), (start, end) in zip(found, windows)
                for one in _as_list(record.features[column.name])[start:end]
            ]
            values = _values(told, column)
            if shards.is_of_items(column.feature):
                states[column.feature.name] = values
            elif shards.is_age(column.feature):
                ages = np.where(np.isfinite(values), values.astype(np.float64), 0.0)
                at = np.repeat(times, lengths) - np.round(ages * examples.SECOND_US).astype(np.int64)
                acts["timestamp"] = np.where(np.isfinite(values), at, instants.NULL)
            else:
                acts[column.feature.name] = values
        acts[shards.ITEM] = items.places(states, len(acts))
        acts[shards.SHOWN] = np.repeat(trained, lengths)
        ends = history.num_records + np.cumsum(lengths)
        history.append(acts)
        rows[shards.end_of(sequence)], rows[shards.size_of(sequence)] = ends[of_request], lengths[of_request]
    return rows


def _told(record: Served, one: Shown, column: Column) -> typing.Any:
    """Returns what is told of an item that was shown: by its request, or, of what no request knows, by its events."""
    if column.name == "item_id":
        return record.items[one.place]
    if not column.is_served:
        return one.values.get(column.feature.column)
    if column.side == "item":
        looked_up = (record.item_features or {}).get(column.name)
        return (_as_list(record.features[column.name]) if looked_up is None else looked_up)[one.place]
    return record.features[column.name]


def _window(record: Served, sequence: typing.Any) -> tuple[int, int]:
    """Returns which of the behaviors count, as in service: the newest, up to the last id that is one."""
    ids = _as_list(record.features[sequence.item_ids])
    used = max((place for place, one in enumerate(ids, 1) if one not in (None, PADDING, "")), default=0)
    return max(used - sequence.length, 0), used


def _values(told: typing.Sequence[typing.Any], column: Column) -> np.ndarray:
    """Returns values as examples hold them: int64 or float32 [n], or int64 [n, M] of multi-valued ids."""
    if column.feature.kind == "ids":
        count = column.feature.max_values
        ids = _ids([one for values in told for one in _as_list(values)])
        result, start = np.full((len(told), count), PADDING, np.int64), 0
        for row, values in enumerate(told):
            own = ids[start : start + len(_as_list(values))]
            start += len(own)
            own = own[own != PADDING][:count]
            result[row, : len(own)] = own
        return result
    if column.feature.kind == "id":
        return _ids(told)
    if column.is_float:
        numbers = np.array([np.nan if one is None else float(one) for one in told], np.float64)
        return np.where(np.abs(numbers) <= MAX_NUMBER, numbers, np.nan).astype(np.float32)
    return np.array([PADDING if one is None else int(one) for one in told], np.int64)


def _ids(told: typing.Sequence[typing.Any]) -> np.ndarray:
    """Returns ids inside: integers as they are, texts as their fingerprints."""
    result = np.array([one if isinstance(one, int) else PADDING for one in told], np.int64).reshape(-1)
    texts = [place for place, one in enumerate(told) if isinstance(one, str) and one]
    if texts:
        result[texts] = fingerprints.fingerprint([told[place] for place in texts])
    return result


def _as_list(values: typing.Any) -> list[typing.Any]:
    if values is None:
        return []
    return values if isinstance(values, list) else [values]


class _Items:
    """The table of items of shards: a row for each state in which one was served, padding first."""

    def __init__(self, feature_set: FeatureSet):
        self._features = shards.item_features(feature_set)
        self._dtype = shards.item_dtype(feature_set)
        self._known: dict[bytes, int] = {}
        self._rows: list[np.ndarray] = []
        self.places({"item_id": np.zeros(1, np.int64)}, 1)

    def places(self, states: Columns, count: int) -> np.ndarray:
        """Returns the places int32 [count] of states, given by feature; what they do not say is missing."""
        rows = np.zeros(count, self._dtype)
        for feature in self._features:
            missing = Column(feature.name, feature).missing
            rows[feature.name] = states.get(feature.name, missing)
        distinct, inverse = np.unique(rows.view(np.dtype((np.void, self._dtype.itemsize))), return_inverse=True)
        found = np.empty(len(distinct), np.int32)
        for number, state in enumerate(distinct.tolist()):
            place = self._known.setdefault(state, len(self._known))
            found[number] = place
        return self._kept(distinct, found)[inverse.reshape(-1)]

    def _kept(self, distinct: np.ndarray, found: np.ndarray) -> np.ndarray:
        have = sum(map(len, self._rows))
        new = np.flatnonzero(found >= have)
        self._rows.append(distinct[new[np.argsort(found[new])]].view(self._dtype))
        return found

    def table(self) -> np.ndarray:
        return np.concatenate(self._rows)
