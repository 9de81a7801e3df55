"""Dead letters of every stage in one form: what was left out, where it stood, why, and what it was.

Batch jobs leave them beside their output, as Parquet and JSON lines; the stream keeps them in the item index, in the
transaction that moves its position.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import dataclasses
import datetime
import json
import os
import pathlib
import re
import sqlite3
import typing

import pyarrow.parquet as pq

from tfmm.index import store
from tfmm.modalities import DEAD_LETTERS

EXAMPLES, EMBEDDING, STREAM = "examples", "embedding", "stream"  # stages
Path = str | os.PathLike[str]
WAIT_S = 60.0  # for an index that is locked
_BASE64 = "base64:"  # before what is no UTF-8
_HEADER = b"SQLite format 3\0"  # of every database that is not empty


@dataclasses.dataclass(frozen=True)
class DeadLetter:
    """What could not be used."""

    time: str | None  # ISO 8601, UTC: of the batch job; of the event itself in the stream, where it tells one
    stage: str
    source: str  # the table, `items.<modality>`, or the log of events
    key: str  # the row of the table (from 0, over its files in order of name), the item's id, or the event's offset
    code: str  # the reason without the values received, to count by
    reason: str
    content: str | None  # as it came; bytes that are no UTF-8 as base64

    @property
    def kind(self) -> tuple[str, str, str]:
        return self.stage, self.source, self.code


@dataclasses.dataclass(frozen=True)
class Count:
    """How many letters of one stage and source have one reason."""

    stage: str
    source: str
    code: str
    reason: str  # of the first
    count: int

    def __str__(self) -> str:
        return f"{self.count:,} of {self.source}: {self.reason} ({self.code})"


def reason_code(reason: str) -> str:
    """Returns a reason's words without the values received, to count and to filter by.

    >>> reason_code("`label` must be 0 or 1"), reason_code("event_time_us: must be microseconds, not 'x'")
    ('label_must_be_0_or_1', 'event_time_us_must_be_microseconds')
    >>> reason_code("not JSON: Expecting value: line 1"), reason_code("image: the encoder fails: out of memory")
    ('not_json', 'image_the_encoder_fails')
    """
    text = re.split(r", not |; ", reason)[0]
    head, *rest = text.split(": ")
    if rest and re.fullmatch(r"[\w.]+", head):  # a field and what is wrong with it
        head = f"{head} {rest[0]}"
    return re.sub(r"\W+", "_", head).strip("_").lower()[:80]


def read(*places: Path) -> typing.Iterator[DeadLetter]:
    """Yields the dead letters of places, each a file, an item index (a path or a URL) or a folder of any of them.

    Of a pipeline's node, whose runs are folders with a number, the newest one counts.

    Raises:
        FileNotFoundError: a place does not exist.
        OSError: an index cannot be read, such as one that is locked.
        ValueError: a file is no dead-letter file and no item index, or a URL is of no kind that is known.
    """
    for place in places:
        if "://" in os.fspath(place):
            with store.open_store(place, create=False) as index:
                yield from map(of_stream, index.dead_letters())
            continue
        path = pathlib.Path(place)
        if path.is_dir():
            for file in _files(path):
                yield from _READERS[file.suffix](file)
        elif not path.exists():
            raise FileNotFoundError(f"{path} does not exist. Name a workdir, a stage's output, or an item index.")
        elif path.suffix in (".parquet", ".jsonl"):
            yield from _READERS[path.suffix](path)
        elif _holds_letters(path):
            yield from _of_index(path)
        else:
            raise ValueError(f"{path} must be an item index, or dead letters as a stage wrote them. Received: neither.")


def counts(letters: typing.Iterable[DeadLetter]) -> list[Count]:
    """Returns how many letters have each reason, per stage and source, the most frequent first."""
    found: collections.Counter[tuple[str, str, str]] = collections.Counter()
    first: dict[tuple[str, str, str], str] = {}
    for letter in letters:
        found[letter.kind] += 1
        first.setdefault(letter.kind, letter.reason)
    return [Count(*kind, first[kind], count) for kind, count in found.most_common()]


def lines(*places: Path) -> list[str]:
    """Returns what a command says of the rows that were left out: a line per reason, and how to see them."""
    return count_lines(counts(read(*[place for place in places if pathlib.Path(place).exists()])), *places)


def count_lines(found: typing.Sequence[Count], *places: Path) -> list[str]:
    """Returns what `lines` does, of what was counted already."""
    if not found:
        return []
    shown = " ".join(str(place) for place in places)
    return [*(f"left out: {one}" for one in found), f"`tfmm dead-letters {shown}` shows them."]


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files with dead letters under a folder."""
    found: list[pathlib.Path] = []
    for place, folders, names in os.walk(folder):
        runs = [name for name in folders if name.isdigit()]
        folders[:] = sorted(name for name in folders if name not in runs and not name.startswith(".system"))
        folders += [max(runs, key=int)] if runs else []
        paths = (pathlib.Path(place) / name for name in sorted(names))
        found += [path for path in paths if path.suffix in _READERS and _holds_letters(path)]
    return found


def _holds_letters(path: pathlib.Path) -> bool:
    if path.suffix == ".parquet":
        return path.name.startswith("dead_letter")
    if path.suffix == ".jsonl":
        return path.parent.name == DEAD_LETTERS
    with _open(path) as database:
        query = "SELECT COUNT(*) FROM sqlite_master WHERE type = 'table' AND name = 'dead_letters'"
        return database is not None and bool(database.execute(query).fetchone()[0])


@contextlib.contextmanager
def _open(path: pathlib.Path) -> typing.Iterator[sqlite3.Connection | None]:
    """Opens a database to read; gives None for a file of another kind.

    Raises:
        OSError: it cannot be read, such as one of another user, one that is locked, or damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(_HEADER))
        if start and start != _HEADER:
            yield None
            return
        url = f"{path.absolute().as_uri()}?mode=ro"
        with contextlib.closing(sqlite3.connect(url, uri=True, timeout=WAIT_S)) as database:
            yield database
    except (sqlite3.Error, OSError) as error:
        raise OSError(
            f"{path} cannot be read: {error}. Read it as its owner, who alone may, in a folder that may be written, "
            "while no other process keeps it locked; restore one that is damaged."
        ) from error


def _of_parquet(path: pathlib.Path) -> typing.Iterator[DeadLetter]:
    time = _written(path)
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches():
            for row in batch.to_pylist():
                code = reason_code(row["reason"])
                yield DeadLetter(time, EXAMPLES, row["table"], str(row["row"]), code, row["reason"], row["content"])


def _of_json_lines(path: pathlib.Path) -> typing.Iterator[DeadLetter]:
    time = _written(path)
    with path.open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            source, code = f"items.{row['modality']}", reason_code(row["reason"])
            content = row.get("content")
            yield DeadLetter(time, EMBEDDING, source, str(row["item_id"]), code, row["reason"], content)


def _of_index(path: pathlib.Path) -> typing.Iterator[DeadLetter]:
    with _open(path) as database:
        if database is None:
            raise ValueError(f"{path} must be an item index. Received: a file of another kind.")
        query = "SELECT source, position, reason, payload FROM dead_letters ORDER BY source, position"
        yield from map(of_stream, (store.DeadLetter(*row) for row in database.execute(query)))


def of_stream(letter: store.DeadLetter) -> DeadLetter:
    """Returns a letter of an index."""
    source, position, reason, payload = letter
    time, code = _event_time(payload), reason_code(reason)
    return DeadLetter(time, STREAM, source, str(position), code, reason, as_text(payload))


def as_text(content: bytes | None) -> str | None:
    """Returns bytes as text, or as base64 where they are no UTF-8.

    >>> as_text(b"caf\\xc3\\xa9"), as_text(b"\\xff\\xfe")
    ('café', 'base64://4=')
    """
    if content is None:
        return None
    try:
        text = content.decode()
        if not text.startswith(_BASE64):
            return text
    except UnicodeDecodeError:
        pass
    return f"{_BASE64}{base64.b64encode(content).decode()}"


def as_bytes(content: str) -> bytes:
    """Returns what `as_text` was given.

    >>> as_bytes("café"), as_bytes("base64://4=")
    (b'caf\\xc3\\xa9', b'\\xff\\xfe')
    """
    marked, encoded = content.startswith(_BASE64), content.removeprefix(_BASE64)
    return base64.b64decode(encoded) if marked else content.encode()


def _written(path: pathlib.Path) -> str:
    return _iso(datetime.datetime.fromtimestamp(path.stat().st_mtime, datetime.timezone.utc))


def _iso(time: datetime.datetime) -> str:
    return time.isoformat(timespec="seconds")


def _event_time(payload: bytes | None) -> str | None:
    try:
        time_us = json.loads(payload or b"")["event_time_us"]
        moment = datetime.datetime.fromtimestamp(0, datetime.timezone.utc) + datetime.timedelta(microseconds=time_us)
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return _iso(moment)


_READERS = {".parquet": _of_parquet, ".jsonl": _of_json_lines, ".sqlite": _of_index}
