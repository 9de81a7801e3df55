"""The logs that records come from: several sources, each of parts, read in about the order of the records' times."""

from __future__ import annotations

import logging
import pathlib
import time
import typing

from serving.streaming import event_log
from serving.streaming.folder_events import EventFolder

LIMIT = 256  # records that are read together
_LOOK_S = 2.0  # between looks for new parts
_AGAIN_S = 1.0  # after a failure
_log = logging.getLogger(__name__)
Newest = typing.Callable[[str], int]


def _open(url: str) -> typing.Any:
    if event_log.source_class(url) is EventFolder or pathlib.Path(url).is_dir():
        return EventFolder(url, at_any_depth=True)
    return event_log.open_source(url)


class _Part:
    def __init__(self, log: event_log.EventSource):
        self.log = log
        self.ended_at_us: int | None = None  # the clock's time when there was no more
        self.next_look = 0.0


class Logs:
    """Sources by URL and how far each of their parts was read.

    Of several parts that is read which is furthest behind by its records' times, so that what waits for the others
    stays little, however many there are. What a part has is read by position: nothing is committed anywhere but here.

    Args:
        urls: see `event_log.open_source`; a folder, which a path may name too, is read at any depth, as by training.
        positions: by part, how far it was read before.
        poll_s: seconds between looks at a part that has no more.
    """

    def __init__(self, urls: typing.Sequence[str], positions: typing.Mapping[str, int], poll_s: float):
        self.positions = dict(positions)
        self._sources = [_open(url) for url in urls]
        self._poll_s, self._looked = poll_s, -_LOOK_S
        self._parts: dict[str, _Part] = {}
        self._has_parts = [False] * len(self._sources)

    def read(self, newest_us: Newest) -> tuple[str, list[event_log.Event]] | None:
        """Returns the next records of the part that is furthest behind, with its name; None where there are none now.

        The position is moved on; what is returned must be taken.
        """
        self._look_for_parts()
        now = time.monotonic()
        ready = [(newest_us(name), name) for name, part in self._parts.items() if part.next_look <= now]
        for _, name in sorted(ready):
            found = self._read(name, self._parts[name])
            if found:
                self.positions[name] = found[-1].offset
                return name, found
        return None

    def watermark_us(self, newest_us: Newest, lateness_us: int) -> int:
        """Returns the time that all parts have passed; 0 where one of them has not said anything yet.

        A part that has no more is as far as the clock was when that was seen; one that cannot be reached is where it
        was, so that nothing is taken for a negative because a broker is away.
        """
        if not self._parts or not all(self._has_parts):
            return 0
        passed = [max(newest_us(name), part.ended_at_us or 0) for name, part in self._parts.items()]
        return max(min([*passed, time.time_ns() // 1000]) - lateness_us, 0)

    def close(self) -> None:
        for opened in [*(part.log for part in self._parts.values()), *self._sources]:
            if hasattr(opened, "close"):
                opened.close()

    def _read(self, name: str, part: _Part) -> list[event_log.Event]:
        position = self.positions.setdefault(name, 0)
        clock_us = time.time_ns() // 1000
        try:
            found = part.log.read(position, LIMIT)
            if found:
                part.ended_at_us = None
                return found
            if not hasattr(part.log, "end") or position >= part.log.end():
                part.ended_at_us = clock_us
            part.next_look = time.monotonic() + self._poll_s
        except Exception as error:  # of whatever keeps the log: it may come back
            _log.warning("%s cannot be read, and is tried again: %s", name, error)
            part.ended_at_us, part.next_look = None, time.monotonic() + _AGAIN_S
        return []

    def _look_for_parts(self) -> None:
        if time.monotonic() - self._looked < _LOOK_S:
            return
        self._looked = time.monotonic()
        for number, source in enumerate(self._sources):
            try:
                found = event_log.parts_of(source)
            except Exception as error:
                _log.warning("%s cannot be read, and is tried again: %s", source.name, error)
                continue
            self._has_parts[number] |= bool(found)
            for part in found:
                if part.name not in self._parts:
                    self._parts[part.name] = _Part(part)
