"""What is no fault of any row, but makes one doubt the times of a data folder: said in notes, and stops nothing."""

from __future__ import annotations

import functools
import pathlib
import typing

import numpy as np
import pyarrow.compute as pc

from tfmm.data import as_known, declared, instants, schema, times
from tfmm.data import behaviors as behaviors_lib

FIRST_YEAR_US = 788_918_400_000_000  # 1995: there were no logs of shops before
SHOWN = 5  # rows that a note names
_NEVER = np.iinfo(np.int64).max
_SLICE = 1 << 20  # rows that are looked up at a time


def notes(
    data_dir: str | pathlib.Path,
    seen: typing.Mapping[str, times.Resolution],
    tables: schema.Tables,
    columns: typing.Mapping[str, typing.Collection[str]],
) -> tuple[str, ...]:
    """Says which rows have times that can hardly be meant, and where impressions contradict each other.

    Args:
        data_dir: the data folder.
        seen: of the tables with times.
        tables: with the columns that a run declares.
        columns: by table, those that can be read.
    """
    found: list[str] = []
    bounds = {name: times.read_bounds(data_dir, name, one, tables) for name, one in seen.items()}
    for name, (earliest, _) in bounds.items():
        found += _odd_years(f"{times.table_of(name)}.{times.COLUMNS[name]}", earliest)
    if "impressions" not in bounds or not {"user_id", "item_id"} <= set(columns["impressions"]):
        return tuple(found)

    def read(name: str, column: str) -> typing.Any:
        return schema.read_table(data_dir, name, [column], tables)[column]

    def ids(name: str, column: str) -> np.ndarray:
        return schema.fingerprints(read(name, column))

    shown = functools.cache(functools.partial(ids, "impressions"))  # several notes are about the same
    earliest, latest = bounds["impressions"]
    if seen["impressions"].unit <= times.SECOND and not seen["impressions"].step_us:
        found += _doubled(shown("user_id"), shown("item_id"), earliest)
    if "items" in bounds and "item_id" in columns["items"]:
        found += _before_creation(shown("item_id"), latest, ids("items", "item_id"), bounds["items"][0])
    if "behaviors" in bounds and "user_id" in columns["behaviors"]:
        found += _without_history(shown("user_id"), earliest, ids("behaviors", "user_id"), bounds["behaviors"][1])
    if "split" in columns["impressions"]:
        found += _mixed_splits(read("impressions", "split"), earliest)
    for table in times.VERSIONS:
        key = typing.cast(str, declared.unique_key(table))
        updates = as_known.read_updates(data_dir, table, seen, tables)
        if updates is not None and key in columns[table]:
            found += _without_time(table, updates)
            found += _not_yet_known(table, shown(key), earliest, ids(table, key), updates)
    return tuple(found)


def _odd_years(place: str, earliest: np.ndarray) -> typing.Iterator[str]:
    is_known = (earliest > instants.FIRST_US) & (earliest < instants.LAST_US)  # others are faults
    for odd, text in (
        (earliest < FIRST_YEAR_US, "before 1995: is 0 written for a time that is missing, or another unit"),
        (earliest > instants.newest_us(), "in the future: is another unit, or a date for `never`, written"),
    ):
        if count := int((odd & is_known).sum()):
            yield f"{place} lies {text}? ({count:,} of {_rows(odd & is_known)})."


def _doubled(users: np.ndarray, items: np.ndarray, shown_at: np.ndarray) -> typing.Iterator[str]:
    """Compares 64-bit hashes of user, item and time."""
    keys = behaviors_lib.tie_break(users, items, shown_at)
    order = np.argsort(keys, kind="stable")
    again = np.zeros(len(keys), bool)
    again[order[1:]] = keys[order[1:]] == keys[order[:-1]]
    again &= (shown_at != instants.NULL) & (users != 0) & (items != 0)
    if count := int(again.sum()):
        yield (
            f"impressions repeat user, item and time of an earlier row: were they logged twice? Each counts. "
            f"({count:,} of {_rows(again)})."
        )


def _before_creation(
    shown: np.ndarray, latest: np.ndarray, items: np.ndarray, created_at: np.ndarray
) -> typing.Iterator[str]:
    if not len(items) or len(items) != len(created_at):  # files without the column
        return
    order = np.argsort(items, kind="stable")
    places = order[np.minimum(np.searchsorted(items[order], shown), len(items) - 1)]
    known = (items[places] == shown) & (shown != 0) & (latest != instants.NULL)
    early = known & (created_at[places] != instants.NULL) & (latest < created_at[places])
    if count := int(early.sum()):
        yield (
            f"impressions are earlier than `created_at` of their items: is it when these were last changed? "
            f"({count:,} of {_rows(early)})."
        )


def _without_history(
    users: np.ndarray, shown_at: np.ndarray, acting: np.ndarray, known_at: np.ndarray
) -> typing.Iterator[str]:
    """Some users are new in any shop; where most impressions have no history, two tables hardly speak of the same."""
    if not ((known_at != instants.NULL) & (acting != 0)).any():
        return
    usable = (shown_at != instants.NULL) & (users != 0)
    first = _first_known(users, acting, known_at)
    without = usable & (first >= shown_at)  # histories are strictly earlier
    count, strangers = int(without.sum()), int((usable & (first == _NEVER)).sum())
    if 2 * count > int(usable.sum()):
        yield (
            f"impressions have no behavior of their user before them, so their histories are empty; of {strangers:,} "
            f"the user has none at all. Do both tables have the same `user_id`, and do behaviors begin before "
            f"impressions? ({count:,} of {_rows(without)})."
        )


def _first_known(users: np.ndarray, acting: np.ndarray, known_at: np.ndarray) -> np.ndarray:
    """Returns when each user's first behavior is known, int64 [len(users)], a row per row; `_NEVER` of others."""
    owners = np.unique(users)
    first = np.full(len(owners), _NEVER)
    for start in range(0, len(acting) if len(owners) else 0, _SLICE):
        own, at = acting[start : start + _SLICE], known_at[start : start + _SLICE]
        places = np.minimum(np.searchsorted(owners, own), len(owners) - 1)
        are_known = (owners[places] == own) & (at != instants.NULL)
        np.minimum.at(first, places[are_known], at[are_known])
    return first[np.searchsorted(owners, users)]


def _without_time(table: str, updates: as_known.Updates) -> typing.Iterator[str]:
    is_null = updates.latest == instants.NULL
    if 0 < (count := int(is_null.sum())) < len(is_null):
        place = f"{table}.{schema.UPDATED_AT}"
        yield f"{place} is null: such rows count as known from the beginning ({count:,} of {_rows(is_null)})."


def _not_yet_known(
    table: str, shown: np.ndarray, earliest: np.ndarray, owners: np.ndarray, updates: as_known.Updates
) -> typing.Iterator[str]:
    versions = {name: values[~updates.faulty] for name, values in {"id": owners, **as_known.columns(updates)}.items()}
    order = as_known.order(versions, "id")
    versions = {name: values[order] for name, values in versions.items()}
    _, known = as_known.look_up(shown, versions, "id", earliest)
    unknown = as_known.find(shown, versions["id"])[1] & ~known & (shown != 0) & (earliest != instants.NULL)
    if count := int(unknown.sum()):
        yield (
            f"impressions are not later than any `{schema.UPDATED_AT}` of their {table}, so features of these are "
            f"missing there: are the rows of before gone, or is it no time of change? ({count:,} of {_rows(unknown)})."
        )


def _mixed_splits(splits: typing.Any, shown_at: np.ndarray) -> typing.Iterator[str]:
    is_known = shown_at != instants.NULL
    in_train, in_eval = (
        np.asarray(pc.fill_null(pc.equal(splits, split), False)).astype(bool) & is_known for split in schema.SPLITS
    )
    if not in_eval.any() or not in_train.any():
        return
    first = int(shown_at[in_eval].min())
    late = in_train & (shown_at >= first)
    if count := int(late.sum()):
        yield (
            f"impressions.split is no cut in time: {count:,} of {int(in_train.sum()):,} train rows are not earlier "
            f"than the first eval row ({np.datetime64(first, 'us')}). Encoders learn from pairs before that time, "
            "and the model is judged on times that it has seen."
        )


def _rows(chosen: np.ndarray) -> str:
    places = np.flatnonzero(chosen)[:SHOWN].tolist()
    return f"{len(chosen):,} rows, first rows {', '.join(map(str, places))}"
