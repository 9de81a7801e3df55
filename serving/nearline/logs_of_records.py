"""The logs that records come from: several sources, each of parts, read in about the order of the records' times."""

from __future__ import annotations

import collections
import logging
import pathlib
import time
import typing

from serving.streaming import event_log
from serving.streaming.folder_events import EventFolder

LIMIT = 256  # records that are read together
_PEEK = 16  # records of which the first with a time tells when a part begins
_MAX_OPEN = 64  # files that are open between reads
_LOOK_S = 2.0  # between looks for new parts
_AGAIN_S = 1.0  # after a failure
_LOOKS_PER_S = 2_000  # at parts that have no more, all of them together
_log = logging.getLogger(__name__)
Newest = typing.Callable[[str], int]


def _open(url: str) -> typing.Any:
    if event_log.source_class(url) is EventFolder or pathlib.Path(url).is_dir():
        return EventFolder(url, at_any_depth=True)
    return event_log.open_source(url)


class _Part:
    def __init__(self, log: event_log.EventSource, source: int):
        self.log, self.source = log, source
        self.first_us = 0  # time of its first record, once that was seen
        self.ended_at_us: int | None = None  # the clock's time when there was no more
        self.next_look = 0.0
        self.is_awaited = False  # it cannot be read, or has more than it has given


class Logs:
    """Sources by URL and how far each of their parts was read.

    Of several parts that is read which is furthest behind by its records' times, so that what waits for the others
    stays little, however many there are: where a part begins is looked up before any of it is taken. What a part has is
    read by position: nothing is committed anywhere but here.

    Args:
        urls: see `event_log.open_source`; a folder, which a path may name too, is read at any depth, as by training.
        positions: by part, how far it was read before.
        poll_s: seconds between looks at a part that has no more; longer where there are thousands.
        time_us: of a record, in microseconds since 1970; 0 where it has none.
    """

    def __init__(
        self,
        urls: typing.Sequence[str],
        positions: typing.Mapping[str, int],
        poll_s: float,
        time_us: typing.Callable[[bytes], int],
    ):
        self.positions, self._time_us = dict(positions), time_us
        self._sources = [_open(url) for url in urls]
        self._poll_s, self._looked = poll_s, -_LOOK_S
        self._parts: dict[str, _Part] = {}
        self._has_parts = [False] * len(self._sources)
        self._is_away = [False] * len(self._sources)
        self._open: collections.OrderedDict[str, None] = collections.OrderedDict()  # parts by when they were read

    def read(self, newest_us: Newest, room: int) -> tuple[str, list[event_log.Event]] | None:
        """Returns the next records of the part that is furthest behind, with its name; None where there are none now.

        The position is moved on; what is returned must be taken.

        Args:
            newest_us: by part, the newest time that it has shown.
            room: how many more records may wait. Where there is none, and another part is awaited, they stay.
        """
        self._look_for_parts()
        ready = self._ready(room)
        for name in ready:
            if not self._reached_us(name, newest_us):
                self._peek(name, self._parts[name])
        for name in sorted(self._ready(room), key=lambda name: (self._reached_us(name, newest_us), name)):
            found = self._read(name, self._parts[name])
            if found and (room > 0 or self._is_awaiting):
                found = found[: max(room, 0)]
            if found:
                self.positions[name] = found[-1].offset
                self._keep_open(name)
                return name, found
        return None

    def _ready(self, room: int) -> list[str]:
        """Returns the parts to look at now: where there is no room, those that are awaited."""
        now, is_full = time.monotonic(), self._is_awaiting and room <= 0
        return [n for n, part in self._parts.items() if part.next_look <= now and (part.is_awaited or not is_full)]

    @property
    def _is_awaiting(self) -> bool:
        """Whether the watermark waits for something that is away, or on its way."""
        if any(self._is_away) or not all(self._has_parts):
            return True
        return any(part.is_awaited for part in self._parts.values())

    def watermark_us(self, newest_us: Newest, lateness_us: int) -> int:
        """Returns the time that all parts have passed; 0 where one of them has not said anything yet.

        A part that has no more is as far as the clock was when that was seen; one that cannot be reached is where it
        was, so that nothing is taken for a negative because a broker is away.
        """
        if not self._parts or not all(self._has_parts) or any(self._is_away):
            return 0
        passed = [max(self._reached_us(name, newest_us), part.ended_at_us or 0) for name, part in self._parts.items()]
        return max(min([*passed, time.time_ns() // 1000]) - lateness_us, 0)

    def close(self) -> None:
        for opened in [*(part.log for part in self._parts.values()), *self._sources]:
            if hasattr(opened, "close"):
                opened.close()

    def _reached_us(self, name: str, newest_us: Newest) -> int:
        """Returns the time that a part has come to, 0 where nobody knows."""
        return max(newest_us(name), self._parts[name].first_us)

    def _peek(self, name: str, part: _Part) -> None:
        """Looks up when the records of a part begin, and takes none."""
        times = (self._time_us(event.payload) for event in self._read(name, part, _PEEK))
        part.first_us = next(filter(None, times), 0)
        self._release(part)

    def _keep_open(self, name: str) -> None:
        self._open[name] = None
        self._open.move_to_end(name)
        if len(self._open) > _MAX_OPEN:
            oldest, _ = self._open.popitem(last=False)
            self._release(self._parts[oldest])

    def _release(self, part: _Part) -> None:
        if hasattr(part.log, "release"):
            part.log.release()

    def _read(self, name: str, part: _Part, limit: int = LIMIT) -> list[event_log.Event]:
        position = self.positions.setdefault(name, 0)
        clock_us = time.time_ns() // 1000
        try:
            found = part.log.read(position, limit)
            if fault := getattr(part.log, "fault", None):
                raise fault
            part.is_awaited = not found and hasattr(part.log, "end") and position < part.log.end()
            if found:
                part.ended_at_us = None
                return found
            if not part.is_awaited:
                part.ended_at_us = clock_us
            part.next_look = time.monotonic() + max(self._poll_s, len(self._parts) // 100 * 100 / _LOOKS_PER_S)
        except Exception as error:  # of whatever keeps the log: it may come back
            _log.warning("%s cannot be read, and is tried again: %s", name, error)
            part.is_awaited, part.ended_at_us, part.next_look = True, None, time.monotonic() + _AGAIN_S
        return []

    def _look_for_parts(self) -> None:
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        for number, source in enumerate(self._sources):
            try:
                found = event_log.parts_of(source)
                if fault := getattr(source, "fault", None):
                    raise fault
            except Exception as error:
                _log.warning("%s cannot be read, and is tried again: %s", source.name, error)
                self._is_away[number] = True
                continue
            self._is_away[number] = False
            self._has_parts[number] |= bool(found)
            for part in found:
                if part.name not in self._parts:
                    self._parts[part.name] = _Part(part, number)
            names = {part.name for part in found}
            for name in [name for name, part in self._parts.items() if part.source == number and name not in names]:
                self._forget(name)

    def _forget(self, name: str) -> None:
        """Forgets a part that is no more, such as a file that was moved away; its position stays."""
        part = self._parts.pop(name)
        self._open.pop(name, None)
        if hasattr(part.log, "close"):
            part.log.close()
