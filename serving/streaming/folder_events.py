"""New item events from files that appear in a folder."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import pathlib
import time
import typing
import uuid

import pyarrow as pa
import pyarrow.parquet as pq

from serving.streaming import event_log, events
from tfmm import registered
from tfmm.data import served

SCHEME = registered.FOLDER
SUFFIXES = served.SUFFIXES
_ID = ".tfmm_events"  # file in the folder, by which the index knows it wherever it is mounted
_BATCH = 256  # rows that are decoded together
_MAX_SAID = 100
_log = logging.getLogger(__name__)


class EventFolder:
    """A folder of event files, each a log of its own; see `event_log.EventSource`.

    A `.jsonl` file holds an event per line (`events.make_event`), and may grow by whole lines; a last one without an
    end is taken once it is a whole object. A `.parquet` file holds an event per row, in columns named as the event's
    fields (`events.FIELDS`), and must appear whole: write it under another name, and rename it. Names that begin with
    `.` or `_` are passed over, others are named in the log. A file is read once; one that is written anew under the
    same name is read on from where it was, so give a correction a name of its own. One that cannot be read is said in
    the log, and tried again when it changes. Look-ups grow with the number of files, as do the index's positions: move
    away what is old.

    The file `.tfmm_events` tells the folder from others of the same path, such as the empty one that is left where a
    disk is mounted no more: then nothing is read until it is back. Where nothing can be written, the path must do.

    Args:
        url: `folder://` and the folder's path.
        at_any_depth: whether files in its folders are read too.
    Attributes:
        fault: why the last look found no files: another folder is there now.
    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, url: str | os.PathLike[str], *, at_any_depth: bool = False):
        self._at_any_depth = at_any_depth
        self.path = pathlib.Path(os.fspath(url).removeprefix(SCHEME)).absolute()
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} must be a folder, in which files of events appear.")
        self.fault: OSError | None = None
        self._identity, self._has_files = _identity(self.path), False
        self._said: set[pathlib.Path] = set()  # what is not read

    def __enter__(self) -> EventFolder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def name(self) -> str:
        return f"{SCHEME}{self._identity}"

    def parts(self) -> list[EventFile]:
        """Returns the files that are there now, by name; none where it is another folder, and `fault` says so."""
        shown = served.shown_files(self.path) if self._at_any_depth else sorted(self.path.iterdir())
        shown = [path for path in shown if path.name[0] not in "._"]
        found = [path for path in shown if path.suffix in SUFFIXES]
        if found and not self._has_files:  # a disk may have been mounted since
            self._identity, self._has_files = _identity(self.path), True
        elif fault := self._find_fault():
            if self.fault is None:
                _log.error("%s", fault)
            self.fault = fault
            return []
        self.fault = None
        others = {path for path in shown if path.suffix not in SUFFIXES} - self._said
        for path in sorted(others)[: _MAX_SAID - len(self._said)]:
            self._said.add(path)
            _log.warning("not used: %s (events are files *%s)", path, " or *".join(SUFFIXES))
        return [EventFile(path, f"{self.name}/{path.relative_to(self.path).as_posix()}") for path in found]

    def _find_fault(self) -> OSError | None:
        if not self._has_files or self._identity == str(self.path):
            return None
        try:
            found = (self.path / _ID).read_text().strip()
        except OSError:
            found = ""
        if found == self._identity:
            return None
        return OSError(
            f"{self.path} is not the folder that was opened: its {_ID} is {'another' if found else 'gone'}. Nothing is "
            "read until that is back, as where its disk is mounted again; start anew to read what is there now."
        )

    def append(self, payloads: typing.Iterable[bytes]) -> int:
        """Writes a new file of events; returns their number.

        Line ends inside of an event, which JSON takes for spaces, become such.
        """
        lines = [payload.replace(b"\n", b" ") + b"\n" for payload in payloads]
        new = self.path / f".{time.time_ns()}-{uuid.uuid4().hex[:8]}.jsonl"
        with new.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        new.rename(new.with_name(new.name[1:]))
        return len(lines)


class EventFile:
    """One file of an `EventFolder`: an event's offset is its line or row, from 1.

    Attributes:
        fault: what the system had against the last read, such as too many open files; the next read tries again.
    """

    def __init__(self, path: pathlib.Path, name: str):
        self._path, self.name = path, name
        self.fault: OSError | None = None
        self._rows: typing.Iterator[event_log.Event] | None = None  # behind `_at`
        self._at = 0
        self._seen: tuple[int, int] | None = None  # size and time of a file that has no more, or cannot be read
        self._looked: tuple[int, int] | None = None  # those of the last read

    def __reduce__(self) -> tuple[type, tuple[pathlib.Path, str]]:
        return EventFile, (self._path, self.name)

    def read(self, after: int, limit: int) -> list[event_log.Event]:
        """As `EventSource.read`; fewer events where they are large together."""
        fault, self.fault, state = self.fault, None, None
        try:
            facts = self._path.stat()
            state = facts.st_size, facts.st_mtime_ns
            if state == self._seen and after == self._at:
                return []
            open_rows = self._rows if after == self._at else None
            self._rows, self._at = open_rows or self._open(after), after
            found = event_log.up_to(self._rows, limit)
            if not found and open_rows and state != self._looked:  # it has grown since its rows came to their end
                self._rows = self._open(after)
                found = event_log.up_to(self._rows, limit)
            self._looked = state
        except FileNotFoundError:  # moved away
            self._rows = None
            return []
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the file may be whole
                self.fault, state = error.with_traceback(None), None
            when = "it changes" if self.fault is None else "it is read the next time"
            if fault is None or str(fault) != str(error):
                _log.error("%s cannot be read, and is tried again when %s: %s", self._path, when, error)
            self._rows, self._seen, self._at = None, state, after
            return []
        if found:
            self._at = found[-1].offset
        else:
            self._rows, self._seen = None, state
        return found

    def release(self) -> None:
        """Closes the file until the next read."""
        self._rows = None

    def _open(self, after: int) -> typing.Iterator[event_log.Event]:
        return self._of_lines(after) if self._path.suffix == ".jsonl" else self._of_rows(after)

    def _of_lines(self, after: int) -> typing.Iterator[event_log.Event]:
        with self._path.open("rb") as file:
            for number, line in enumerate(iter(file.readline, b""), 1):
                if not served.is_whole(line):
                    _log.info("%s ends in a half-written line: it is taken once it is whole", self._path)
                    return
                if number > after:
                    yield event_log.Event(number, line.rstrip(b"\r\n"))

    def _of_rows(self, after: int) -> typing.Iterator[event_log.Event]:
        with pq.ParquetFile(self._path, coerce_int96_timestamp_unit="us") as file:
            number = 0
            for batch in file.iter_batches(batch_size=_BATCH):
                if number + batch.num_rows > after:
                    rows = _events(pa.Table.from_batches([batch.slice(max(after - number, 0))]))
                    for offset, row in enumerate(rows, max(number, after) + 1):
                        yield event_log.Event(offset, row)
                number += batch.num_rows


def _identity(folder: pathlib.Path) -> str:
    """Returns what tells a folder from others of the same path; the path itself where nothing can be written."""
    place = folder / _ID
    try:
        if not place.exists():
            new = folder / f"{_ID}.{uuid.uuid4().hex}"
            new.write_text(uuid.uuid4().hex)
            with contextlib.suppress(FileExistsError):
                os.link(new, place)  # the first one stays
            new.unlink()
        return place.read_text().strip()
    except OSError:
        return str(folder)


def _events(rows: pa.Table) -> typing.Iterator[bytes]:
    """Yields rows as JSON; what an event cannot hold, its parser names."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            micros = rows.column(place).cast(pa.timestamp("us", field.type.tz), safe=False).cast(pa.int64())
            rows = rows.set_column(place, field.name, micros)
    for row in rows.to_pylist():
        event = {name: _json(value, name == "image") for name, value in row.items() if value is not None}
        yield json.dumps({"version": events.VERSION, **event}, default=str).encode()


def _json(value: typing.Any, is_plain: bool = False) -> typing.Any:
    if isinstance(value, bytes):
        text = base64.b64encode(value).decode()
        return text if is_plain else {"base64": text}
    if isinstance(value, dict):
        return {name: _json(one) for name, one in value.items() if one is not None}
    return value
