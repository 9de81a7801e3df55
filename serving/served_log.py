"""Logs of what a server answered: out of the way of requests, none lost, in files that readers find whole, or a topic.

A training log takes every request: one has its place before the model runs, and where the writer is so far behind that
there is none, the request is refused, so that nothing is served that is not logged. An inspection log takes a sample,
and drops what finds no place.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import io
import itertools
import logging
import os
import pathlib
import queue
import socket
import threading
import time
import typing
import zlib

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from prometheus_client import core

from serving.streaming import event_log
from tfmm.data import served

FOLDER = "folder://"
ROTATE_BYTES = 1 << 24  # of JSON, after which a file is closed
_BATCH = 256  # records that are appended together
_RETRY_S = 1.0
_STOP_S = 10.0  # for what is waiting, when a server ends
_LAST_S = 5.0  # for the call that is under way then
_log = logging.getLogger("serving.served_log")
Record = typing.Callable[[], typing.Mapping[str, typing.Any]]  # makes it in the writer's thread


def records_table(records: typing.Sequence[typing.Mapping[str, typing.Any]]) -> pa.Table:
    """Returns `served.table`, made fast enough for a process that answers requests meanwhile."""
    return served.table(records, lambda value: orjson.dumps(value).decode())


class FullError(Exception):
    """A log that takes everything has no place: its writer is behind."""


class Place:
    """Room for one record."""

    def __init__(self) -> None:
        self.record: Record | None = None

    def fill(self, record: Record) -> None:
        self.record = record


class Log:
    """Records on their way to a sink, by a thread of its own.

    Args:
        name: which of a server's logs it is, for messages and metrics.
        url: `folder:///logs/served`, or a path, is a folder that gets Parquet files; else what `event_log.open_source`
            opens and can be appended to, such as `kafka://host:9092/served`.
        sample_rate: share of the requests, chosen by a hash of their ids; below 1 what finds no place is dropped.
        max_waiting: records that wait for the writer.
        rotate_s: seconds after which a file is closed.
        table: makes records a table.
    Raises:
        ValueError: the sink cannot be appended to.
        OSError: the folder cannot be written.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        sample_rate: float = 1.0,
        max_waiting: int = 4096,
        rotate_s: float = 60.0,
        table: typing.Callable[[typing.Sequence[typing.Any]], pa.Table] = records_table,
    ):
        self.name, self.sample_rate, self._max_waiting = name, sample_rate, max_waiting
        self.counts = dict.fromkeys(("written", "refused", "dropped", "failures", "lost"), 0)
        self._sink = _open(url, rotate_s, table)
        self._places = threading.Semaphore(max_waiting)
        self._queue: queue.SimpleQueue[Record | None] = queue.SimpleQueue()
        self._at_hand = 0  # records that the writer has taken
        self._stops_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"log {name}", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Records that are not written yet."""
        return self._queue.qsize()

    def takes(self, request_id: str) -> bool:
        """Returns whether a request is of the sample; the same in every server."""
        return self.sample_rate >= 1.0 or zlib.crc32(request_id.encode()) < self.sample_rate * 2**32

    @contextlib.contextmanager
    def place(self) -> typing.Iterator[Place]:
        """Keeps room for a record, which is written when the block ends, if it was filled.

        Raises:
            FullError: there is none.
        """
        place = Place()
        if not self._places.acquire(blocking=False):
            if self.sample_rate < 1.0:
                self.counts["dropped"] += 1
                yield place
                return
            self.counts["refused"] += 1
            raise FullError(f"The {self.name} log has {self._max_waiting} requests to write, and takes every one.")
        try:
            yield place
        except BaseException:
            self._places.release()
            raise
        if place.record is None:
            self._places.release()
        else:
            self._queue.put(place.record)

    def close(self) -> None:
        """Writes what waits, and ends; what cannot be written in time is lost, and said."""
        self._stops_at = time.monotonic() + _STOP_S
        self._queue.put(None)
        self._thread.join(_STOP_S + _LAST_S)
        if self._thread.is_alive():  # in a call that hangs; it ends with the process
            self._lose(self._at_hand + max(0, self._queue.qsize() - 1))

    def _run(self) -> None:
        ends = False
        while not ends:
            batch, ends = self._taken()
            payloads = [payload for payload in map(self._payload, batch) if payload is not None]
            self._at_hand = len(payloads)
            if payloads:
                self._write(functools.partial(self._sink.append, payloads), len(payloads))
            self._at_hand = 0
            if batch:
                self._places.release(len(batch))
            self._write(self._sink.rotate_where_due, 0)
        self._write(self._sink.close, 0)

    def _taken(self) -> tuple[list[Record], bool]:
        """Returns the records at hand, after a wait for the first, and whether they are the last."""
        found: list[Record] = []
        with contextlib.suppress(queue.Empty):
            while len(found) < _BATCH:
                one = self._queue.get(timeout=_RETRY_S) if not found else self._queue.get_nowait()
                if one is None:
                    return found, True
                found.append(one)
        return found, False

    def _payload(self, record: Record) -> bytes | None:
        try:
            return orjson.dumps(record(), option=orjson.OPT_SERIALIZE_NUMPY)
        except Exception:  # one record must not keep the others
            _log.exception("%s log: a record cannot be written", self.name)
            self.counts["lost"] += 1
            return None

    def _write(self, write: typing.Callable[[], object], count: int) -> None:
        """Calls until it succeeds, as a full disk or a lost broker may pass; once a server ends, for a while."""
        while not (count and self._is_over()):  # what is only tidied up gets a try even then
            try:
                write()
                self.counts["written"] += count
                return
            except Exception as error:
                self.counts["failures"] += 1
                _log.error("%s log cannot be written, and is tried again: %s", self.name, error)
                if self._is_over():
                    break
                time.sleep(_RETRY_S)
        self._lose(count)

    def _is_over(self) -> bool:
        return self._stops_at is not None and time.monotonic() >= self._stops_at

    def _lose(self, count: int) -> None:
        self.counts["lost"] += count
        if count:
            _log.error("%s log: %d records are lost", self.name, count)


class LogMetrics:
    """Gives what logs count."""

    def __init__(self, logs: typing.Sequence[Log]):
        self._logs = logs

    def collect(self) -> typing.Iterator[core.Metric]:
        records = core.CounterMetricFamily(
            "tfmm_served_log_records", "Records of a log, by what became of them.", labels=["log", "state"]
        )
        waiting = core.GaugeMetricFamily(
            "tfmm_served_log_waiting", "Records that are not written yet.", labels=["log"]
        )
        for log in self._logs:
            waiting.add_metric([log.name], log.waiting)
            for state, count in log.counts.items():
                records.add_metric([log.name, state], count)
        yield from (records, waiting)


def _open(url: str, rotate_s: float, table: typing.Callable[..., pa.Table]) -> typing.Any:
    if url.startswith(FOLDER) or "://" not in url:
        return ParquetFolder(url.removeprefix(FOLDER), rotate_s, table)
    source = event_log.open_source(url)
    if not hasattr(source, "append"):
        raise ValueError(f"A log must be something that can be appended to, not {url.partition('://')[0]}://.")
    return _Appended(source)


class _Appended:
    """A source of events, as a sink."""

    def __init__(self, source: typing.Any):
        self._source = source

    def append(self, payloads: typing.Sequence[bytes]) -> None:
        self._source.append(payloads)

    def rotate_where_due(self) -> None:
        pass

    def close(self) -> None:
        if hasattr(self._source, "close"):
            self._source.close()


class ParquetFolder:
    """A folder that gets a Parquet file every `rotate_s` seconds or `ROTATE_BYTES`, whole.

    Until then records stand in a hidden file of JSON lines, to which they are appended as they come. What a killed
    process leaves of such becomes a Parquet file when the folder is opened again.

    Args:
        path: made where missing.
        rotate_s: seconds.
        table: makes loaded lines a table.
    """

    def __init__(self, path: str, rotate_s: float, table: typing.Callable[..., pa.Table]):
        self._folder, self._rotate_s, self._table = pathlib.Path(path), rotate_s, table
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lines: io.FileIO | None = None
        self._path = self._folder  # of the lines
        self._due = 0.0
        for left in sorted(self._folder.glob(".*.jsonl")):
            self._recover(left)

    def append(self, payloads: typing.Sequence[bytes]) -> None:
        file = self._lines or self._begin()
        start, left = file.tell(), memoryview(b"".join(payload + b"\n" for payload in payloads))
        try:
            while left:
                left = left[file.write(left) :]
        except OSError:
            file.truncate(start)  # half a batch, which comes again
            file.seek(start)
            raise

    def rotate_where_due(self) -> None:
        if self._lines is not None and (self._lines.tell() >= ROTATE_BYTES or time.monotonic() >= self._due):
            self._rotate()

    def close(self) -> None:
        if self._lines is not None:
            self._rotate()

    def _begin(self) -> io.FileIO:
        path = self._folder / f".{time.time_ns()}-{socket.gethostname()}-{os.getpid()}.jsonl"
        new = path.with_suffix(".new")  # until it is locked, a name that no other process recovers
        lines = io.FileIO(new, "x")
        fcntl.flock(lines, fcntl.LOCK_EX)  # until this process ends, however it does
        new.rename(path)
        self._lines, self._path, self._due = lines, path, time.monotonic() + self._rotate_s
        return lines

    def _rotate(self) -> None:
        self._convert(self._path)
        typing.cast(io.FileIO, self._lines).close()
        self._lines = None

    def _convert(self, lines: pathlib.Path) -> None:
        """Writes the Parquet file of a file of lines, which goes."""
        target = self._folder / f"{lines.stem[1:]}.parquet"
        if lines.stat().st_size and not target.exists():
            aside = target.with_name(f".{target.name}")
            with aside.open("wb") as file:
                self._write(lines, file)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(target)
        lines.unlink()

    def _write(self, lines: pathlib.Path, file: typing.BinaryIO) -> None:
        """Writes lines as Parquet, some at a time, so that requests have their turn in between."""
        with lines.open("rb") as source, pq.ParquetWriter(file, self._table([]).schema, compression="zstd") as writer:
            whole = (line for line in source if line.endswith(b"\n"))  # the last may be half written
            while some := [orjson.loads(line) for line in itertools.islice(whole, _BATCH)]:
                writer.write_table(self._table(some))

    def _recover(self, lines: pathlib.Path) -> None:
        with contextlib.suppress(FileNotFoundError, BlockingIOError), lines.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # another process writes it still: left alone
            self._convert(lines)
            _log.info("%s: records of a process that was killed are in a file of their own now", self._folder)
