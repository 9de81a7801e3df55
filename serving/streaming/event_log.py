"""The durable log that new item events come from, behind one small source interface."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import typing
import uuid


class Event(typing.NamedTuple):
    """One event of a source."""

    offset: int  # 1, 2, ... in the order of arrival
    payload: bytes


class EventSource(typing.Protocol):
    """What the streaming job reads; picklable, since the job's workers open it themselves."""

    @property
    def name(self) -> str:
        """Names the log and its contents: a log that starts anew has another name."""

    def read(self, after: int, limit: int) -> list[Event]:
        """Returns up to `limit` events with larger offsets than `after`, in ascending order; does not wait."""


class SQLiteEventLog:
    """An append-only log in a SQLite file, for any number of writers and readers on one machine.

    Args:
        path: the file; made where missing.

    >>> log = SQLiteEventLog(getfixture("tmp_path") / "events.sqlite")
    >>> log.append([b"one", b"two"])
    2
    >>> log.read(after=1, limit=10)
    [Event(offset=2, payload=b'two')]
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        self._connection: sqlite3.Connection | None = None

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return SQLiteEventLog, (self.path,)

    def __enter__(self) -> SQLiteEventLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @property
    def name(self) -> str:
        return f"sqlite:{self._open().execute('SELECT id FROM log').fetchone()[0]}"

    def append(self, payloads: typing.Iterable[bytes]) -> int:
        """Appends events durably, all or none; returns the offset of the last event in the log."""
        connection = self._open()
        with contextlib.closing(connection.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            try:
                cursor.executemany("INSERT INTO events (payload) VALUES (?)", ((payload,) for payload in payloads))
                (last,) = cursor.execute("SELECT COALESCE(MAX(offset), 0) FROM events").fetchone()
            except BaseException:
                cursor.execute("ROLLBACK")
                raise
            cursor.execute("COMMIT")
        return last

    def read(self, after: int, limit: int) -> list[Event]:
        found = self._open().execute("SELECT offset, payload FROM events WHERE offset > ? ORDER BY offset LIMIT ?",
                                     (after, limit))
        return [Event(offset, bytes(payload)) for offset, payload in found]

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            pathlib.Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None, check_same_thread=False)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("CREATE TABLE IF NOT EXISTS log (only INTEGER PRIMARY KEY CHECK (only = 1), id TEXT)")
            connection.execute("INSERT OR IGNORE INTO log VALUES (1, ?)", (uuid.uuid4().hex,))
            connection.execute("CREATE TABLE IF NOT EXISTS events (offset INTEGER PRIMARY KEY AUTOINCREMENT, "
                               "payload BLOB NOT NULL)")
            connection.execute("COMMIT")
            self._connection = connection
        return self._connection
