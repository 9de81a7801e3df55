"""Served requests joined with what became of their items: rows to learn from, and to judge a version in service by.

A row is an item that was shown. It is known a label's window after: clicked, where a click came within the window, else
not, so that a window too short makes clicks negatives. Requests and events lie in files in any order, and are spread
over partitions by the request's id, so that memory is that of one partition.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing
import zlib

import pyarrow as pa
import pyarrow.parquet as pq

from tfmm import dead_letters
from tfmm.data import reading, served
from tfmm.data.served import Event, Served

REQUESTS, EVENTS = "served", "events"  # as dead letters name them
NOT_AMONG_ITEMS = "`item_id` must be among the items of its request"
PARTITION_BYTES = 1 << 28
_CONTENT = 2_000  # characters of a letter's content


@dataclasses.dataclass(frozen=True)
class Labels:
    """How events become labels.

    Attributes:
        column: under which an event says that an item was clicked, the label's as the run declares it.
        window_s: seconds after an item was shown in which a click counts.
        until: seconds since 1970; a row is known whose window has ended by then.
        values: columns that each event of a row must bring, such as the label's weight.
    """

    column: str
    window_s: float
    until: float
    values: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.window_s > 0:
            raise ValueError(f"A label's window must be more than 0 seconds. Received: {self.window_s}.")


@dataclasses.dataclass(frozen=True)
class Shown:
    """One item of a request that was shown.

    Attributes:
        place: among the request's items.
        label: 1 clicked, 0 not.
        values: further columns that events told.
    """

    place: int
    label: int
    values: typing.Mapping[str, typing.Any]


class Letters:
    """Dead letters of a log, written to a folder as they come; without one, counted alone."""

    def __init__(self, folder: pathlib.Path | None):
        path = None if folder is None else folder / "dead_letter-00000-of-00001.parquet"
        self._writer = None if path is None else pq.ParquetWriter(path, reading.DEAD_LETTER)
        self.count = 0
        self.found: dict[str, dead_letters.Count] = {}

    def add(self, source: str, row: int, reason: str, content: bytes | str) -> None:
        code = dead_letters.reason_code(reason)
        known = self.found.get(f"{source} {code}", dead_letters.Count("examples", source, code, reason, 0))
        self.found[f"{source} {code}"] = dataclasses.replace(known, count=known.count + 1)
        self.count += 1
        if self._writer is not None:
            text = content if isinstance(content, str) else content.decode("utf-8", "replace")
            row_of = {"table": source, "row": row, "reason": reason, "content": text[:_CONTENT]}
            self._writer.write_table(pa.Table.from_pylist([row_of], reading.DEAD_LETTER))

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()


class Spread:
    """A log and its events, spread over partitions; `rows` joins them, as often as it is called.

    Args:
        log: folder of records (`tfmm.data.served`).
        events: folder of events.
        labels: how they become labels.
        folder: gets the partitions.
        letters: get what cannot be used, once.
        takes_samples: whether records of a sample are used; training refuses them.
        since: seconds since 1970; files that were written before are not read, since requests and events of later times
            are in none of them. An event whose request was not read is then passed over.
    Attributes:
        read: how many records and events there were.
        unread: what lies in the folders and was not read.
        early: shown items whose window has not ended, of the last call of `rows`.
        late: clicks after their window.
    """

    def __init__(
        self,
        log: str | os.PathLike[str],
        events: str | os.PathLike[str],
        labels: Labels,
        folder: pathlib.Path,
        letters: Letters,
        *,
        takes_samples: bool = False,
        since: float = 0.0,
    ):
        self._takes_samples, self._is_whole = takes_samples, since <= 0
        self._labels, self._folder, self._letters = labels, folder, letters
        found = {
            name: [path for path in served.files(place) if path.stat().st_mtime >= since]
            for name, place in ((REQUESTS, log), (EVENTS, events))
        }
        total = sum(path.stat().st_size for paths in found.values() for path in paths)
        self.unread = [one for place in (log, events) for one in served.unread(place)]
        self._num_parts = max(1, round(4 * total / PARTITION_BYTES))  # Parquet is smaller than its rows
        self.read = {name: self._spread(name, paths) for name, paths in found.items()}
        self.early = self.late = 0
        self._has_told = False

    def _spread(self, name: str, paths: typing.Iterable[pathlib.Path]) -> int:
        files = [self._path(name, number).open("wb") for number in range(self._num_parts)]
        row = -1
        try:
            for path in paths:
                for payload in served.payloads(path):
                    row += 1
                    try:
                        request_id = self._verified(name, payload)
                    except ValueError as error:
                        self._letters.add(name, row, str(error), payload)
                        continue
                    if request_id:
                        files[zlib.crc32(request_id.encode()) % self._num_parts].write(payload.strip() + b"\n")
        finally:
            for file in files:
                file.close()
        return row + 1

    def _verified(self, name: str, payload: bytes) -> str:
        """Returns the id of the request; "" where an event says nothing."""
        if name == EVENTS:
            event = served.parse_event(payload, self._labels.column)
            return event.request_id if event else ""
        record = served.parse(payload)
        if not self._takes_samples:
            served.refuse_sample(record)
        return record.request_id

    def _path(self, name: str, number: int) -> pathlib.Path:
        return self._folder / f"{name}-{number}.jsonl"

    @property
    def num_parts(self) -> int:
        return self._num_parts

    def rows(self, number: int) -> typing.Iterator[tuple[Served, list[Shown]]]:
        """Yields the requests of a partition that have rows which are known, each with them.

        Of a request that was logged twice the last one counts: that is the one whose answer its caller had.
        """
        if number == 0:
            self.early = self.late = 0
        by_request: dict[str, list[Event]] = {}
        for payload in served.payloads(self._path(EVENTS, number)):
            event = served.parse_event(payload, self._labels.column)
            if event is not None:
                by_request.setdefault(event.request_id, []).append(event)
        newest: dict[str, Served] = {}
        for payload in served.payloads(self._path(REQUESTS, number)):
            record = served.parse(payload)
            known = newest.get(record.request_id)
            if known is None or record.time >= known.time:
                newest[record.request_id] = record
        for record in newest.values():
            if shown := self._shown(record, by_request.pop(record.request_id, [])):
                yield record, shown
        for events in by_request.values() if self._is_whole else ():
            for event in events:
                self._reject(event, "`request_id` must be of a request that was logged")
        self._has_told |= number == self._num_parts - 1

    def _shown(self, record: Served, events: typing.Sequence[Event]) -> list[Shown]:
        places = {item: place for place, item in reversed(list(enumerate(record.items)))}
        at: dict[int, list[Event]] = {}
        for event in events:
            place = places.get(event.item_id)
            if place is None:
                self._reject(event, NOT_AMONG_ITEMS)
            else:
                at.setdefault(place, []).append(event)
        result = []
        for place in sorted(at):
            own = sorted(at[place], key=lambda event: event.time)
            values = {name: one for event in own for name, one in event.values.items()}
            if lacking := [name for name in self._labels.values if not isinstance(values.get(name), (int, float))]:
                self._reject(own[0], f"{', '.join(lacking)} must be a number in an event of each item that was shown")
                continue
            began = next((event.time for event in own if not event.is_click), own[0].time)  # a click was shown, too
            ends = began + self._labels.window_s
            clicks = [event.time for event in own if event.is_click]
            if ends > self._labels.until:
                self.early += 1
                continue
            self.late += bool(clicks) and min(clicks) > ends
            result.append(Shown(place, int(bool(clicks) and min(clicks) <= ends), values))
        return result

    def _reject(self, event: Event, reason: str) -> None:
        if not self._has_told:
            self._letters.add(EVENTS, -1, reason, str(dataclasses.asdict(event)))
