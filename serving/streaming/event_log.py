"""The durable log that new item events come from, behind one small source interface, opened by URL."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import pathlib
import typing

from tfmm import registered
from tfmm.index import database

FORMAT_VERSION = 1
GROUP = "tfmm.event_sources"  # entry points of other packages: a URL's scheme = module:Class
SOURCES = {  # by scheme
    "sqlite": "serving.streaming.event_log:SQLiteEventLog",
    "kafka": "serving.streaming.kafka_events:KafkaTopic",
    "folder": "serving.streaming.folder_events:EventFolder",
    **dict.fromkeys(("redis", "rediss"), "serving.streaming.redis_events:RedisStream"),
}
READ_BYTES = 1 << 26  # a read ends with the payload that reaches them, so that memory holds what it gives
_log = logging.getLogger(__name__)
_SCHEMA = """
CREATE TABLE log (id TEXT NOT NULL);
INSERT INTO log VALUES (lower(hex(randomblob(16))));
CREATE TABLE events (offset INTEGER PRIMARY KEY AUTOINCREMENT, payload BLOB NOT NULL);
"""


class Event(typing.NamedTuple):
    """One event of a source."""

    offset: int  # 1, 2, ... in the order of arrival
    payload: bytes


class EventSource(typing.Protocol):
    """What the streaming job reads; picklable, since the job's workers open it themselves.

    A source of one's own is a class that is called with its URL, registered as an entry point of `GROUP`. One that
    consists of several logs, such as a topic of partitions, has in place of `read` a method `parts()`, which returns
    those that there are now, each with a name and offsets of its own; it is asked again every few seconds. Where it
    cannot look now, and returns none, it has why in `fault`, which is None otherwise. One that has
    `append(payloads)` takes dead letters that are sent again.
    """

    @property
    def name(self) -> str:
        """Names the log and its contents: a log that starts anew has another name."""

    def read(self, after: int, limit: int) -> list[Event]:
        """Returns up to `limit` events with larger offsets than `after`, ascending; does not wait.

        The index keeps the offset of the last event that it took, and the job begins behind it when it starts again.
        """


def open_source(url: str | os.PathLike[str]) -> typing.Any:
    """Opens an `EventSource`.

    Args:
        url: a plain path is a `SQLiteEventLog`, as `sqlite:///` before it says; `kafka://`, `redis://`, `folder://`,
            see the classes that `SOURCES` names; other schemes are those of entry points of the group
            `tfmm.event_sources`.
    Raises:
        ValueError: an unknown scheme, or one's own rules.

    >>> open_source("queue://shop/items")
    Traceback (most recent call last):
    ...
    ValueError: The scheme of an event source's URL must be one of ['folder', 'kafka', 'redis', 'rediss', 'sqlite']...
    """
    opened, text = registered.resolve(url, GROUP, SOURCES, "an event source")
    return opened(text)


def source_class(url: str | os.PathLike[str]) -> typing.Any:
    """Returns the class that `open_source` would call; raises as it does for an unknown scheme."""
    return registered.resolve(url, GROUP, SOURCES, "an event source")[0]


def parts_of(source: typing.Any) -> list[EventSource]:
    """Returns the logs that a source consists of now; itself, where it is one."""
    return list(source.parts()) if hasattr(source, "parts") else [source]


def up_to(events: typing.Iterable[Event], limit: int) -> list[Event]:
    """Takes `limit` events, or fewer, up to the one whose payload reaches `READ_BYTES` together with those before."""
    found: list[Event] = []
    size_bytes = 0
    for event in itertools.islice(events, limit):
        found.append(event)
        size_bytes += len(event.payload)
        if size_bytes >= READ_BYTES:
            break
    return found


def tell_of_lost(name: str, what: str) -> None:
    """Logs that events are gone, or may be, that the index has not seen."""
    _log.error("lost: %s of %s; `tfmm embed` brings their items from the catalog", what, name)


class SQLiteEventLog:
    """An append-only log in a SQLite file, for any number of writers and readers on one machine.

    Args:
        path: the file, with `sqlite:///` before it or without; made where missing.

    >>> log = SQLiteEventLog(getfixture("tmp_path") / "events.sqlite")
    >>> log.append([b"one", b"two"])
    2
    >>> log.read(after=1, limit=10)
    [Event(offset=2, payload=b'two')]
    """

    def __init__(self, path: str | pathlib.Path):
        self._database = database.Database(registered.sqlite_path(path), _SCHEMA, FORMAT_VERSION)
        self.path = self._database.path

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return SQLiteEventLog, (self.path,)

    def __enter__(self) -> SQLiteEventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    @property
    def name(self) -> str:
        """Names the log by an id of its own, drawn when it was made."""
        return f"sqlite:{self._database.fetchall('SELECT id FROM log')[0][0]}"

    def append(self, payloads: typing.Iterable[bytes]) -> int:
        """Appends events durably, all or none; returns the offset of the last event in the log."""
        with self._database.transaction():
            self._database.executemany("INSERT INTO events (payload) VALUES (?)", ((payload,) for payload in payloads))
            ((last,),) = self._database.fetchall("SELECT COALESCE(MAX(offset), 0) FROM events")
        return last

    def read(self, after: int, limit: int) -> list[Event]:
        """As `EventSource.read`; fewer events where they are large together."""
        query = "SELECT offset, CAST(payload AS BLOB) FROM events WHERE offset > ? ORDER BY offset LIMIT ?"
        with self._database.lock, contextlib.closing(self._database.execute(query, (after, limit))) as rows:
            return up_to(itertools.starmap(Event, rows), limit)
