"""A SQLite file that several threads and processes share."""

from __future__ import annotations

import contextlib
import os
import pathlib
import sqlite3
import threading
import typing

TIMEOUT_S = 60.0  # that a writer waits for another


class Database:
    """One connection, with transactions that nest.

    A commit is on the disk before it returns, since others act on what they read: a change that a crash of the
    machine took back would be missed by servers that have seen a later one.

    Args:
        path: the file; made where missing, with its folder, for its owner alone to read and write. It must
            be on a local disk (write-ahead log).
        schema: SQL statements that make the tables, separated by semicolons.
        version: of the schema.
        upgrades: by older version, the statements that lead to the next one; they run when such a file is opened.
        shrinks: a new file can give space back, by `PRAGMA incremental_vacuum`.
    Raises:
        ValueError: the file has another version.

    >>> database = Database(":memory:", "CREATE TABLE t (x INTEGER)", 1)
    >>> with database.transaction():
    ...     _ = database.execute("INSERT INTO t VALUES (?)", (1,))
    >>> database.execute("SELECT x FROM t").fetchall()
    [(1,)]
    """

    def __init__(
        self,
        path: str | pathlib.Path,
        schema: str,
        version: int,
        upgrades: typing.Mapping[int, str] | None = None,
        shrinks: bool = False,
    ):
        self.path = str(path)
        if self.path != ":memory:":
            pathlib.Path(self.path).parent.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self.path, os.O_CREAT | os.O_EXCL, 0o600))
        self.lock = threading.RLock()
        self._depth = 0
        self._connection = sqlite3.connect(self.path, timeout=TIMEOUT_S, isolation_level=None, check_same_thread=False)
        if shrinks and not self.execute("PRAGMA page_count").fetchone()[0]:
            self.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a file that has tables it changes nothing, but writes
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=FULL")
        steps = {0: schema, **(upgrades or {})}
        while (found := self._version()) in steps:
            with self.transaction():
                if self._version() == found:  # else another process was faster
                    for statement in steps[found].split(";"):
                        self.execute(statement)
                    self.execute(f"PRAGMA user_version={found + 1 if found else version}")
        if found != version:
            raise ValueError(
                f"{self.path} must have format {version}. Received: {found}. Upgrade tfmm, or name another file."
            )

    def _version(self) -> int:
        return self.execute("PRAGMA user_version").fetchone()[0]

    def execute(
        self, statement: str, values: typing.Sequence[typing.Any] | typing.Mapping[str, typing.Any] = ()
    ) -> sqlite3.Cursor:
        """Runs one statement; read its cursor to the end under `lock` where threads share the connection."""
        return self._connection.execute(statement, values)

    def fetchall(
        self, statement: str, values: typing.Sequence[typing.Any] | typing.Mapping[str, typing.Any] = ()
    ) -> list[typing.Any]:
        """Returns all rows that a query gives."""
        with self.lock:
            return self.execute(statement, values).fetchall()

    def executemany(self, statement: str, values: typing.Iterable[typing.Sequence[typing.Any]]) -> None:
        """Runs one statement for each of `values`, all or none."""
        with self.transaction():
            self._connection.executemany(statement, values)

    def close(self) -> None:
        with self.lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> typing.Iterator[None]:
        """Makes writes inside take effect together or not at all; inner transactions join the outer one."""
        with self.lock, self._begin("BEGIN IMMEDIATE"):
            yield

    @contextlib.contextmanager
    def reading(self) -> typing.Iterator[None]:
        """Makes the reads inside see one state of the file."""
        with self.lock, self._begin("BEGIN"):
            yield

    @contextlib.contextmanager
    def _begin(self, statement: str) -> typing.Iterator[None]:
        if self._depth == 0:
            self.execute(statement)
        self._depth += 1
        try:
            yield
            if self._depth == 1:
                self.execute("COMMIT")
        except BaseException:
            if self._depth == 1 and self._connection.in_transaction:  # SQLite ends it itself where the disk is full
                self.execute("ROLLBACK")
            raise
        finally:
            self._depth -= 1
