"""Stored times as instants: every Arrow type as microseconds since 1970, and what the clocks of a zone showed."""

from __future__ import annotations

import datetime
import functools
import re
import time
import zoneinfo

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

DAY_US = 86_400_000_000
AHEAD_US = DAY_US  # of a clock that is ahead, or of another zone: what is later than that from now has not happened
FIRST_US, LAST_US = -62_135_596_800_000_000, 253_402_300_799_999_999  # of the years 1 to 9999
NULL = np.iinfo(np.int64).min
_LIMIT = np.iinfo(np.int64).max
_UNIT_US = {"s": 1_000_000, "ms": 1_000, "us": 1}
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)
_WAY_OUT = "Write it as a date or a timestamp, in the unit that its values have: `column.cast(pa.timestamp('ms'))`"


def to_timestamps(times: pa.ChunkedArray) -> pa.ChunkedArray:
    """Reads dates and timestamps of any unit as timestamp[us]: a zone is left to UTC, nanoseconds are rounded down.

    A value that microseconds cannot hold comes as the nearest that they can, far outside the years 1 to 9999.

    Raises:
        pa.ArrowInvalid: the type is neither.

    >>> to_timestamps(pa.chunked_array([pa.array([1, None], pa.date32())])).cast(pa.int64()).to_pylist()
    [86400000000, None]
    """
    kind = times.type
    if pa.types.is_timestamp(kind) and kind.unit == "us":
        return times.cast(pa.timestamp("us"))
    if pa.types.is_null(kind):
        return times.cast(pa.timestamp("us"))
    if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        raise pa.ArrowInvalid(f"{kind} is no timestamp type. {_WAY_OUT}")
    counts = times.cast(pa.int32()) if pa.types.is_date32(kind) else times
    values = pc.fill_null(counts.cast(pa.int64()), 0).to_numpy()
    if pa.types.is_date(kind):
        values, unit_us = values // (1 if pa.types.is_date32(kind) else DAY_US // 1_000), DAY_US
    elif kind.unit == "ns":
        values, unit_us = values // 1_000, 1
    else:
        unit_us = _UNIT_US[kind.unit]
    values = np.clip(values, -(_LIMIT // unit_us), _LIMIT // unit_us) * unit_us
    nulls = np.asarray(times.is_null().to_numpy(), bool)
    return pa.chunked_array([pa.array(values, pa.int64(), mask=nulls).cast(pa.timestamp("us"))])


def texts(timestamps: pa.ChunkedArray) -> list[str | None]:
    """Writes a timestamp[us] column in ISO 8601, whatever the year.

    >>> texts(pa.chunked_array([pa.array([2**62, None], pa.timestamp("us"))]))
    ['148108-07-06T14:00:27.387904', None]
    """
    values = pc.fill_null(timestamps.cast(pa.int64()), NULL).to_numpy()
    return [None if value == NULL else str(np.datetime64(value, "us")) for value in values.tolist()]


def newest_us() -> int:
    """Returns the newest instant that a row which has happened may be dated, in microseconds since 1970."""
    return time.time_ns() // 1000 + AHEAD_US


def zone_of(kind: pa.DataType) -> str | None:
    """Returns the time zone that a column's type names, where one can be looked up; else None."""
    name = kind.tz if pa.types.is_timestamp(kind) else None
    return name if name and _zone(name) else None


@functools.lru_cache
def _zone(name: str) -> datetime.tzinfo | None:
    if name in ("UTC", "Z"):
        return datetime.timezone.utc
    try:
        if match := re.fullmatch(r"([+-])(\d\d):?(\d\d)", name):
            sign = -1 if match[1] == "-" else 1
            return datetime.timezone(sign * datetime.timedelta(hours=int(match[2]), minutes=int(match[3])))
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def offsets(zone: str, instants: np.ndarray) -> np.ndarray:
    """Returns int64 [n]: by how many microseconds the clocks of a zone are ahead of UTC.

    Args:
        zone: IANA name.
        instants: int64 [n] microseconds since 1970; years outside 1 to 9999 count as the nearest one.
    """
    if zone == "UTC" or not len(instants):
        return np.zeros(len(instants), np.int64)
    days = np.clip(instants, FIRST_US + 2 * DAY_US, LAST_US - 2 * DAY_US) // DAY_US
    first = days.min()
    is_seen = np.zeros(days.max() - first + 1, bool)
    is_seen[days - first] = True
    seen = (first + np.flatnonzero(is_seen)).tolist()
    change, before, after = np.array([_of_day(zone, day) for day in seen], np.int64).T
    places = (np.cumsum(is_seen) - 1)[days - first]
    return np.where(instants < change[places], before[places], after[places])


@functools.lru_cache(maxsize=1_000_000)
def _of_day(zone: str, day: int) -> tuple[int, int, int]:
    """Returns the instant of a UTC day from which another offset holds, and the offsets before and from it."""

    def ahead(second: int) -> datetime.timedelta:
        found = (_EPOCH + datetime.timedelta(seconds=second)).astimezone(_zone(zone)).utcoffset()
        return found or datetime.timedelta(0)

    low, high = day * 86_400, (day + 1) * 86_400
    before, after = ahead(low), ahead(high)
    while before != after and high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if ahead(middle) == after else (middle, high)
    us = datetime.timedelta(microseconds=1)
    return high * 1_000_000, before // us, after // us


def readings(zone: str, walls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the earliest and the latest instant, int64 [n] each, at which clocks of a zone may have shown a time.

    They differ where clocks are set back, and show an hour twice; and where they are set forward, for times that no
    clock showed: one that was set late, or early, did.

    Args:
        zone: IANA name.
        walls: int64 [n], what the clocks showed, counted in microseconds as though it were UTC.
    """
    if zone == "UTC":
        return walls, walls
    before, after = (walls - offsets(zone, walls + shift) for shift in (-DAY_US, DAY_US))
    earliest, latest = before.copy(), before
    near = np.flatnonzero(before != after)  # a change of the clocks
    found = np.stack([before[near], after[near]])
    shown = np.stack([reading + offsets(zone, reading) == walls[near] for reading in found])
    shown |= ~shown.any(axis=0)
    earliest[near] = np.where(shown, found, _LIMIT).min(axis=0)
    latest[near] = np.where(shown, found, NULL).max(axis=0)
    return earliest, latest
