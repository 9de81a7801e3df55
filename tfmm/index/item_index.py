"""The multimodal index table (section 5): every item's int8 embedding, as a log of changes in SQLite."""

from __future__ import annotations

import contextlib
import pathlib
import typing

import numpy as np

from tfmm.index import catalog_memory, database
from tfmm.index import rows as rows_lib

FORMAT_VERSION = 2
MAX_LETTER_BYTES = 1 << 24  # of a dead letter's payload that are kept; a row of SQLite must stay below 10**9
MAX_REASON = 1000  # characters of a dead letter's reason
_SCHEMA = """
CREATE TABLE encoders (
    encoder INTEGER PRIMARY KEY, modality TEXT NOT NULL, encoder_version TEXT NOT NULL,
    dim INTEGER NOT NULL, active INTEGER NOT NULL, UNIQUE (modality, encoder_version));
CREATE TABLE embeddings (
    encoder INTEGER NOT NULL, item_id INTEGER NOT NULL, sequence INTEGER NOT NULL,
    event_time_us INTEGER NOT NULL, scale REAL NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (encoder, item_id)) WITHOUT ROWID;
CREATE UNIQUE INDEX changes ON embeddings (encoder, sequence);
CREATE TABLE items (
    item_id INTEGER PRIMARY KEY, category INTEGER NOT NULL, event_time_us INTEGER NOT NULL,
    withdrawn_at_us INTEGER);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE dead_letters (
    source TEXT NOT NULL, position INTEGER NOT NULL, reason TEXT NOT NULL, payload BLOB,
    PRIMARY KEY (source, position, reason));
INSERT INTO counters VALUES ('sequence', CAST(strftime('%s', 'now') AS INTEGER) * 1000000);
"""
_RECORD = "item_id, row, scale, sequence, event_time_us"


class EncoderEntry(typing.NamedTuple):
    """One encoder whose embeddings the index holds."""

    modality: str
    encoder_version: str
    dim: int
    active: bool  # the one that snapshots take


class ItemIndex:
    """The index in a SQLite file, shared by writers and readers in several processes.

    Per encoder version there is one row for each (modality, item id). The newest event time wins, and of
    equal ones the last written; writing the same row twice changes nothing. Only an event that is newer than its
    withdrawal brings an item back, with any encoder. Every change takes the next sequence number, and they become
    visible in ascending order: a reader who has seen all up to s misses nothing when it asks for those after s.
    They start at the file's birth in microseconds since 1970, so that a model which was exported from an earlier
    index gets all of this one.

    Embeddings of two encoders are never mixed: a new encoder's rows
    stand beside the old ones, which model versions in service still need, until `forget`.

    Args:
        path: the SQLite file; made where missing. It must be on a local disk.

    Attributes:
        catalog: what it remembers of the catalog.

    >>> index = ItemIndex(":memory:")
    >>> index.write("image", "v1", [7], np.array([[3, 4]], np.int8), [0.2], [1000])
    1
    >>> index.write("image", "v1", [7], np.array([[0, 9]], np.int8), [1 / 9], [999])
    0
    >>> index.changes("image", "v1", after=0).rows.tolist()
    [[3, 4]]
    """

    def __init__(self, path: str | pathlib.Path):
        self._database = database.Database(path, _SCHEMA, FORMAT_VERSION)
        self.path = self._database.path
        self.catalog = catalog_memory.CatalogMemory(self._database)

    def __enter__(self) -> ItemIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._database.close()

    def transaction(self) -> contextlib.AbstractContextManager[None]:
        """Makes writes inside take effect together or not at all; inner transactions join the outer one."""
        return self._database.transaction()

    def reading(self) -> contextlib.AbstractContextManager[None]:
        """Makes the reads inside see one state of the index."""
        return self._database.reading()

    # Encoders

    def register_encoder(self, modality: str, encoder_version: str, dim: int) -> int:
        """Makes room for an encoder's rows; the first of a modality is active from the start.

        Returns:
            The number by which the index names this encoder.
        Raises:
            ValueError: `dim` is out of range, or differs from the one registered.
        """
        if not 0 < dim <= rows_lib.MAX_DIM:
            raise ValueError(
                f"`dim` must lie in 1..{rows_lib.MAX_DIM}: similarities of int8 rows are exact up to there. "
                f"Received: {dim}."
            )
        if not self.has_encoder(modality, encoder_version):
            with self.transaction():
                is_first = all(entry.modality != modality for entry in self.encoders())
                self._database.execute(
                    "INSERT OR IGNORE INTO encoders (modality, encoder_version, dim, active) VALUES (?, ?, ?, ?)",
                    (modality, encoder_version, dim, is_first),
                )
        encoder, registered_dim = self._encoder(modality, encoder_version)
        if registered_dim != dim:
            raise ValueError(
                f"`dim` of {modality} encoder {encoder_version} must be {registered_dim}, as its rows in "
                f"{self.path}. Received: {dim}. Give a changed encoder another version."
            )
        return encoder

    def activate(self, modality: str, encoder_version: str) -> None:
        """Makes snapshots take this encoder's rows, once its embedding of the catalog is complete."""
        with self.transaction():
            self._encoder(modality, encoder_version)
            self._database.execute(
                "UPDATE encoders SET active = (encoder_version = ?) WHERE modality = ?",
                (encoder_version, modality),
            )

    def forget(self, modality: str, encoder_version: str) -> int:
        """Deletes the rows of an encoder that no model version in service needs; returns their number."""
        with self.transaction():
            encoder, _ = self._encoder(modality, encoder_version)
            deleted = self._database.execute("DELETE FROM embeddings WHERE encoder = ?", (encoder,)).rowcount
            self._database.execute("DELETE FROM encoders WHERE encoder = ?", (encoder,))
            self.catalog.forget(encoder)
        return deleted

    def encoders(self) -> list[EncoderEntry]:
        """Returns the encoders, oldest first."""
        found = self._database.fetchall("SELECT modality, encoder_version, dim, active FROM encoders ORDER BY encoder")
        return [EncoderEntry(modality, version, dim, bool(active)) for modality, version, dim, active in found]

    def active_encoders(self) -> dict[str, EncoderEntry]:
        """Returns the active encoder of each modality."""
        return {entry.modality: entry for entry in sorted(self.encoders()) if entry.active}

    def has_encoder(self, modality: str, encoder_version: str) -> bool:
        """Returns whether the index knows this encoder."""
        return bool(self._find_encoder(modality, encoder_version))

    def _find_encoder(self, modality: str, encoder_version: str) -> list[tuple[int, int]]:
        return self._database.fetchall(
            "SELECT encoder, dim FROM encoders WHERE modality = ? AND encoder_version = ?",
            (modality, encoder_version),
        )

    def _encoder(self, modality: str, encoder_version: str) -> tuple[int, int]:
        for found in self._find_encoder(modality, encoder_version):
            return found
        known = [(entry.modality, entry.encoder_version) for entry in self.encoders()]
        raise ValueError(
            f"`modality` and `encoder_version` must be one of {known} in {self.path}. "
            f"Received: {(modality, encoder_version)}."
        )

    # Embeddings

    def write(
        self,
        modality: str,
        encoder_version: str,
        ids: typing.Any,
        rows: np.ndarray,
        scales: typing.Any,
        event_times_us: typing.Any,
    ) -> int:
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
            raise ValueError(
                f"`rows` must be int8 [n, D], with n `ids`, `scales` and `event_times_us`. Received: "
                f"{rows.dtype} {rows.shape}, {ids.shape}, {scales.shape}, {times.shape}."
            )
        if not np.all(ids):
            raise ValueError("`ids` must not hold 0, which means padding. Received: 0.")
        execute, changed = self._database.execute, 0
        with self.transaction():
            encoder = self.register_encoder(modality, encoder_version, rows.shape[1])
            (sequence,) = execute("SELECT value FROM counters WHERE name = 'sequence'").fetchone()
            for item_id, row, scale, time in zip(ids.tolist(), rows, scales.tolist(), times.tolist()):
                withdrawn = execute("SELECT withdrawn_at_us FROM items WHERE item_id = ?", (item_id,)).fetchone()
                if withdrawn is not None and withdrawn[0] is not None and time <= withdrawn[0]:
                    continue
                blob = row.tobytes()
                old = execute(
                    "SELECT event_time_us, scale, row FROM embeddings WHERE encoder = ? AND item_id = ?",
                    (encoder, item_id),
                ).fetchone()
                if old is not None and (old[0] > time or old == (time, scale, blob)):
                    continue
                if old is not None and old[1:] == (scale, blob):  # the same embedding, confirmed later
                    execute(
                        "UPDATE embeddings SET event_time_us = ? WHERE encoder = ? AND item_id = ?",
                        (time, encoder, item_id),
                    )
                    continue
                sequence, changed = sequence + 1, changed + 1
                execute(
                    "INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?, ?, ?, ?)",
                    (encoder, item_id, sequence, time, scale, blob),
                )
            execute("UPDATE counters SET value = ? WHERE name = 'sequence'", (sequence,))
        return changed

    def is_older(self, modality: str, encoder_version: str, ids: typing.Any, event_times_us: typing.Any) -> np.ndarray:
        """Tells, bool [n], of which items the index knows something newer than these times: `write` leaves them out."""
        query = (
            "SELECT 1 FROM embeddings WHERE encoder = ? AND item_id = ? AND event_time_us > ? "
            "UNION ALL SELECT 1 FROM items WHERE item_id = ? AND withdrawn_at_us > ?"
        )
        encoder, _ = self._encoder(modality, encoder_version)
        columns = (np.asarray(column, np.int64).tolist() for column in (ids, event_times_us))
        found = [self._database.fetchall(query, (encoder, i, time, i, time)) for i, time in zip(*columns)]
        return np.array([bool(newer) for newer in found], bool)

    def withdraw(self, ids: typing.Any, event_times_us: typing.Any) -> int:
        """Withdraws items' embeddings of every modality and encoder, later ones included.

        Only an event that is newer brings an item back, so a catalog that still lists it does not.

        Returns:
            The number of rows that changed.
        """
        changed = 0
        with self.transaction():
            for modality, encoder_version, dim, _ in self.encoders():
                rows, scales = np.zeros([len(ids), dim], np.int8), np.zeros(len(ids), np.float32)
                changed += self.write(modality, encoder_version, ids, rows, scales, event_times_us)
            columns = (np.asarray(column, np.int64).tolist() for column in (ids, event_times_us))
            self._database.executemany(
                "INSERT INTO items VALUES (?, 0, 0, ?) ON CONFLICT (item_id) DO UPDATE SET withdrawn_at_us = "
                "MAX(COALESCE(withdrawn_at_us, excluded.withdrawn_at_us), excluded.withdrawn_at_us)",
                zip(*columns),
            )
        return changed

    def changes(self, modality: str, encoder_version: str, after: int, limit: int = 1024) -> rows_lib.IndexRows:
        """Returns the first `limit` changes after a sequence number, ascending, withdrawals included."""
        encoder, dim = self._encoder(modality, encoder_version)
        found = self._database.fetchall(
            f"SELECT {_RECORD} FROM embeddings WHERE encoder = ? AND sequence > ? ORDER BY sequence LIMIT ?",
            (encoder, after, limit),
        )
        return rows_lib.from_records(found, dim)

    def embeddings(self, modality: str, encoder_version: str) -> rows_lib.IndexRows:
        """Returns every embedding that is not withdrawn, by ascending item id."""
        encoder, dim = self._encoder(modality, encoder_version)
        parts = [rows_lib.from_records([], dim)]
        with self._database.lock:
            found = self._database.execute(
                f"SELECT {_RECORD} FROM embeddings WHERE encoder = ? AND scale != 0 ORDER BY item_id",
                (encoder,),
            )
            while block := found.fetchmany(65_536):
                parts.append(rows_lib.from_records(block, dim))
        return rows_lib.concatenate(parts)

    def last_sequence(self, modality: str, encoder_version: str) -> int:
        """Returns the sequence number of the newest change, 0 where there is none."""
        encoder, _ = self._encoder(modality, encoder_version)
        ((last,),) = self._database.fetchall(
            "SELECT COALESCE(MAX(sequence), 0) FROM embeddings WHERE encoder = ?", (encoder,)
        )
        return last

    def lag(self, modality: str, encoder_version: str, watermark: int) -> int:
        """Returns how many changes a reader at `watermark` has not seen."""
        encoder, _ = self._encoder(modality, encoder_version)
        ((count,),) = self._database.fetchall(
            "SELECT COUNT(*) FROM embeddings WHERE encoder = ? AND sequence > ?", (encoder, watermark)
        )
        return count

    # Items, positions in sources, dead letters

    def write_items(self, ids: typing.Any, categories: typing.Any, event_times_us: typing.Any) -> None:
        """Keeps items' categories (int64 [n], 0: none); newest event time wins."""
        columns = (np.asarray(column, np.int64).tolist() for column in (ids, categories, event_times_us))
        self._database.executemany(
            "INSERT INTO items VALUES (?, ?, ?, NULL) ON CONFLICT (item_id) DO UPDATE SET "
            "category = excluded.category, event_time_us = excluded.event_time_us "
            "WHERE excluded.event_time_us >= items.event_time_us",
            zip(*columns),
        )

    def categories(self, ids: typing.Any) -> np.ndarray:
        """Returns the items' categories, int64 [n]; 0 where the item or its category is unknown."""
        query = "SELECT category FROM items WHERE item_id = ?"
        found = [self._database.fetchall(query, (item_id,)) for item_id in np.asarray(ids, np.int64).tolist()]
        return np.array([rows[0][0] if rows else 0 for rows in found], np.int64)

    def position(self, source: str) -> int:
        """Returns how far a source of events has been consumed, 0 at the start."""
        query = "SELECT value FROM counters WHERE name = ?"
        found = self._database.fetchall(query, (f"position:{source}",))
        return found[0][0] if found else 0

    def commit_position(self, source: str, position: int) -> None:
        """Moves a source's position forward, in the transaction that writes what its events led to."""
        with self.transaction():
            self._database.execute(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET "
                "value = MAX(value, excluded.value)",
                (f"position:{source}", position),
            )

    def write_dead_letter(self, source: str, position: int, reason: str, payload: bytes | None) -> None:
        """Keeps an event that could not be used, with the reason.

        Both always fit: what is longer than `MAX_LETTER_BYTES` or `MAX_REASON` is cut off at the end, and
        characters that no UTF-8 can hold are escaped in the reason.
        """
        storable = reason[:MAX_REASON].replace("\0", r"\x00").encode("utf-8", "backslashreplace").decode()[:MAX_REASON]
        kept = None if payload is None else payload[:MAX_LETTER_BYTES]
        with self.transaction():
            self._database.execute(
                "INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?)", (source, position, storable, kept)
            )

    def dead_letters(self, source: str | None = None) -> list[tuple[str, int, str, bytes | None]]:
        """Returns (source, position, reason, payload) of unusable events, in the order of positions."""
        return self._database.fetchall(
            "SELECT source, position, reason, payload FROM dead_letters WHERE ? IS NULL OR source = ? "
            "ORDER BY source, position",
            (source, source),
        )
