"""What was known when: how exactly a table tells its times, and the instants between which a row happened.

A time that is told to a unit, be it a day, stands for all of that unit. A behavior is known from its end on, an
impression happens at its start: so a history holds what is over by the time that the impression can have begun.
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import typing

import numpy as np
import pyarrow as pa

from tfmm.data import instants, schema
from tfmm.data.parts import Part

UNITS = ("microsecond", "millisecond", "second", "minute", "hour", "day")
SIZES_US = np.array([1, 1_000, 1_000_000, 60_000_000, 3_600_000_000, instants.DAY_US])
SECOND, HOUR, DAY = 2, 4, 5
VERSIONS = {table: f"{table}.{schema.UPDATED_AT}" for table in ("items", "users")}  # what tells the age of their rows
COLUMNS = {"impressions": "timestamp", "behaviors": "timestamp", "searches": "timestamp", "items": "created_at"}
COLUMNS |= dict.fromkeys(VERSIONS.values(), schema.UPDATED_AT)
_CHANCE = 10  # times as many whole units as chance gives are no chance
_FEWEST = 10  # rows
_SUMMER_TIME_US, _ZONES_APART_US = 3_600_000_000, 900_000_000  # at most, at least
_LEAST_STEP_US = 10_000_000  # of times that stand at every so many units
_DISTINCT = 16  # times that are kept, which tell a rule from chance
_RARE = 10_000  # one in so many is no chance
_DAYS_OF_MONTH = 30
_WORDS_OF_MONTHS = {1: "month", 3: "quarter", 12: "year"}


@dataclasses.dataclass(frozen=True)
class Resolution:
    """How exactly one column tells times, seen over all files of its table."""

    time_zone: str  # of dates, and of timestamps without a zone
    unit: int = 0  # place in UNITS: all values are whole ones
    begins_us: tuple[int, ...] = (0,)  # where in a day or hour those begin; two: in winter and in summer
    coarser: tuple[int, ...] = ()  # units of which the rows hold too many whole ones for chance
    step_us: int = 0  # from one time to the next at least, where that is more than the unit: a quarter of an hour
    months: int = 0  # the same, where all days are the first of a month

    @property
    def told(self) -> str:
        """To what times are told, in a word."""
        if self.months:
            return _WORDS_OF_MONTHS.get(self.months, f"{self.months} months")
        if not self.step_us:
            return UNITS[self.unit]
        unit = int(np.flatnonzero(self.step_us % SIZES_US == 0)[-1])
        count = self.step_us // int(SIZES_US[unit])
        if (unit, count) == (DAY, 7):
            return "week"
        return UNITS[unit] if count == 1 else f"{count:,} {UNITS[unit]}s"


Seen = typing.Mapping[str, Resolution]  # by table, or by `VERSIONS` of one


def table_of(name: str) -> str:
    """Returns the table whose column of times has a name in `COLUMNS`."""
    return name.partition(".")[0]


def resolutions(
    data_dir: str | pathlib.Path,
    time_zone: str = "UTC",
    names: typing.Iterable[str] = ("impressions", "behaviors"),
    tables: schema.Tables | None = None,
) -> dict[str, Resolution]:
    """Sees how exactly each of these tables tells times; those that the folder lacks are left out.

    Whole days, hours, minutes, seconds or milliseconds are told from the values of the whole table, on the clocks
    of the zone that the column's type names, else of `time_zone`. So are days and hours of an untold zone, which
    all begin at one time other than midnight, or two an hour apart; rows of a coarser unit among finer ones, by
    there being 10 times as many as by chance; and times that stand at every so many units alone, such as quarters of
    an hour, weeks or months.

    Args:
        data_dir: the data folder.
        time_zone: IANA name.
        names: in `COLUMNS`.
        tables: with the columns that a run declares; None: the documented ones.
    Raises:
        ValueError: a column of times is absent, or neither a date nor a timestamp.
    """
    there = [name for name in names if schema.has_table(data_dir, table_of(name), tables)]
    return {name: _resolution(data_dir, name, time_zone, tables) for name in there}


def _resolution(
    data_dir: str | pathlib.Path, name: str, time_zone: str, tables: schema.Tables | None
) -> Resolution:
    tally = _Tally()
    for times in _stored(data_dir, name, tables):
        zone, is_instant = _clocks(times.type, time_zone)
        values = schema.microseconds(instants.to_timestamps(times.drop_null()))
        walls = values[(values >= instants.FIRST_US) & (values <= instants.LAST_US)]  # others are faults
        tally.add(walls + instants.offsets(zone, walls) if is_instant else walls)
    return tally.resolution(time_zone, with_steps=name not in VERSIONS.values())


class _Tally:
    """Counts whole units, and keeps where in each unit the times stand while those are few places."""

    def __init__(self) -> None:
        self.whole = np.zeros(len(UNITS), np.int64)  # rows that are whole ones of each unit
        self.begins: dict[int, set[int]] = {HOUR: set(), DAY: set()}  # of the units that another zone's may be
        self.distinct: set[int] = set()  # times, at least `_DISTINCT` where there are as many
        self.grid_us = self.grid_months = 0  # what all times are whole ones of, counted from the first; 0: of one time
        self.are_months = True  # whether all are the first instant of a month
        self.first: int | None = None

    def add(self, walls: np.ndarray) -> None:
        """Adds times, int64 [n] microseconds, as clocks showed them."""
        if not len(walls):
            return
        if len(self.distinct) < _DISTINCT:
            self.distinct |= set(np.unique(walls)[:_DISTINCT].tolist())
        self._add_to_grid(walls)
        for unit in list(self.begins):
            places = walls % SIZES_US[unit]
            first, last = int(places.min()), int(places.max())
            self.begins[unit] |= {first, last}
            if not (_are_one_begin(self.begins[unit], unit) and ((places == first) | (places == last)).all()):
                del self.begins[unit]
        self.whole[0] += len(walls)
        for unit in range(1, len(UNITS)):
            walls = walls[walls % SIZES_US[unit] == 0]
            self.whole[unit] += len(walls)

    def _add_to_grid(self, walls: np.ndarray) -> None:
        """Looks at how far times are apart, as long as that may be a step."""
        self.first = int(walls[0]) if self.first is None else self.first
        if self.grid_us == 0 or self.grid_us >= _LEAST_STEP_US:
            self.grid_us = math.gcd(self.grid_us, int(np.gcd.reduce(walls - self.first)))
        if self.are_months:
            months = walls.astype("datetime64[us]").astype("datetime64[M]")
            self.are_months = bool((months.astype("datetime64[us]").astype(np.int64) == walls).all())
            first = np.datetime64(self.first, "us").astype("datetime64[M]")
            self.grid_months = math.gcd(self.grid_months, int(np.gcd.reduce((months - first).astype(np.int64))))

    def _is_rare(self, parts: int, first: int) -> bool:
        """Whether chance hardly gives these times: each but for the first, which make the rule, is 1 in so many."""
        return parts ** max(0, len(self.distinct) - first) >= _RARE

    def _steps(self, unit: int) -> tuple[int, int]:
        """Returns `step_us` and `months` of times that are whole ones of a unit."""
        counts = (count for count in (12, 6, 3, 2, 1) if self.are_months and self.grid_months % count == 0)
        if months := next((count for count in counts if self._is_rare(count * _DAYS_OF_MONTH, 1)), 0):
            return 0, months
        size = int(SIZES_US[unit])
        is_step = self.grid_us >= _LEAST_STEP_US and self.grid_us > size and self._is_rare(self.grid_us // size, 2)
        return self.grid_us if is_step else 0, 0

    def resolution(self, time_zone: str, with_steps: bool = True) -> Resolution:
        """Returns what the times added show; of none, nothing coarser than their type.

        Args:
            time_zone: IANA name.
            with_steps: whether times at every so many units alone are of the whole step. Not those from when on a row
                holds: prices of the first of a month hold from that day on.
        """
        if not self.whole[0]:
            return Resolution(time_zone)
        unit = int(np.flatnonzero(self.whole == self.whole[0])[-1])
        for shifted, begins in reversed(self.begins.items()):
            if shifted > unit and len(self.distinct) >= 2 + len(begins):  # fewer may agree by chance
                is_over_midnight = max(begins) - min(begins) > _SUMMER_TIME_US  # 23:00 and 00:00
                return Resolution(time_zone, shifted, tuple(sorted(begins, reverse=is_over_midnight)))
        (step_us, months), sizes = self._steps(unit) if with_steps else (0, 0), SIZES_US.copy()
        sizes[unit] = step_us or sizes[unit]
        by_chance = self.whole[:-1] * sizes[:-1] / SIZES_US[1:]
        many = (self.whole[1:] > _CHANCE * by_chance) & (self.whole[1:] >= _FEWEST)
        coarser = tuple(u for u in range(unit + 1, len(UNITS)) if many[u - 1])
        return Resolution(time_zone, unit, coarser=coarser, step_us=step_us, months=months)


def _are_one_begin(places: set[int], unit: int) -> bool:
    """Whether hours or days of some zone begin at all of these places: days at two, where it has summer time."""
    if any(place % _ZONES_APART_US for place in places):
        return False
    apart = max(places) - min(places)
    is_pair = len(places) == 2 and min(apart, instants.DAY_US - apart) <= _SUMMER_TIME_US
    return len(places) == 1 or (unit == DAY and is_pair)


def read_stored(part: Part, name: str, row_group: int, column: str = "") -> pa.ChunkedArray:
    """Reads a column of times of a row group as it is stored, in the type that says how exact it is; "": COLUMNS'."""
    column = column or COLUMNS[name]
    times = part.read([column], row_group)[column]
    return times.cast(times.type.value_type) if pa.types.is_dictionary(times.type) else times


def _stored(
    data_dir: str | pathlib.Path, name: str, tables: schema.Tables | None = None
) -> typing.Iterator[pa.ChunkedArray]:
    """Yields the time column of each row group, as it is stored; a part may lack one that is optional."""
    table, column = table_of(name), COLUMNS[name]
    for part in schema.table_parts(data_dir, table, tables):
        kinds = part.schema
        wanted = [column] if column in kinds.names else []
        schema.conform(kinds.empty_table().select(wanted), table, [column], tables)  # refuses what is no time
        for group in range(len(part.row_groups) if wanted else 0):
            yield read_stored(part, name, group)


def _clocks(kind: pa.DataType, time_zone: str) -> tuple[str, bool]:
    """Returns the zone on whose clocks a column's units are whole, and whether it holds instants.

    UTC is how instants are stored, and says nothing of the clocks that were read.
    """
    zone = instants.zone_of(kind)
    is_instant = pa.types.is_timestamp(kind) and kind.tz is not None
    return (zone if zone not in (None, "UTC", "Z") else time_zone), is_instant


def _unit_of(kind: pa.DataType) -> int:
    if pa.types.is_date(kind):
        return DAY
    return {"s": SECOND, "ms": 1}.get(kind.unit, 0) if pa.types.is_timestamp(kind) else 0


def bounds(times: pa.ChunkedArray, seen: Resolution) -> tuple[np.ndarray, np.ndarray]:
    """Returns the earliest and the latest instant at which each row may have happened.

    Args:
        times: [n] of a table's time column, as it is stored.
        seen: of that table.
    Returns:
        int64 [n] each, microseconds since 1970; the smallest int64 where the time is null.
    """
    zone, is_instant = _clocks(times.type, seen.time_zone)
    stored = schema.microseconds(instants.to_timestamps(times))
    values = np.clip(stored, instants.FIRST_US, instants.LAST_US)
    walls = values + instants.offsets(zone, values) if is_instant else values
    units = np.full(len(walls), max(seen.unit, _unit_of(times.type)))
    for unit in seen.coarser:
        units[(walls % SIZES_US[unit] == 0) & (units < unit)] = unit
    ends, are_seen = walls + SIZES_US[units] - 1, units == seen.unit
    if seen.begins_us != (0,):
        ends += np.where(are_seen, (seen.begins_us[-1] - walls) % SIZES_US[seen.unit], 0)
    if seen.step_us:
        ends = np.where(are_seen, walls + seen.step_us - 1, ends)
    if seen.months:
        later = walls.astype("datetime64[us]").astype("datetime64[M]") + np.timedelta64(seen.months, "M")
        ends = np.where(are_seen, later.astype("datetime64[us]").astype(np.int64) - 1, ends)
    latest = instants.readings(zone, ends)[1]
    if is_instant:
        earliest = values
        latest = np.where(units < HOUR, values + (ends - walls), latest)
    else:
        earliest = instants.readings(zone, walls)[0].copy()
        days = np.flatnonzero(units == DAY)  # begin where the day before ends, even where no clock showed midnight
        earliest[days] = instants.readings(zone, walls[days] - 1)[1] + 1
    is_null = stored == instants.NULL
    return np.where(is_null, stored, earliest), np.where(is_null, stored, latest)


def starts(part: Part, name: str, row_group: int, time_zone: str) -> np.ndarray:
    """Returns the earliest instants of a column in COLUMNS, int64 [n] microseconds; the smallest int64 where null."""
    if COLUMNS[name] not in part.schema.names:
        return np.full(part.row_groups[row_group], instants.NULL)
    return bounds(read_stored(part, name, row_group), Resolution(time_zone))[0]


def read_bounds(
    data_dir: str | pathlib.Path, name: str, seen: Resolution, tables: schema.Tables | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `bounds` of a whole table, row by row as `schema.read_table` reads it."""
    nothing = np.zeros(0, np.int64)
    parts = [(nothing, nothing), *(bounds(times, seen) for times in _stored(data_dir, name, tables))]
    earliest, latest = (np.concatenate(sides) for sides in zip(*parts))
    return earliest, latest


def notes(seen: typing.Mapping[str, Resolution]) -> tuple[str, ...]:
    """Says which tables tell times less exactly than to the second, and what follows from it.

    The units of behaviors and impressions are also told where they differ.
    """
    logs = {name: seen[name].unit for name in ("impressions", "behaviors") if name in seen}
    differ = len(set(logs.values())) > 1
    return tuple(
        _note(name, found, "behaviors" in seen)
        for name, found in seen.items()
        if found.unit > SECOND or found.coarser or found.step_us or (differ and name in logs)
    )


def _note(name: str, seen: Resolution, has_behaviors: bool) -> str:
    column, unit = f"{table_of(name)}.{COLUMNS[name]}", seen.told
    text = f"{column} is known to the {unit}{_consequence(name, unit, has_behaviors)}."
    if seen.begins_us != (0,):
        begins = " and ".join(str(np.datetime64(begin, "us"))[11:19] for begin in seen.begins_us)
        text += f" Each {unit} begins at {begins}, as in another zone than {seen.time_zone}: `data.time_zone` names it."
    elif seen.unit == DAY:
        text += f" Days are those of {seen.time_zone} (`data.time_zone`), where the column's type names no zone."
    for coarser in map(UNITS.__getitem__, seen.coarser):
        text += (
            f" More rows than by chance stand at a whole {coarser}: these are known to the {coarser}"
            f"{_consequence(name, coarser, has_behaviors)}."
        )
    return text


def _consequence(name: str, unit: str, has_behaviors: bool) -> str:
    counts = "from the next midnight" if unit == "day" else f"from the end of its {unit}"
    if name == "behaviors":
        return f": a behavior counts {counts}"
    if name in VERSIONS.values():
        return f": a row counts {counts}"
    if name == "impressions":
        return f": an impression sees what was known when its {unit} began" + (
            "" if has_behaviors else f", its click counts {counts}"
        )
    return ""
