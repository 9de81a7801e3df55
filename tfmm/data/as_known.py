"""Values as they were known at an instant: tables that have several rows of one id, each from its `updated_at` on.

Such rows are versions of one item or user. A version that is told to a unit is known from the end of it, as a behavior
is (`tfmm.data.times`). An impression knows the newest version that was known before it; what is served, embedded and
shown is the newest of all. A version without a time counts from the beginning.
"""

from __future__ import annotations

import pathlib
import typing

import numpy as np
import pyarrow as pa

from tfmm.data import declared, instants, schema, times
from tfmm.data.parts import Part

# What the join knows of a version, beside features by name; no declared name begins so.
EARLIEST, LATEST = "_updated_earliest", "_updated_latest"
SHOWN = 5  # rows that an error names
ONE_PER_TIME = f"must have one row per instant of `{schema.UPDATED_AT}`"


class Updates(typing.NamedTuple):
    """From when on n rows hold."""

    earliest: np.ndarray  # int64 [n] microseconds since 1970; the smallest int64: from the beginning
    latest: np.ndarray  # int64 [n]
    faulty: np.ndarray  # bool [n], True where the time is outside the years 1 to 9999: the row is left out


def see(
    data_dir: str | pathlib.Path,
    time_zone: str,
    tables: schema.Tables | None = None,
    names: typing.Collection[str] = tuple(times.VERSIONS),
) -> times.Seen:
    """Sees how exactly the versions of tables tell their times, by `times.VERSIONS`; of those with `updated_at`.

    Raises:
        ValueError: the column is neither a date nor a timestamp.
    """
    found = [
        name
        for table, name in times.VERSIONS.items()
        if table in names
        and table in (tables or schema.TABLES)
        and any(schema.UPDATED_AT in part.schema.names for part in schema.table_parts(data_dir, table, tables))
    ]
    return times.resolutions(data_dir, time_zone, found, tables)


def updates(part: Part, name: str, row_group: int, seen: times.Seen) -> Updates | None:
    """Returns from when on the rows of a row group hold; None where the table has no versions.

    Args:
        part, name, row_group: of the table.
        seen: as `see` gives it, perhaps with more.
    """
    key = times.VERSIONS.get(name, "")
    if key not in seen:
        return None
    if schema.UPDATED_AT not in part.schema.names:
        told = np.full(part.row_groups[row_group], instants.NULL)
        return Updates(told, told, np.zeros(len(told), bool))
    stored = times.read_stored(part, key, row_group)
    told = schema.microseconds(instants.to_timestamps(stored))
    faulty = (told != instants.NULL) & ((told < instants.FIRST_US) | (told > instants.LAST_US))
    return Updates(*times.bounds(stored, seen[key]), faulty)


def read_updates(
    data_dir: str | pathlib.Path, name: str, seen: times.Seen, tables: schema.Tables | None = None
) -> Updates | None:
    """Returns `updates` of a whole table, row by row as `schema.read_table` reads it."""
    if times.VERSIONS.get(name) not in seen:
        return None
    found = [Updates(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, bool))]
    for part in schema.table_parts(data_dir, name, tables):
        for group in range(len(part.row_groups)):
            found.append(typing.cast(Updates, updates(part, name, group, seen)))
    return Updates(*(np.concatenate(values) for values in zip(*found)))


def columns(found: Updates | None) -> dict[str, np.ndarray]:
    """Returns what the join needs to know of versions, by column; nothing of a table without them."""
    return {} if found is None else {EARLIEST: found.earliest, LATEST: found.latest}


def order(table: typing.Mapping[str, np.ndarray], key: str) -> np.ndarray:
    """Returns the int64 [m] order of a table by id, then by version, the oldest first: as `look_up` takes it.

    Args:
        table: `key` int64 [m]; of a table with versions, what `columns` gives too.
        key: the column of ids.
    """
    if LATEST not in table:
        return np.argsort(table[key], kind="stable")
    return np.lexsort((table[EARLIEST], table[LATEST], table[key]))


def find(ids: np.ndarray, sorted_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Looks ids of any shape up in a sorted array: rows int64, and bool, True where the id is there."""
    if not len(sorted_ids):
        return np.zeros(ids.shape, np.int64), np.zeros(ids.shape, bool)
    places = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    return places, sorted_ids[places] == ids


class Versions:
    """The rows of a table with versions, for any number of look-ups.

    Args:
        ids: int64 [m], in `order`.
        latest: int64 [m], from when on at the latest each row holds.

    Attributes:
        ids: int64 [k], each id once, ascending.
        starts: int64 [k], the first row of each.
        owners: int64 [m], of each row the place of its id in `ids`.
    """

    def __init__(self, ids: np.ndarray, latest: np.ndarray):
        is_first = np.ones(len(ids), bool)
        is_first[1:] = ids[1:] != ids[:-1]
        self.starts = np.flatnonzero(is_first)
        self.ids, self.owners = ids[self.starts], np.cumsum(is_first) - 1
        self._latest = np.ascontiguousarray(latest)
        self._ends = np.append(self.starts[1:], len(ids))[: len(self.starts)]
        self._num_halvings = int((self._ends - self.starts).max(initial=0)).bit_length()

    def newest(self, owners: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the newest rows strictly before instants, int64, and bool, True where there is one.

        By binary search among the versions of each id, of all at once.

        Args:
            owners: int64, places in `ids`, of any shape.
            at: int64 microseconds, of a shape that broadcasts to it.
        """
        if not len(self.ids):
            return np.zeros(owners.shape, np.int64), np.zeros(owners.shape, bool)
        starts = self.starts[owners]
        low, high = starts, self._ends[owners]  # of the first row that is not before; the search ends where they meet
        for _ in range(self._num_halvings):
            middle = np.minimum((low + high) >> 1, len(self._latest) - 1)
            is_before = (low < high) & (self._latest[middle] < at)
            low, high = np.where(is_before, middle + 1, low), np.where(is_before, high, np.minimum(middle, high))
        return low - 1, low > starts


def look_up(
    ids: np.ndarray,
    table: typing.Mapping[str, np.ndarray],
    key: str,
    at: np.ndarray,
    acts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the rows of a table that were known of ids at some instants: the newest versions strictly before.

    Args:
        ids: int64 [n].
        table: in `order`; `key` int64 [m], and LATEST of a table with versions. Without them, time says nothing.
        key: the column of ids.
        at: int64 [B] microseconds, the earliest instants at which impressions may have been.
        acts: int64 [B, L], places in `ids`, to look up as known at `at` of their row; None: n is B, row by row.
    Returns:
        Rows int64, and bool, True where a version was known: [B], or [B, L].

    >>> prices = {"item_id": np.array([7, 7, 9]), LATEST: np.array([10, 20, 10])}
    >>> rows, known = look_up(np.array([7, 7, 7, 9]), prices, "item_id", np.array([10, 20, 21, 11]))
    >>> rows[known].tolist(), known.tolist()
    ([0, 1, 2], [False, True, True, True])
    """
    owned = table[key]
    if LATEST not in table:
        places, known = find(ids, owned)
        return (places, known) if acts is None else (places[acts], known[acts])
    versions = Versions(owned, table[LATEST])
    owners, listed = find(ids, versions.ids)
    if acts is not None:
        owners, listed, at = owners[acts], listed[acts], at[:, None]
    places, known = versions.newest(owners, at)
    return np.where(known & listed, places, 0), known & listed


def doubled(ids: np.ndarray, found: Updates) -> np.ndarray:
    """Returns the rows, int64 ascending, that have id and instant of another row before them.

    Args:
        ids: int64 [n]; 0: none.
    """
    sorting = order({"id": ids, **columns(found)}, "id")
    ids, earliest, latest, faulty = (values[sorting] for values in (ids, *found))
    again = (ids[1:] == ids[:-1]) & (earliest[1:] == earliest[:-1]) & (latest[1:] == latest[:-1])
    return np.sort(sorting[1:][again & (ids[1:] != 0) & ~faulty[1:] & ~faulty[:-1]])


def verified(data_dir: str | pathlib.Path, time_zone: str, tables: schema.Tables | None = None) -> times.Seen:
    """Returns what `see` gives, of tables whose rows of one id, their versions, can be told apart.

    Raises:
        ValueError: rows of one id have one instant, or none is told; or `updated_at` is neither a date nor a timestamp.
    """
    seen = see(data_dir, time_zone, tables)
    for name, key in times.VERSIONS.items():
        if key in seen:
            _read(data_dir, name, seen, tables)
        elif name in (tables or schema.TABLES):
            require_unique(data_dir, name, tables)
    return seen


def repeated(ids: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows with the id of an earlier one, and the row of that id before each; missing ids, 0, are none.

    Args:
        ids: int64 [n].
        order: int64 [n], that sorts them and is stable.
    """
    is_again = (ids[order][1:] == ids[order][:-1]) & (ids[order][1:] != 0)
    return order[1:][is_again], order[:-1][is_again]


def require_unique(data_dir: str | pathlib.Path, name: str, tables: schema.Tables | None = None) -> None:
    """Raises ValueError where a table has several rows of one id: which of them counts is not told."""
    if not schema.has_table(data_dir, name, tables):
        return
    key = typing.cast(str, declared.unique_key(name))
    ids = schema.fingerprints(schema.read_table(data_dir, name, [key], tables)[key])
    again, _ = repeated(ids, np.argsort(ids, kind="stable"))
    if len(again):
        first = ", ".join(map(str, np.sort(again)[:SHOWN].tolist()))
        raise ValueError(
            f"`{name}.{key}` must be unique, so that one row counts. Received: {len(again):,} rows with the id of "
            f"another, first rows {first}. Keep one of each, or tell in `{schema.UPDATED_AT}` from when on each holds."
        )


def _read(
    data_dir: str | pathlib.Path, name: str, seen: times.Seen, tables: schema.Tables | None
) -> tuple[np.ndarray, Updates]:
    """Returns ids, int64 [n], and from when on the rows of a table with versions hold."""
    key = typing.cast(str, declared.unique_key(name))
    ids = schema.fingerprints(schema.read_table(data_dir, name, [key], tables)[key])
    found = typing.cast(Updates, read_updates(data_dir, name, seen, tables))
    if len(rows := doubled(ids, found)):
        first = ", ".join(map(str, rows[:SHOWN].tolist()))
        raise ValueError(
            f"`{name}.{key}` {ONE_PER_TIME}, so that one of them is the newest. Received: {len(rows):,} rows with id "
            f"and time of another, first rows {first}. Keep one of each, or write times more exactly."
        )
    return ids, found


def row_groups(
    data_dir: str | pathlib.Path,
    name: str,
    time_zone: str,
    tables: schema.Tables | None = None,
    before: int | None = None,
    with_faulty: bool = False,
) -> list[tuple[Part, int, np.ndarray | None]]:
    """Returns each row group of a table, with its rows that are the newest version of their id.

    Where the table has versions, ids and times of all its rows are held in memory, 50 bytes or so a row.

    Args:
        data_dir: the data folder.
        name: of the table.
        time_zone: of times that name none.
        tables: with the columns that a run declares; None: the documented ones.
        before: microseconds since 1970, the instant before which a version must have been known; None: any.
        with_faulty: also returns the rows whose time is a fault.
    Returns:
        (part, row group, rows): int64 [k] ascending, from 0 at the row group's first; None: all, as the table has no
        versions.
    Raises:
        ValueError: rows of one id have one instant.
    """
    groups = [(p, g, count) for p in schema.table_parts(data_dir, name, tables) for g, count in enumerate(p.row_groups)]
    seen = see(data_dir, time_zone, tables, [name])
    if times.VERSIONS.get(name) not in seen:
        return [(part, group, None) for part, group, _ in groups]
    ids, found = _read(data_dir, name, seen, tables)
    usable = np.flatnonzero(~found.faulty & (True if before is None else found.latest < before))
    sorting = usable[order({"id": ids[usable], EARLIEST: found.earliest[usable], LATEST: found.latest[usable]}, "id")]
    is_last = np.ones(len(sorting), bool)
    is_last[:-1] = (ids[sorting][1:] != ids[sorting][:-1]) | (ids[sorting][1:] == 0)  # rows without an id stay
    kept = found.faulty & with_faulty
    kept[sorting[is_last]] = True
    starts = np.cumsum([0, *(count for _, _, count in groups)])
    return [
        (part, group, np.flatnonzero(kept[start : start + count]))
        for (part, group, count), start in zip(groups, starts.tolist())
    ]


def read_table(
    data_dir: str | pathlib.Path,
    name: str,
    time_zone: str,
    columns: typing.Sequence[str] | None = None,
    tables: schema.Tables | None = None,
    before: int | None = None,
) -> pa.Table:
    """Reads the newest version of each id, see `row_groups`; a table without versions as `schema.read_table` does."""
    groups = row_groups(data_dir, name, time_zone, tables, before) if schema.has_table(data_dir, name, tables) else []
    chosen = [(part, group, rows) for part, group, rows in groups if rows is not None]
    if not chosen:
        return schema.read_table(data_dir, name, columns, tables)
    return schema.concatenate(
        [schema.read_part(part, name, columns, group, tables).take(pa.array(rows)) for part, group, rows in chosen]
    )
