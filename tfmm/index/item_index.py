"""The multimodal index table (section 5): every item's int8 embedding, kept as a log of changes in one SQLite file."""

from __future__ import annotations

import contextlib
import pathlib
import sqlite3
import threading
import typing

import numpy as np

MAX_DIM = 1040  # a dot of two int8 rows is a whole number below 2**24, so exact in float32, up to here

_SCHEMA = """
CREATE TABLE IF NOT EXISTS encoders (
    encoder INTEGER PRIMARY KEY, modality TEXT NOT NULL, encoder_version TEXT NOT NULL, dim INTEGER NOT NULL,
    active INTEGER NOT NULL DEFAULT 0, UNIQUE (modality, encoder_version));
CREATE TABLE IF NOT EXISTS embeddings (
    encoder INTEGER NOT NULL, item_id INTEGER NOT NULL, sequence INTEGER NOT NULL, event_time_us INTEGER NOT NULL,
    scale REAL NOT NULL, row BLOB NOT NULL, PRIMARY KEY (encoder, item_id)) WITHOUT ROWID;
CREATE UNIQUE INDEX IF NOT EXISTS changes ON embeddings (encoder, sequence);
CREATE TABLE IF NOT EXISTS items (
    item_id INTEGER PRIMARY KEY, category INTEGER NOT NULL, event_time_us INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS dead_letters (
    source TEXT NOT NULL, position INTEGER NOT NULL, reason TEXT NOT NULL, payload BLOB,
    PRIMARY KEY (source, position, reason));
INSERT OR IGNORE INTO counters VALUES ('sequence', 0);
"""


class EncoderEntry(typing.NamedTuple):
    """One encoder whose embeddings the index holds."""

    modality: str
    encoder_version: str
    dim: int
    active: bool  # the one that snapshots take


class IndexRows(typing.NamedTuple):
    """Embeddings of one modality and encoder version, as parallel arrays."""

    ids: np.ndarray  # int64 [n]
    rows: np.ndarray  # int8 [n, D]
    scales: np.ndarray  # float32 [n]; 0: withdrawn, no embedding
    sequences: np.ndarray  # int64 [n]
    event_times_us: np.ndarray  # int64 [n]

    def __len__(self) -> int:  # rows, not fields
        return len(self.ids)


def concatenate(parts: typing.Sequence[IndexRows]) -> IndexRows:
    """Returns the rows of all `parts`, of which there must be one at least."""
    return IndexRows(*map(np.concatenate, zip(*parts)))


class ItemIndex:
    """The index in a SQLite file, shared by writers and readers in several processes.

    Per encoder version there is one row for each (modality, item id). The newest event time wins, and of equal ones
    the last written; writing the same row twice changes nothing. Every change takes the next sequence number, and
    sequence numbers become visible in ascending order, so that a reader who has seen all up to s misses nothing
    when it asks for those after s. Embeddings of two encoders are never mixed: a new encoder's rows stand beside the
    old ones, which model versions in service still need, until `forget`.

    Args:
        path: the SQLite file; made where missing. Its folder must be on a local disk (write-ahead log).

    >>> index = ItemIndex(":memory:")
    >>> index.write("image", "v1", [7], np.array([[3, 4]], np.int8), [0.2], [1000])
    1
    >>> index.write("image", "v1", [7], np.array([[0, 9]], np.int8), [1 / 9], [999])
    0
    >>> index.changes("image", "v1", after=0).rows.tolist()
    [[3, 4]]
    """

    def __init__(self, path: str | pathlib.Path):
        self.path = str(path)
        if self.path != ":memory:":
            pathlib.Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.RLock()
        self._depth = 0
        self._connection = sqlite3.connect(self.path, timeout=60.0, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        with self.transaction():
            for statement in _SCHEMA.split(";"):
                self._connection.execute(statement)

    def __enter__(self) -> ItemIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    @contextlib.contextmanager
    def transaction(self) -> typing.Iterator[None]:
        """Makes the writes inside take effect together or not at all; inner transactions join the outer one."""
        with self._lock, self._begin("BEGIN IMMEDIATE"):
            yield

    @contextlib.contextmanager
    def reading(self) -> typing.Iterator[None]:
        """Makes the reads inside see one state of the index."""
        with self._lock, self._begin("BEGIN"):
            yield

    @contextlib.contextmanager
    def _begin(self, statement: str) -> typing.Iterator[None]:
        if self._depth == 0:
            self._connection.execute(statement)
        self._depth += 1
        try:
            yield
        except BaseException:
            if self._depth == 1:
                self._connection.execute("ROLLBACK")
            raise
        else:
            if self._depth == 1:
                self._connection.execute("COMMIT")
        finally:
            self._depth -= 1

    # Encoders

    def register_encoder(self, modality: str, encoder_version: str, dim: int) -> int:
        """Makes room for an encoder's rows; the first of a modality is active from the start.

        Returns:
            The number by which the index names this encoder.
        Raises:
            ValueError: `dim` is out of range, or differs from the one registered.
        """
        if not 0 < dim <= MAX_DIM:
            raise ValueError(f"`dim` must lie in 1..{MAX_DIM}: similarities of int8 rows are exact up to there. "
                             f"Received: {dim}.")
        found = self._find_encoder(modality, encoder_version)
        if found is None:
            with self.transaction():
                first = not self._connection.execute("SELECT 1 FROM encoders WHERE modality = ?",
                                                     (modality,)).fetchone()
                self._connection.execute(
                    "INSERT OR IGNORE INTO encoders (modality, encoder_version, dim, active) VALUES (?, ?, ?, ?)",
                    (modality, encoder_version, dim, int(first)))
            found = self._find_encoder(modality, encoder_version)
            assert found is not None  # just written
        if found[1] != dim:
            raise ValueError(f"`dim` of {modality} encoder {encoder_version} must be {found[1]}, as its rows in "
                             f"{self.path}. Received: {dim}. Give a changed encoder another version.")
        return found[0]

    def activate(self, modality: str, encoder_version: str) -> None:
        """Makes this encoder's rows the ones that snapshots take, once its embedding of the catalog is complete."""
        with self.transaction():
            self._encoder(modality, encoder_version)
            self._connection.execute("UPDATE encoders SET active = (encoder_version = ?) WHERE modality = ?",
                                     (encoder_version, modality))

    def forget(self, modality: str, encoder_version: str) -> int:
        """Deletes the rows of an encoder that no model version in service needs; returns their number."""
        with self.transaction():
            encoder, _ = self._encoder(modality, encoder_version)
            deleted = self._connection.execute("DELETE FROM embeddings WHERE encoder = ?", (encoder,)).rowcount
            self._connection.execute("DELETE FROM encoders WHERE encoder = ?", (encoder,))
        return deleted

    def encoders(self) -> list[EncoderEntry]:
        """Returns the encoders, oldest first."""
        with self._lock:
            found = self._connection.execute(
                "SELECT modality, encoder_version, dim, active FROM encoders ORDER BY encoder").fetchall()
        return [EncoderEntry(modality, version, dim, bool(active)) for modality, version, dim, active in found]

    def active_encoders(self) -> dict[str, EncoderEntry]:
        """Returns the active encoder of each modality."""
        return {entry.modality: entry for entry in sorted(self.encoders()) if entry.active}

    def has_encoder(self, modality: str, encoder_version: str) -> bool:
        """Returns whether the index knows this encoder."""
        return self._find_encoder(modality, encoder_version) is not None

    def _find_encoder(self, modality: str, encoder_version: str) -> tuple[int, int] | None:
        with self._lock:
            return self._connection.execute(
                "SELECT encoder, dim FROM encoders WHERE modality = ? AND encoder_version = ?",
                (modality, encoder_version)).fetchone()

    def _encoder(self, modality: str, encoder_version: str) -> tuple[int, int]:
        found = self._find_encoder(modality, encoder_version)
        if found is None:
            known = [(entry.modality, entry.encoder_version) for entry in self.encoders()]
            raise ValueError(f"`modality` and `encoder_version` must be one of {known} in {self.path}. "
                             f"Received: {(modality, encoder_version)}.")
        return found

    # Embeddings

    def write(self, modality: str, encoder_version: str, ids: typing.Any, rows: np.ndarray, scales: typing.Any,
              event_times_us: typing.Any) -> int:
        """Writes embeddings in one transaction; newest event time wins, writing twice is harmless.

        Args:
            modality: image, text or vector.
            encoder_version: of the encoder that made the rows.
            ids: int64 [n], fingerprints, none of them 0.
            rows: int8 [n, D].
            scales: float32 [n]; 1 / norm of the row, or 0 to withdraw the item.
            event_times_us: int64 [n], microseconds since 1970.
        Returns:
            The number of rows that changed, each with a new sequence number.
        Raises:
            ValueError: shapes or dtypes that do not fit, or an id of 0.
        """
        ids, scales = np.asarray(ids, np.int64), np.asarray(scales, np.float32)
        times = np.asarray(event_times_us, np.int64)
        if rows.dtype != np.int8 or rows.ndim != 2 or not len(rows) == len(ids) == len(scales) == len(times):
            raise ValueError(f"`rows` must be int8 [n, D], with n `ids`, `scales` and `event_times_us`. Received: "
                             f"{rows.dtype} {rows.shape}, {ids.shape}, {scales.shape}, {times.shape}.")
        if not np.all(ids):
            raise ValueError("`ids` must not hold 0, which means padding. Received: 0.")
        encoder = self.register_encoder(modality, encoder_version, rows.shape[1])
        execute, changed = self._connection.execute, 0
        with self.transaction():
            (sequence,) = execute("SELECT value FROM counters WHERE name = 'sequence'").fetchone()
            for item_id, row, scale, time in zip(ids.tolist(), rows, scales.tolist(), times.tolist()):
                blob = row.tobytes()
                old = execute("SELECT event_time_us, scale, row FROM embeddings WHERE encoder = ? AND item_id = ?",
                              (encoder, item_id)).fetchone()
                if old is not None and (old[0] > time or old == (time, scale, blob)):
                    continue
                if old is not None and old[1:] == (scale, blob):  # the same embedding, confirmed later
                    execute("UPDATE embeddings SET event_time_us = ? WHERE encoder = ? AND item_id = ?",
                            (time, encoder, item_id))
                    continue
                sequence, changed = sequence + 1, changed + 1
                execute("INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?)",
                        (encoder, item_id, sequence, time, scale, blob))
            execute("UPDATE counters SET value = ? WHERE name = 'sequence'", (sequence,))
        return changed

    def withdraw(self, ids: typing.Any, event_times_us: typing.Any) -> int:
        """Withdraws items' embeddings of every modality and encoder; older events no longer bring them back.

        Returns:
            The number of rows that changed.
        """
        with self.transaction():
            return sum(
                self.write(entry.modality, entry.encoder_version, ids, np.zeros([len(ids), entry.dim], np.int8),
                           np.zeros(len(ids), np.float32), event_times_us)
                for entry in self.encoders())

    def changes(self, modality: str, encoder_version: str, after: int, limit: int = 1024) -> IndexRows:
        """Returns the oldest `limit` changes after a sequence number, in ascending order; withdrawn ones included."""
        encoder, dim = self._encoder(modality, encoder_version)
        with self._lock:
            found = self._connection.execute(
                "SELECT item_id, row, scale, sequence, event_time_us FROM embeddings "
                "WHERE encoder = ? AND sequence > ? ORDER BY sequence LIMIT ?", (encoder, after, limit)).fetchall()
        return _to_rows(found, dim)

    def embeddings(self, modality: str, encoder_version: str) -> IndexRows:
        """Returns every embedding that is not withdrawn, by ascending item id."""
        encoder, dim = self._encoder(modality, encoder_version)
        with self._lock:
            found = self._connection.execute(
                "SELECT item_id, row, scale, sequence, event_time_us FROM embeddings "
                "WHERE encoder = ? AND scale != 0 ORDER BY item_id", (encoder,))
            parts = []
            while block := found.fetchmany(65_536):
                parts.append(_to_rows(block, dim))
        return concatenate(parts) if parts else _to_rows([], dim)

    def last_sequence(self, modality: str, encoder_version: str) -> int:
        """Returns the sequence number of the newest change, 0 where there is none."""
        encoder, _ = self._encoder(modality, encoder_version)
        with self._lock:
            return self._connection.execute("SELECT COALESCE(MAX(sequence), 0) FROM embeddings WHERE encoder = ?",
                                            (encoder,)).fetchone()[0]

    def lag(self, modality: str, encoder_version: str, watermark: int) -> int:
        """Returns how many changes a reader at `watermark` has not seen."""
        encoder, _ = self._encoder(modality, encoder_version)
        with self._lock:
            return self._connection.execute("SELECT COUNT(*) FROM embeddings WHERE encoder = ? AND sequence > ?",
                                            (encoder, watermark)).fetchone()[0]

    # Items, positions in sources, dead letters

    def write_items(self, ids: typing.Any, categories: typing.Any, event_times_us: typing.Any) -> None:
        """Keeps items' categories (int64 [n], 0: none); newest event time wins."""
        values = zip(*(np.asarray(column, np.int64).tolist() for column in (ids, categories, event_times_us)))
        with self.transaction():
            self._connection.executemany(
                "INSERT INTO items VALUES (?, ?, ?) ON CONFLICT (item_id) DO UPDATE SET category = excluded.category, "
                "event_time_us = excluded.event_time_us WHERE excluded.event_time_us >= items.event_time_us", values)

    def categories(self, ids: typing.Any) -> np.ndarray:
        """Returns the items' categories, int64 [n]; 0 where the item or its category is unknown."""
        with self._lock:
            found = [self._connection.execute("SELECT category FROM items WHERE item_id = ?", (item_id,)).fetchone()
                     for item_id in np.asarray(ids, np.int64).tolist()]
        return np.array([0 if row is None else row[0] for row in found], np.int64)

    def position(self, source: str) -> int:
        """Returns how far a source of events has been consumed, 0 at the start."""
        with self._lock:
            found = self._connection.execute("SELECT value FROM counters WHERE name = ?", (f"position:{source}",))
            return (found.fetchone() or (0,))[0]

    def commit_position(self, source: str, position: int) -> None:
        """Moves a source's position forward, inside the transaction that writes what the events led to."""
        with self.transaction():
            self._connection.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = MAX(value, "
                "excluded.value)", (f"position:{source}", position))

    def write_dead_letter(self, source: str, position: int, reason: str, payload: bytes | None) -> None:
        """Keeps an event that could not be used, with the reason."""
        with self.transaction():
            self._connection.execute("INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?)",
                                     (source, position, reason, payload))

    def dead_letters(self, source: str | None = None) -> list[tuple[str, int, str, bytes | None]]:
        """Returns (source, position, reason, payload) of unusable events, in the order of their positions."""
        with self._lock:
            return self._connection.execute(
                "SELECT source, position, reason, payload FROM dead_letters WHERE ? IS NULL OR source = ? "
                "ORDER BY source, position", (source, source)).fetchall()


def _to_rows(found: list[tuple[int, bytes, float, int, int]], dim: int) -> IndexRows:
    ids, blobs, scales, sequences, times = zip(*found) if found else ((), (), (), (), ())
    return IndexRows(
        np.array(ids, np.int64), np.frombuffer(b"".join(blobs), np.int8).reshape(-1, dim),
        np.array(scales, np.float32), np.array(sequences, np.int64), np.array(times, np.int64))
