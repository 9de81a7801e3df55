"""New item events from files that appear in a folder."""

from __future__ import annotations

import base64
import itertools
import json
import os
import pathlib
import typing

import pyarrow as pa
import pyarrow.parquet as pq

from serving.streaming import event_log, events

SCHEME = "folder://"
SUFFIXES = (".jsonl", ".parquet")


class EventFolder:
    """A folder of event files, each a log of its own; see `event_log.EventSource`.

    A `.jsonl` file holds an event per line (`events.make_event`), and may grow by whole lines. A `.parquet` file holds
    an event per row, in columns named as the event's fields (`events.FIELDS`), and must appear whole: write it under
    another name, and rename it. Names that begin with `.` or `_` are passed over. A file is read once; one that is
    written anew under the same name is read on from where it was, so give a correction a name of its own. Look-ups grow
    with the number of files: move away what is old.

    Args:
        url: `folder://` and the folder's path.
    Raises:
        FileNotFoundError: there is no such folder.
    """

    def __init__(self, url: str | os.PathLike[str]):
        self.path = pathlib.Path(os.fspath(url).removeprefix(SCHEME)).absolute()
        if not self.path.is_dir():
            raise FileNotFoundError(f"{self.path} must be a folder, in which files of events appear.")

    def __enter__(self) -> EventFolder:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def name(self) -> str:
        return f"{SCHEME}{self.path}"

    def parts(self) -> list[EventFile]:
        """Returns the files that are there now, by name."""
        found = sorted(path for path in self.path.iterdir() if path.suffix in SUFFIXES and path.name[0] not in "._")
        return [EventFile(path) for path in found]

    def append(self, payloads: typing.Iterable[bytes]) -> None:
        """Writes a new file of events; line ends inside of them, which JSON takes for spaces, become such."""
        numbers = (path.stem.rpartition("-")[2] for path in self.path.glob("sent-*.jsonl"))
        number = max([0, *(int(word) for word in numbers if word.isdecimal())]) + 1
        new = self.path / f".sent-{number:06}.jsonl"
        new.write_bytes(b"".join(payload.replace(b"\n", b" ") + b"\n" for payload in payloads))
        new.rename(new.with_name(new.name[1:]))


class EventFile:
    """One file of an `EventFolder`: an event's offset is its line or row, from 1."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._read_to = (0, 0)  # events and bytes of a .jsonl
        self._seen: tuple[int, int] | None = None  # size and time of a file that was read to its end

    def __reduce__(self) -> tuple[type, tuple[pathlib.Path]]:
        return EventFile, (self._path,)

    @property
    def name(self) -> str:
        return f"{SCHEME}{self._path}"

    def read(self, after: int, limit: int) -> list[event_log.Event]:
        """As `EventSource.read`; fewer events where they are large together."""
        try:
            facts = self._path.stat()
        except FileNotFoundError:  # moved away
            return []
        state = facts.st_size, facts.st_mtime_ns
        if state == self._seen:
            return []
        rows = self._lines(after) if self._path.suffix == ".jsonl" else self._rows(after)
        found: list[event_log.Event] = []
        size_bytes = 0
        for event in itertools.islice(rows, limit):
            found.append(event)
            size_bytes += len(event.payload)
            if size_bytes >= event_log.READ_BYTES:
                break
        if not found:
            self._seen = state
        return found

    def _lines(self, after: int) -> typing.Iterator[event_log.Event]:
        number, start = self._read_to if self._read_to[0] <= after else (0, 0)
        with self._path.open("rb") as file:
            file.seek(start)
            for line in iter(file.readline, b""):
                if not line.endswith(b"\n"):
                    return  # half written
                number += 1
                if number > after:
                    yield event_log.Event(number, line.rstrip(b"\r\n"))
                if number == after:
                    self._read_to = number, file.tell()

    def _rows(self, after: int) -> typing.Iterator[event_log.Event]:
        with pq.ParquetFile(self._path) as file:
            number = 0
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if number + count > after:
                    for row in _events(file.read_row_group(group).slice(max(after - number, 0))):
                        yield event_log.Event(max(number, after) + 1, row)
                        after = max(number, after) + 1
                number += count


def _events(rows: pa.Table) -> typing.Iterator[bytes]:
    """Yields rows as JSON; what an event cannot hold, its parser names."""
    for place, field in enumerate(rows.schema):
        if pa.types.is_timestamp(field.type):
            micros = rows.column(place).cast(pa.timestamp("us", field.type.tz), safe=False).cast(pa.int64())
            rows = rows.set_column(place, field.name, micros)
    for batch in rows.to_batches(max_chunksize=256):
        for row in batch.to_pylist():
            event = {name: _json(value, name == "image") for name, value in row.items() if value is not None}
            yield json.dumps({"version": events.VERSION, **event}, default=str).encode()


def _json(value: typing.Any, is_plain: bool = False) -> typing.Any:
    if isinstance(value, bytes):
        text = base64.b64encode(value).decode()
        return text if is_plain else {"base64": text}
    if isinstance(value, dict):
        return {name: _json(one) for name, one in value.items() if one is not None}
    return value
