"""What the index remembers of the catalog: the types of its ids, and what it said of each item the last time."""

from __future__ import annotations

import typing

import numpy as np

from tfmm import fingerprints
from tfmm.index import database
from tfmm.index.rows import IndexRows

_TABLE = (
    "CREATE TABLE IF NOT EXISTS catalog (encoder INTEGER NOT NULL, item_id INTEGER NOT NULL, content INTEGER NOT NULL, "
    "PRIMARY KEY (encoder, item_id)) WITHOUT ROWID"
)
_LAST = (
    "SELECT content, COALESCE(scale, NOT EXISTS (SELECT 1 FROM withdrawals WHERE item_id = catalog.item_id)) "
    "FROM catalog LEFT JOIN embeddings USING (encoder, item_id) WHERE encoder = ? AND item_id = ?"
)
_TYPES = ("int64", "string")


class CatalogMemory:
    """A table beside the embeddings in the index's file; made where missing.

    Args:
        store: the index's.
    """

    def __init__(self, store: database.Database):
        self._database = store
        self._database.execute(_TABLE)

    def id_types(self) -> dict[str, str]:
        """Returns "int64" or "string" by field (`item_id`, `category`), as far as a catalog told them."""
        found = self._database.fetchall("SELECT name, value FROM counters WHERE name LIKE 'id\\_type:%' ESCAPE '\\'")
        return {name.partition(":")[2]: _TYPES[value] for name, value in found}

    def keep_id_types(self, types: typing.Mapping[str, str]) -> None:
        """Remembers the types of the catalog's ids.

        Raises:
            ValueError: the index holds ids of another type.
        """
        with self._database.transaction():
            known = self.id_types()
            for field, kind in types.items():
                if known.get(field, kind) != kind:
                    raise ValueError(
                        f"`{field}` of the catalog must be {known[field]}, as in {self._database.path}. Received: "
                        f"{kind}. Write it in that type, or name another index."
                    )
                self._database.execute(
                    "INSERT OR REPLACE INTO counters VALUES (?, ?)", (f"id_type:{field}", _TYPES.index(kind))
                )

    def times(self, encoder: int, rows: IndexRows, catalog_times_us: np.ndarray | None) -> np.ndarray:
        """Tells from when on rows count, and keeps what the catalog says now; inside a transaction.

        Args:
            encoder: number of the encoder that made the rows.
            rows: n of them.
            catalog_times_us: int64 [n], see `store.TableRows`.
        Returns:
            int64 [n]: the rows' event times, and the later of both where the catalog says something else than the last
            time. An item that is seen for the first time is no news, nor is one that is withdrawn.
        """
        times = rows.event_times_us.copy()
        if catalog_times_us is None:
            return times
        contents = fingerprints.fingerprint([row.tobytes() for row in rows.rows])
        for place in np.flatnonzero(catalog_times_us):
            key = encoder, int(rows.ids[place])
            last = self._database.fetchall(_LAST, key)
            if not last or last[0][0] != contents[place]:
                if last and last[0][1] != 0:
                    times[place] = max(times[place], catalog_times_us[place])
                self._database.execute("INSERT OR REPLACE INTO catalog VALUES (?, ?, ?)", (*key, int(contents[place])))
        return times

    def forget(self, encoder: int) -> None:
        """Deletes what an encoder read."""
        self._database.execute("DELETE FROM catalog WHERE encoder = ?", (encoder,))
