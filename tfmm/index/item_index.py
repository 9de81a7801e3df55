"""The index store in a SQLite file."""

from __future__ import annotations

import os
import pathlib
import sqlite3
import typing

import numpy as np

from tfmm import registered
from tfmm.index import catalog_memory, compaction, database, store
from tfmm.index import rows as rows_lib
from tfmm.vectors import Vectors

FORMAT_VERSION = 4
_SCHEMA = """
CREATE TABLE encoders (
    encoder INTEGER PRIMARY KEY, modality TEXT NOT NULL, encoder_version TEXT NOT NULL,
    dim INTEGER NOT NULL, active INTEGER NOT NULL, layout TEXT NOT NULL DEFAULT '',
    since INTEGER NOT NULL DEFAULT 0, UNIQUE (modality, encoder_version));
CREATE TABLE embeddings (
    encoder INTEGER NOT NULL, item_id INTEGER NOT NULL, sequence INTEGER NOT NULL,
    event_time_us INTEGER NOT NULL, scale REAL NOT NULL, row BLOB NOT NULL,
    PRIMARY KEY (encoder, item_id)) WITHOUT ROWID;
CREATE UNIQUE INDEX changes ON embeddings (encoder, sequence);
CREATE TABLE withdrawals (
    item_id INTEGER PRIMARY KEY, event_time_us INTEGER NOT NULL, sequence INTEGER NOT NULL DEFAULT 0);
CREATE INDEX withdrawn ON withdrawals (sequence);
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE dead_letters (
    source TEXT NOT NULL, position INTEGER NOT NULL, reason TEXT NOT NULL, payload BLOB,
    PRIMARY KEY (source, position, reason));
INSERT INTO counters VALUES ('sequence', CAST(strftime('%s', 'now') AS INTEGER) * 1000000);
"""
_UPGRADES = {
    2: """
ALTER TABLE encoders ADD COLUMN layout TEXT NOT NULL DEFAULT '';
CREATE TABLE withdrawals (item_id INTEGER PRIMARY KEY, event_time_us INTEGER NOT NULL);
INSERT INTO withdrawals SELECT item_id, withdrawn_at_us FROM items WHERE withdrawn_at_us IS NOT NULL;
DROP TABLE items;
""",
    3: """
ALTER TABLE encoders ADD COLUMN since INTEGER NOT NULL DEFAULT 0;
ALTER TABLE withdrawals ADD COLUMN sequence INTEGER NOT NULL DEFAULT 0;
CREATE INDEX withdrawn ON withdrawals (sequence);
""",
}
_RECORD = "item_id, row, scale, sequence, event_time_us"
_WITHDRAWN = """withdrawals AS one WHERE sequence > MAX(
        :after, (SELECT since FROM encoders WHERE encoder = :encoder)) AND NOT EXISTS (
    SELECT 1 FROM embeddings WHERE encoder = :encoder AND item_id = one.item_id)"""  # whose rows were compacted
_CHANGES = f"""
SELECT * FROM (
    SELECT {_RECORD} FROM embeddings WHERE encoder = :encoder AND sequence > :after ORDER BY sequence LIMIT :limit)
UNION ALL SELECT * FROM (
    SELECT item_id, zeroblob(:dim), 0.0, sequence, event_time_us FROM {_WITHDRAWN} ORDER BY sequence LIMIT :limit)
ORDER BY 4 LIMIT :limit
"""
_ROW = "SELECT scale, row FROM embeddings WHERE encoder = ? AND item_id = ?"
_LAG = f"""
SELECT (SELECT COUNT(*) FROM embeddings WHERE encoder = :encoder AND sequence > :after) +
    (SELECT COUNT(*) FROM {_WITHDRAWN})
"""
_LAST = f"""
SELECT MAX((SELECT COALESCE(MAX(sequence), 0) FROM embeddings WHERE encoder = :encoder),
    COALESCE((SELECT sequence FROM {_WITHDRAWN} ORDER BY sequence DESC LIMIT 1), 0))
"""
_VALUE_ERRORS = (sqlite3.DataError, sqlite3.IntegrityError)  # the file is well, and cannot hold this value


class ItemIndex(store.IndexStore):
    """The index in a SQLite file, shared by writers and readers in several processes; see `store.IndexStore`.

    Args:
        url: the file's path, with `sqlite:///` before it or without; it must be on a local disk.
        create: makes the file where it is missing.
    Raises:
        FileNotFoundError: it is missing, and `create` is False.
        ValueError: the file has a newer format; one of an older format is upgraded.

    >>> index = ItemIndex(":memory:")
    >>> index.write("image", "v1", [7], np.array([[3, 4]], np.int8), [0.2], [1000])
    1
    >>> index.write("image", "v1", [7], np.array([[0, 9]], np.int8), [1 / 9], [999])
    0
    >>> index.changes("image", "v1", after=0).rows.tolist()
    [[3, 4]]
    """

    def __init__(self, url: str | os.PathLike[str], *, create: bool = True):
        path = registered.sqlite_path(url)
        if not create and not pathlib.Path(path).is_file():
            raise FileNotFoundError(f"{path} does not exist. `tfmm embed` makes the item index.")
        self._database = database.Database(path, _SCHEMA, FORMAT_VERSION, _UPGRADES, shrinks=True)
        self.path = self._database.path
        self._catalog = catalog_memory.CatalogMemory(self._database)

    @property
    def url(self) -> str:
        return f"{registered.SQLITE}{self.path}"

    def close(self) -> None:
        self._database.close()

    def apply(self, batch: store.IndexBatch) -> store.Applied:
        older: set[int] = set()
        with self._database.transaction():
            changed = [self._write(table, older) for table in batch.rows]
            withdrawn = self._withdraw(batch.withdrawn, older)
            self._database.executemany("INSERT OR REPLACE INTO dead_letters VALUES (?, ?, ?, ?)",
                                       [store.storable(letter) for letter in batch.dead_letters])  # fmt: skip
            self._database.executemany(
                "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = "
                "MAX(value, excluded.value)",
                [(f"position:{source}", position) for source, position in batch.positions.items()],
            )
        return store.Applied(tuple(changed), withdrawn, tuple(sorted(older)))

    def is_failing(self, error: Exception) -> bool:
        return isinstance(error, sqlite3.Error) and not isinstance(error, _VALUE_ERRORS)

    def register_encoder(self, modality: str, encoder_version: str, dim: int, layout: str = "") -> None:
        self._register(modality, encoder_version, dim, layout)

    def _register(self, modality: str, encoder_version: str, dim: int, layout: str = "") -> int:
        """Returns the number by which the file names this encoder."""
        if not self._find_encoder(modality, encoder_version):
            store.verify_dim(dim, layout)
            with self._database.transaction():
                is_first = all(entry.modality != modality for entry in self.encoders())
                self._database.execute(
                    "INSERT OR IGNORE INTO encoders (modality, encoder_version, dim, active, layout, since) "
                    "VALUES (?, ?, ?, ?, ?, ?)",
                    (modality, encoder_version, dim, is_first, layout, self.newest_sequence()),
                )
        encoder, registered_dim = self._encoder(modality, encoder_version)
        if registered_dim != dim:
            raise ValueError(
                f"`dim` of {modality} encoder {encoder_version} must be {registered_dim}, as its rows in "
                f"{self.path}. Received: {dim}. Give a changed encoder another version."
            )
        return encoder

    def activate(self, modality: str, encoder_version: str) -> None:
        with self._database.transaction():
            self._encoder(modality, encoder_version)
            self._database.execute(
                "UPDATE encoders SET active = (encoder_version = ?) WHERE modality = ?",
                (encoder_version, modality),
            )

    def forget(self, modality: str, encoder_version: str) -> int:
        with self._database.transaction():
            encoder, _ = self._encoder(modality, encoder_version)
            deleted = self._database.execute("DELETE FROM embeddings WHERE encoder = ?", (encoder,)).rowcount
            self._database.execute("DELETE FROM encoders WHERE encoder = ?", (encoder,))
            self._catalog.forget(encoder)
        return deleted

    def encoders(self) -> list[store.EncoderEntry]:
        query = "SELECT modality, encoder_version, dim, active, layout FROM encoders ORDER BY encoder"
        found = [store.EncoderEntry(*entry) for entry in self._database.fetchall(query)]
        return [entry._replace(active=bool(entry.active)) for entry in found]

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

    def _write(self, table: store.TableRows, older: set[int]) -> int:
        """Writes rows of one encoder inside a transaction; returns how many changed, and adds to `older`."""
        own = table.rows
        execute, changed = self._database.execute, 0
        encoder = self._register(table.modality, table.encoder_version, own.rows.shape[1])
        (sequence,) = execute("SELECT value FROM counters WHERE name = 'sequence'").fetchone()
        given = [None] * len(own) if table.given is None else table.given
        times = self._catalog.times(encoder, own, table.catalog_times_us)
        arrays = (own.ids.tolist(), own.rows, own.scales.tolist(), times.tolist(), given)
        for item_id, row, scale, time, is_given in zip(*arrays):
            withdrawn = execute("SELECT event_time_us FROM withdrawals WHERE item_id = ?", (item_id,)).fetchone()
            if withdrawn is not None and time <= withdrawn[0]:
                older |= {item_id} if time < withdrawn[0] else set()
                continue
            old = execute(
                "SELECT event_time_us, scale, row FROM embeddings WHERE encoder = ? AND item_id = ?",
                (encoder, item_id),
            ).fetchone()
            if old is not None and is_given is not None and old[1] != 0:
                row = np.where(is_given, row, np.frombuffer(old[2], np.int8))
            blob = row.tobytes()
            if old is not None and (old[0] > time or old == (time, scale, blob)):
                older |= {item_id} if old[0] > time else set()
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

    def _withdraw(self, withdrawn: typing.Sequence[store.Withdrawal], older: set[int]) -> int:
        """Withdraws items inside a transaction, later encoders' rows included; returns how many rows changed."""
        if not withdrawn:
            return 0
        ids, times = (np.array(column, np.int64) for column in zip(*withdrawn))
        changed = 0
        for modality, encoder_version, dim, *_ in self.encoders():
            nothing = np.zeros([len(ids), dim], np.int8), np.zeros(len(ids), np.float32)
            rows = rows_lib.IndexRows(ids, *nothing, np.zeros(len(ids), np.int64), times)
            changed += self._write(store.TableRows(modality, encoder_version, rows), older)
        self._database.executemany(
            "INSERT INTO withdrawals (item_id, event_time_us) VALUES (?, ?) ON CONFLICT (item_id) DO UPDATE SET "
            "event_time_us = MAX(event_time_us, excluded.event_time_us)",
            withdrawn,
        )
        return changed

    def changes(self, modality: str, encoder_version: str, after: int, limit: int = 1024) -> rows_lib.IndexRows:
        encoder, dim = self._encoder(modality, encoder_version)
        values = {"encoder": encoder, "dim": dim, "after": after, "limit": limit}
        return rows_lib.from_records(self._database.fetchall(_CHANGES, values), dim)

    def snapshot(self, encoder_versions: typing.Mapping[str, str]) -> dict[str, store.TableState]:
        with self._database.reading():
            return {modality: self._state(modality, version) for modality, version in encoder_versions.items()}

    def _state(self, modality: str, encoder_version: str) -> store.TableState:
        encoder, dim = self._encoder(modality, encoder_version)
        parts = [rows_lib.from_records([], dim)]
        found = self._database.execute(
            f"SELECT {_RECORD} FROM embeddings WHERE encoder = ? AND scale != 0 ORDER BY item_id", (encoder,)
        )
        while block := found.fetchmany(65_536):
            parts.append(rows_lib.from_records(block, dim))
        return store.TableState(rows_lib.concatenate(parts), self.last_sequence(modality, encoder_version))

    def last_sequence(self, modality: str, encoder_version: str) -> int:
        encoder, _ = self._encoder(modality, encoder_version)
        ((last,),) = self._database.fetchall(_LAST, {"encoder": encoder, "after": 0})
        return last

    def lag(self, modality: str, encoder_version: str, watermark: int) -> int:
        encoder, _ = self._encoder(modality, encoder_version)
        ((count,),) = self._database.fetchall(_LAG, {"encoder": encoder, "after": watermark})
        return count

    def live_ids(self, modality: str, encoder_version: str) -> np.ndarray:
        encoder, _ = self._encoder(modality, encoder_version)
        query = "SELECT item_id FROM embeddings WHERE encoder = ? AND scale != 0 ORDER BY item_id"
        return np.array([item_id for (item_id,) in self._database.fetchall(query, (encoder,))], np.int64)

    def look_up(self, encoder_versions: typing.Mapping[str, str], ids: np.ndarray) -> dict[str, Vectors]:
        result, places = {}, dict(zip(ids.tolist(), range(len(ids))))
        with self._database.reading():
            for modality, version in encoder_versions.items():
                encoder, dim = self._encoder(modality, version)
                rows, scales = np.zeros((len(ids), dim), np.int8), np.zeros(len(ids), np.float32)
                for item_id, place in places.items():
                    found = self._database.execute(_ROW, (encoder, item_id)).fetchone()
                    if found is not None and found[0] != 0:
                        scales[place], rows[place] = found[0], np.frombuffer(found[1], np.int8)
                result[modality] = Vectors(rows, scales, scales != 0)
        return result

    def compact(self, keep_letters: int | None = None) -> store.Compacted:
        return compaction.compact(self._database, keep_letters)

    def size(self) -> store.Size:
        return compaction.size(self._database)

    def newest_sequence(self) -> int:
        ((newest,),) = self._database.fetchall("SELECT value FROM counters WHERE name = 'sequence'")
        return newest

    def position(self, source: str) -> int:
        query = "SELECT value FROM counters WHERE name = ?"
        found = self._database.fetchall(query, (f"position:{source}",))
        return found[0][0] if found else 0

    def positions(self) -> dict[str, int]:
        found = self._database.fetchall("SELECT name, value FROM counters WHERE name LIKE 'position:%' ORDER BY name")
        return {name.removeprefix("position:"): value for name, value in found}

    def letter_counts(self) -> dict[str, int]:
        query = "SELECT source, COUNT(*) FROM dead_letters GROUP BY source ORDER BY source"
        return dict(self._database.fetchall(query))

    def id_types(self) -> dict[str, str]:
        return self._catalog.id_types()

    def keep_id_types(self, types: typing.Mapping[str, str]) -> None:
        self._catalog.keep_id_types(types)

    def dead_letters(self, source: str | None = None) -> list[store.DeadLetter]:
        found = self._database.fetchall(
            "SELECT source, position, reason, payload FROM dead_letters WHERE ? IS NULL OR source = ? "
            "ORDER BY source, position",
            (source, source),
        )
        return [store.DeadLetter(*letter) for letter in found]
