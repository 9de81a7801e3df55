"""Copies a log of records into a folder of files, which training reads: what is new, once, whole files only."""

from __future__ import annotations

import collections
import hashlib
import json
import logging
import os
import pathlib
import time
import typing
import urllib.parse

from serving.streaming import event_log
from tfmm import registered

FILE_BYTES = 1 << 26
_READ = 1000  # records
_POLL_S = 0.05
_NAME = 120  # characters of a part in the names of its files
_SILENT_S = 10.0  # without a record, though the log says that there are more
_log = logging.getLogger(__name__)


def copy(url: str | os.PathLike[str], folder: str | os.PathLike[str], say: typing.Callable[[str], object]) -> int:
    """Copies the records that a log has now and the folder has not; returns their number.

    A file's name says which records it has, so a copy that was killed goes on behind the last whole file, and none is
    there twice. Memory holds what a file does: records of `FILE_BYTES` and a read more, whatever the log's length. Two
    copies into one folder must not run together.

    Args:
        url: see `event_log.open_source`.
        folder: made where missing; gets `PART.FIRST-LAST.jsonl`, a record a line, by part and position.
        say: gets a line per part.
    Raises:
        ValueError: the log is a folder already; an unknown scheme, or one's own rules.
        FileNotFoundError: no file is where the path says; none is made.
        ConnectionError: a log with parts has none, as when no broker answers.
    """
    if event_log.source_class(url).__name__ == "EventFolder" or pathlib.Path(url).is_dir():
        raise ValueError(f"{os.fspath(url)} is a folder, which training reads as it is: nothing to copy.")
    path = registered.sqlite_path(url)
    if "://" not in path and not pathlib.Path(path).is_file():
        raise FileNotFoundError(
            f"A log must be a SQLite file that exists, or the URL of another one, such as kafka://host:port/topic. "
            f"Received: {path}, where there is none. Correct the path."
        )
    place = pathlib.Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    for left in place.glob(".*.jsonl"):  # of a copy that was killed
        left.unlink()
    source = event_log.open_source(url)
    try:
        parts = event_log.parts_of(source)
        if not parts:
            raise ConnectionError(f"{source.name} has no parts to read: no broker answers, or the topic is gone.")
        reached, count = _reached(place), 0
        for part in parts:
            try:
                found = _copy_part(part, place, reached[_stem(part.name)])
            finally:
                if part is not source and hasattr(part, "close"):
                    part.close()
            say(f"{part.name}: {found:,} new records")
            count += found
        return count
    finally:
        if hasattr(source, "close"):
            source.close()


def _stem(name: str) -> str:
    quoted = urllib.parse.quote(name, safe="").replace(".", "%2E")
    return quoted if len(quoted) <= _NAME else f"{quoted[:_NAME]}-{hashlib.sha256(name.encode()).hexdigest()[:16]}"


def _reached(place: pathlib.Path) -> dict[str, int]:
    """Returns by part the position of the last record that the folder has; 0 of one that it does not know."""
    result: dict[str, int] = collections.defaultdict(int)
    for path in place.glob("*.jsonl"):
        stem, _, span = path.name.removesuffix(".jsonl").rpartition(".")
        last = span.partition("-")[2]
        if stem and last.isdecimal():
            result[stem] = max(result[stem], int(last))
    return result


def _copy_part(part: typing.Any, place: pathlib.Path, after: int) -> int:
    first, count = after, 0
    for batch in _batches(part, after):
        lines = [_line(event.payload) for event in batch]
        stem = f"{_stem(part.name)}.{first + 1:020d}-{batch[-1].offset:020d}"
        aside = place / f".{stem}.jsonl"
        with aside.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(place / f"{stem}.jsonl")
        first, count = batch[-1].offset, count + len(batch)
    return count


def _batches(part: typing.Any, after: int) -> typing.Iterator[list[event_log.Event]]:
    """Yields what a file takes, up to where the log ended when this began, or to where it gives no more."""
    end = part.end() if hasattr(part, "end") else None
    waiting: list[event_log.Event] = []
    size_bytes = 0
    silent_since = time.monotonic()
    while end is None or after < end:
        found = part.read(after, _READ)
        if fault := getattr(part, "fault", None):
            raise fault
        if found:
            waiting.extend(found)
            size_bytes += sum(len(event.payload) for event in found)
            after, silent_since = found[-1].offset, time.monotonic()
            if size_bytes >= FILE_BYTES:
                yield waiting
                waiting, size_bytes = [], 0
        elif end is None:
            break
        elif time.monotonic() - silent_since > _SILENT_S:  # markers of transactions, or a broker that went away
            _log.warning("%s: nothing came for %.0f s behind %d; its end is %d", part.name, _SILENT_S, after, end)
            break
        else:
            time.sleep(_POLL_S)
    if waiting:
        yield waiting


def _line(payload: bytes) -> bytes:
    """Returns a payload as one line; what is no JSON stays as it is but for its breaks, and training says so."""
    if b"\n" in payload or b"\r" in payload:
        try:
            payload = json.dumps(json.loads(payload), ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            payload = payload.replace(b"\n", b" ").replace(b"\r", b" ")
    return payload + b"\n"
