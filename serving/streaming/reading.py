"""The streaming job's first step: a source's logs, shared among readers, as an endless stream of batches of events."""

from __future__ import annotations

import json
import math
import os
import pathlib
import threading
import time
import typing
import weakref
import zlib

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.transforms import userstate
from apache_beam.utils import timestamp

from serving.streaming import embedding, event_log
from tfmm.index import store

MAX_BATCH = 32  # events embedded together
_LOOK_S = 2.0  # between looks for new logs of a source
_STAY_S = 3600
_END = (1 << 63) - 1
_T = typing.TypeVar("_T")

stop_requested = threading.Event()  # set it, and a job of this process ends after the batch at hand
_held: weakref.WeakValueDictionary[str, typing.Any] = weakref.WeakValueDictionary()
_holding = threading.Lock()


def held(key: str, make: typing.Callable[[], _T]) -> _T:
    """Returns what the steps of a job hold together in one process, such as encoders; it goes with the last of them."""
    with _holding:
        if (found := _held.get(key)) is None:
            found = _held[key] = make()
        return found


class Share(typing.NamedTuple):
    """What one of several readers takes of a source: every so many-th of its logs."""

    number: int
    num_readers: int

    def of(self, parts: typing.Iterable[event_log.EventSource]) -> list[event_log.EventSource]:
        """Returns its own of the logs that there are now; a log stays with its reader."""
        return [part for part in parts if _place(part) % self.num_readers == self.number]


def _place(part: event_log.EventSource) -> int:
    place = getattr(part, "number", None)  # of a partition
    return zlib.crc32(part.name.encode()) if place is None else place


class Logs:
    """The logs of a source, as one process has them open.

    Whoever reads a log borrows its reader, which so goes on where it was, whichever thread a share comes to next.

    Args:
        url: of the source, see `event_log.open_source`.
    """

    def __init__(self, url: str):
        self.source = event_log.open_source(url)
        self._parts: list[event_log.EventSource] = []
        self._looked = -math.inf
        self._idle: dict[str, event_log.EventSource] = {}
        weakref.finalize(self, _close, self._idle, self.source)

    def parts(self) -> list[event_log.EventSource]:
        """Returns the logs that there were at the last look, a few seconds ago at most."""
        if time.monotonic() - self._looked > _LOOK_S:
            self._parts, self._looked = event_log.parts_of(self.source), time.monotonic()
        return self._parts

    def borrow(self, part: event_log.EventSource) -> event_log.EventSource:
        return self._idle.pop(part.name, part)

    def give_back(self, readers: typing.Mapping[str, event_log.EventSource]) -> None:
        self._idle.update(readers)


def _close(idle: dict[str, event_log.EventSource], source: typing.Any) -> None:
    for opened in [*idle.values(), source]:
        if hasattr(opened, "close"):
            opened.close()


class _Tracker(OffsetRestrictionTracker):
    def is_bounded(self) -> bool:
        return False


_RESTRICTION = beam.DoFn.RestrictionParam()  # the DoFn itself provides it


class Shares(beam.DoFn, beam.transforms.core.RestrictionProvider):
    """Gives the number of a share to who reads it; splittable.

    Args:
        stays: it does so again each hour, and never ends. Where the input of a step has ended, Flink's runner drops
            its timers.
    """

    def __init__(self, stays: bool):
        self._stays = stays

    def initial_restriction(self, number: int) -> OffsetRange:
        return OffsetRange(0, _END if self._stays else 1)

    def create_tracker(self, restriction: OffsetRange) -> _Tracker:
        return _Tracker(restriction)

    def restriction_size(self, number: int, restriction: OffsetRange) -> int:
        return 1

    def truncate(self, number: int, restriction: OffsetRange) -> None:
        return None

    @beam.DoFn.unbounded_per_element()
    def process(self, number: int, tracker: typing.Any = _RESTRICTION) -> typing.Iterator[tuple[int, None]]:
        if tracker.try_claim(tracker.current_restriction().start):
            yield number, None
            if self._stays:
                tracker.defer_remainder(timestamp.Duration(seconds=_STAY_S))


_AGAIN = userstate.TimerSpec("again", beam.TimeDomain.REAL_TIME)
_TIMER = beam.DoFn.TimerParam(_AGAIN)


class ReadEvents(beam.DoFn):
    """Turns the number of a share into an endless stream of `embedding.EventBatch`.

    Each log is read from the index's position on, which is written together with what its events led to. So all that
    an engine keeps, and brings back, is the timer by which a share comes again. (A splittable DoFn that defers its
    remainder would do, but each time Flink's runner keeps one more state for good, in Beam 2.62 some 2 KB of every
    later checkpoint.) What embeds must be fused with this step: else the index's position could pass a batch that is
    still on its way, and that a failure loses.

    Batches go on at once, not at the end of a bundle. FnApiRunner keeps about 24 KB for every bundle of a job and
    grows slower with each, so bundles are long there; an engine that takes checkpoints between bundles wants
    short ones.

    Args:
        events: the source, see `event_log.open_source`.
        num_readers: that share its logs.
        index: the item index, a path or a URL, which knows from where to read.
        poll_s: seconds between looks at an idle source.
        bundle_s: seconds until a bundle ends.
        ready_file: JSON file written at the first look, when encoders are loaded; None: none.
    """

    def __init__(
        self, events: str, num_readers: int, index: str, poll_s: float, bundle_s: float, ready_file: str | None
    ):
        self._events, self._num_readers, self._url = events, num_readers, index
        self._poll_s, self._bundle_s, self._ready_file = poll_s, bundle_s, ready_file
        self._key = f"{os.urandom(8).hex()} {events}"

    def setup(self) -> None:
        self._index = store.open_store(self._url)
        self._logs = held(self._key, lambda: Logs(self._events))

    def process(self, share: tuple[int, None], again: typing.Any = _TIMER) -> None:
        again.set(timestamp.Timestamp.now())

    @userstate.on_timer(_AGAIN)
    def read(
        self, number: typing.Any = beam.DoFn.KeyParam, again: typing.Any = _TIMER
    ) -> typing.Iterator[embedding.EventBatch]:
        readers: dict[str, event_log.EventSource] = {}
        try:
            yield from self._batches(Share(number, self._num_readers), readers)
        finally:
            self._logs.give_back(readers)
        if not stop_requested.is_set():
            again.set(timestamp.Timestamp.now())

    def _batches(
        self, share: Share, readers: dict[str, event_log.EventSource]
    ) -> typing.Iterator[embedding.EventBatch]:
        """Yields what comes until the bundle's end, or `stop_requested`; puts what it reads with into `readers`."""
        positions: dict[str, int] = {}
        end = time.monotonic() + self._bundle_s
        while time.monotonic() < end:
            for part in share.of(self._logs.parts()):
                if part.name not in readers:
                    readers[part.name] = self._logs.borrow(part)
                    positions[part.name] = self._index.position(part.name)
            self._tell_ready(positions)
            is_idle = True
            for name, reader in readers.items():
                if stop_requested.is_set():
                    return
                if batch := reader.read(positions[name], MAX_BATCH):
                    is_idle, positions[name] = False, batch[-1].offset
                    yield embedding.EventBatch(name, batch)
            if is_idle:
                stop_requested.wait(self._poll_s)
                if stop_requested.is_set():
                    return

    def _tell_ready(self, positions: typing.Mapping[str, int]) -> None:
        if self._ready_file is not None:
            values = {"pid": os.getpid(), "source": self._logs.source.name, "positions": positions}
            _write_json(self._ready_file, values)
            self._ready_file = None

    def teardown(self) -> None:
        self._index.close()
        del self._logs


def _write_json(path: str | pathlib.Path, values: typing.Mapping[str, typing.Any]) -> None:
    """Writes a JSON file so that a reader sees all of it or none."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values) + "\n")
    temporary.replace(path)
