"""The span of a run: the impressions that its model has not seen, and what the data says of those before.

A model carries one watermark, the last instant of which it was trained on all rows. A span begins after the watermark
of the model that goes on, so that what comes twice is trained once; a model from scratch has all rows for its span.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import pathlib
import tempfile
import typing

import numpy as np
import pyarrow.compute as pc

from tfmm.config import DataConfig
from tfmm.data import examples, instants, order_statistics, reading, records, rules, schema, times
from tfmm.data.parts import Part
from tfmm.features import FeatureSet

FILE = "span.json"  # beside examples
GAP_HOURS = 24  # without an impression: what is said
_HOUR_US = 3_600_000_000
Columns = dict[str, np.ndarray]
Pieces = typing.Callable[[], typing.Iterable[tuple[np.ndarray, np.ndarray | None]]]


class EmptySpan(ValueError):
    """Nothing, or too little, has come after the watermark: there is no new model to be trained."""


@dataclasses.dataclass(frozen=True)
class Before:
    """What is known before a training: what a model that goes on has seen, and what is held out.

    Attributes:
        watermark: microseconds since 1970, through which it was trained; `instants.NULL`: a training from scratch.
        newest: microseconds since 1970, of the newest impression that it was trained on or judged by.
        seen: how many impressions of each hour the data had through the watermark, by hours since 1970.
        heldout_rows, heldout_s: of the span, its newest so many impressions or seconds are held out; 0 and 0: the share
            that `data.eval_fraction` says.
        served_through: of a training from scratch, through when the model was trained that it will be held against:
            only later rows judge both alike, so only these are held out. `instants.NULL`: there is no such model.
    """

    watermark: int = instants.NULL
    newest: int = instants.NULL
    seen: typing.Mapping[str, int] = dataclasses.field(default_factory=dict)
    heldout_rows: int = 0
    heldout_s: int = 0
    served_through: int = instants.NULL

    @property
    def goes_on(self) -> bool:
        """Whether a model goes on; else one is trained from scratch."""
        return self.watermark != instants.NULL


FROM_SCRATCH = Before()


@dataclasses.dataclass(frozen=True)
class Span:
    """What came after a watermark, as far as it was to be trained on.

    Attributes:
        after: the watermark, in microseconds; None: from the beginning.
        rows: impressions of the span, held-out ones with them.
        late: impressions that came since, and are not later than the watermark: they are not trained on.
        gaps: hours since 1970, from and to: at least `GAP_HOURS` between them without an impression.
        seen: see `Before`, through this span's training rows.
        newest: microseconds since 1970, of the newest impression of the data, be it left out.
    """

    after: int | None
    rows: int
    late: int
    gaps: tuple[tuple[int, int], ...]
    seen: dict[str, int]
    newest: int

    def lines(self) -> list[str]:
        """Returns what must be said."""
        if self.after is None:
            return []
        said = [f"span: {self.rows:,} impressions after {moment(self.after)}"]
        said += [f"span: no impression from {_hour(first + 1)} to {_hour(last)}" for first, last in self.gaps]
        if self.late:
            said.append(
                f"span: {self.late:,} impressions came late, not after {moment(self.after)}: they are not trained on"
            )
        return said

    def write(self, folder: str | pathlib.Path) -> None:
        (pathlib.Path(folder) / FILE).write_text(json.dumps(dataclasses.asdict(self)) + "\n")


def read(folder: str | pathlib.Path) -> Span:
    """Returns what `Span.write` wrote."""
    values = json.loads((pathlib.Path(folder) / FILE).read_text())
    return Span(**{**values, "gaps": tuple(map(tuple, values["gaps"]))})


class Tally:
    """Counts a data folder's impressions by hour, on both sides of a watermark; what has not happened is none.

    Args:
        before: says the watermark.
        newest_us: microseconds since 1970, after which no impression has happened; None: `instants.newest_us`.
        has_split: whether the impressions say themselves which are held out.
    """

    def __init__(self, before: Before, newest_us: int | None = None, has_split: bool = False) -> None:
        self.before, self.newest, self._ahead, self.has_split = before, instants.NULL, 0, has_split
        self._last_trained, self._first_held = instants.NULL, instants.LAST_US  # as the splits of all rows say
        self.newest_us = instants.newest_us() if newest_us is None else newest_us
        self._old: collections.Counter[int] = collections.Counter()
        self._new: collections.Counter[int] = collections.Counter()
        self._held: collections.Counter[int] = collections.Counter()

    def read(self, part: Part, group: int, seen: times.Resolution) -> tuple[np.ndarray, np.ndarray]:
        """Reads and counts a row group; returns its instants int64 [n], and which are of the span."""
        stored = times.read_stored(part, "impressions", group)
        ahead = rules.later_than(self.newest_us)(stored)
        at = np.where(ahead, instants.NULL, times.bounds(stored, seen)[0])
        self._ahead += int(ahead.sum())
        new = self.add(at)
        if self.has_split:
            split = schema.read_part(part, "impressions", ["split"], group)["split"]
            told = at != instants.NULL
            trained, held = (told & pc.equal(split, name).fill_null(False).to_numpy() for name in schema.SPLITS)
            self._last_trained = max(self._last_trained, int(at[trained].max(initial=instants.NULL)))
            self._first_held = min(self._first_held, int(at[held].min(initial=instants.LAST_US)))
            self.hold_out(at[new & held])
        return at, new

    def add(self, at: np.ndarray) -> np.ndarray:
        """Counts impressions, microseconds int64 [n]; returns which are of the span."""
        new, told = self.is_new(at), at != instants.NULL
        self.newest = max(self.newest, int(at.max(initial=instants.NULL)))
        _count(self._new, at[new])
        _count(self._old, at[~new & told])
        return new

    def hold_out(self, at: np.ndarray) -> None:
        """Counts impressions of the span that are not trained on."""
        _count(self._held, at)

    def is_new(self, at: np.ndarray) -> np.ndarray:
        """Returns which instants int64 [n] are of the span; none that is null."""
        return at > self.before.watermark

    def span(self) -> Span:
        """Returns the span.

        Raises:
            EmptySpan: no impression is newer than those that the parent has seen or was judged by, or all are held out.
            ValueError: a model goes on, and the table's `split` is no cut in time.
        """
        before, rows = self.before, self._new.total()
        seen = collections.Counter({int(hour): count for hour, count in before.seen.items()})
        late = (self._old - seen).total()  # without counts below 0, of what is no longer there
        if before.goes_on and self.newest <= before.newest:
            came = f", and {late:,} that came late and are not trained on" if late else ""
            came += f", and {self._ahead:,} of times that have not come yet" if self._ahead else ""
            raise EmptySpan(
                f"A new model needs impressions after {moment(before.newest)}, the newest that its parent was judged "
                f"by. Received: none{came}. No new version is made."
            )
        if before.goes_on and self._first_held <= self._last_trained:
            raise ValueError(
                "A model that goes on needs `impressions.split` to be one cut in time, over all of the data: it is "
                "trained next on what was held out, and one instant says what has been. Received: a train row of "
                f"{moment(self._last_trained)}, and an eval row of {moment(self._first_held)}. Leave the column out, "
                "or let it say eval of the newest rows alone."
            )
        if before.goes_on and rows == self._held.total():
            raise EmptySpan(
                "A new model needs impressions to be trained on and to be judged by. Received, after its parent's: "
                f"{rows:,}, all held out. No new version is made."
            )
        hours = sorted({*self._new, *([before.watermark // _HOUR_US] if before.goes_on else [])})
        gaps = tuple((one, other) for one, other in itertools.pairwise(hours) if other - one > GAP_HOURS)
        known = (seen | self._old) + (self._new - self._held)
        through = {str(hour): known[hour] for hour in sorted(known)}
        return Span(before.watermark if before.goes_on else None, rows, late, gaps, through, self.newest)


def require_new(
    data_dir: str | pathlib.Path, config: DataConfig, feature_set: FeatureSet, before: Before
) -> Span:
    """Returns the span that a data folder has for a new model; only times and splits are read.

    Raises:
        EmptySpan, ValueError: see `Tally.span`.
    """
    return _looked(data_dir, config, feature_set, before)[0].span()


def judged_alike(
    data_dir: str | pathlib.Path, config: DataConfig, feature_set: FeatureSet, before: Before, served_through: int
) -> Before:
    """Returns what a training from scratch is told that will be held against a model in service; only times are read.

    Where what it would hold out is later than what that model was trained through, or nothing is, or where the table
    says what is held out, it is told nothing.
    """
    tally, first = _looked(data_dir, config, feature_set, before)
    is_known = first is not None and first <= served_through < tally.newest
    return dataclasses.replace(before, served_through=served_through) if is_known else before


def _looked(
    data_dir: str | pathlib.Path, config: DataConfig, feature_set: FeatureSet, before: Before
) -> tuple[Tally, int | None]:
    """Returns the count of a data folder's impressions, and from when on they are held out, see `look`."""
    groups = reading.row_groups(data_dir, ["impressions"], feature_set)
    seen = times.resolutions(data_dir, config.time_zone, ["impressions"])
    tally = Tally(before, has_split=reading.has_split(groups))
    return tally, look(groups, seen["impressions"], config.eval_fraction, tally)[1]


def look(
    impressions: typing.Sequence[reading.RowGroup], seen: times.Resolution, eval_fraction: float, tally: Tally
) -> tuple[list[int], int | None]:
    """Counts all impressions, and what of them is held out; instants lie in a file meanwhile.

    Returns:
        How many of each row group are of the span, and from when on they are held out; None: as their `split` says.
    """
    counts = []
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "times.bin"
        with path.open("wb") as file:
            for group in impressions:
                at, new = tally.read(group.part, group.group, seen)
                counts.append(int(new.sum()))
                if not tally.has_split:
                    records.write(file, at[new])
        return counts, None if tally.has_split else held_out_from(path, eval_fraction, tally)


def of_span(shown: Columns, tally: Tally) -> Columns:
    """Returns the impressions of the span among the columns of some."""
    new = tally.is_new(shown["timestamp"])
    return {name: values[new] for name, values in shown.items()}


def _count(hours: collections.Counter[int], at: np.ndarray) -> None:
    """Adds rows, microseconds int64 [n], to counts by hour since 1970."""
    found, counts = np.unique(at // _HOUR_US, return_counts=True)
    hours.update(dict(zip(found.tolist(), counts.tolist())))


def first_held_out(pieces: Pieces, num_rows: int, eval_fraction: float, before: Before) -> int:
    """Returns from which instant on impressions are held out; those of one instant are held out together.

    Args:
        pieces: gives microseconds int64 [k] of all rows, piece by piece, as often as it is called.
        num_rows: their number, at least 1.
        eval_fraction: the share of the rows.
        before: says how much, and where a share does not.
    """
    newest = max(int(piece.max()) for piece, _ in pieces() if len(piece))
    if before.heldout_s:
        first = newest - before.heldout_s * examples.SECOND_US + 1
    else:
        place = _place(num_rows, eval_fraction, before)
        first = int(order_statistics.select(pieces, np.array([place]), np.int64)[0])
    return max(first, before.served_through + 1) if newest > before.served_through else first


def _place(num_rows: int, eval_fraction: float, before: Before) -> int:
    """Returns which of the sorted instants is the first that is held out, where seconds do not say so."""
    if before.heldout_rows:
        return max(num_rows - before.heldout_rows, 0)
    return examples.eval_place(num_rows, eval_fraction)


def held_out_from(path: pathlib.Path, eval_fraction: float, tally: Tally) -> int:
    """Returns from when on impressions are held out, and counts them, by the span's instants int64 in a file."""

    def pieces() -> typing.Iterator[tuple[np.ndarray, None]]:
        with path.open("rb") as file:
            while len(piece := np.fromfile(file, np.int64, 2**20)):
                yield piece, None

    num_rows = path.stat().st_size // 8
    if not num_rows:
        tally.span()  # says so where nothing came
        return examples.eval_start(np.zeros(0, np.int64), eval_fraction)
    first = first_held_out(pieces, num_rows, eval_fraction, tally.before)
    for piece, _ in pieces():
        tally.hold_out(piece[piece >= first])
    return first


def moment(instant_us: int) -> str:
    """Returns an instant in words.

    >>> moment(1_709_510_400_000_000)
    '2024-03-04T00:00:00 UTC'
    """
    return str(np.datetime64(instant_us, "us")).removesuffix(".000000") + " UTC"


def _hour(hour: int) -> str:
    return moment(hour * _HOUR_US)
