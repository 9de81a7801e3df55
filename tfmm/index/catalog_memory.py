"""What the index remembers of the catalog: the types of its ids, and what it said of each item the last time."""

from __future__ import annotations

import typing

import numpy as np

from tfmm.index import database

_TABLE = (
    "CREATE TABLE IF NOT EXISTS catalog (encoder INTEGER NOT NULL, item_id INTEGER NOT NULL, content INTEGER NOT NULL, "
    "PRIMARY KEY (encoder, item_id)) WITHOUT ROWID"
)
_TYPES = ("int64", "string")
FACTS = 0  # stands for an encoder where an item's category is meant


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

    def news(self, encoder: int, ids: typing.Any, contents: typing.Any) -> np.ndarray:
        """Tells which items the catalog says something else of than the last time, and keeps what it says now.

        Args:
            encoder: number of the encoder that read the contents; FACTS for categories.
            ids: int64 [n], fingerprints.
            contents: int64 [n], fingerprints of what the catalog says.
        Returns:
            bool [n]. An item that is seen for the first time is no news, nor is one that is withdrawn.
        """
        query = (
            "SELECT content, COALESCE(scale, 1) FROM catalog LEFT JOIN embeddings USING (encoder, item_id) "
            "WHERE encoder = ? AND item_id = ?"
        )
        is_news = np.zeros(len(ids), bool)
        columns = (np.asarray(column, np.int64).tolist() for column in (ids, contents))
        with self._database.transaction():
            for place, (item_id, content) in enumerate(zip(*columns)):
                last = self._database.fetchall(query, (encoder, item_id))
                if not last or last[0][0] != content:
                    is_news[place] = bool(last) and last[0][1] != 0
                    values = encoder, item_id, content
                    self._database.execute("INSERT OR REPLACE INTO catalog VALUES (?, ?, ?)", values)
        return is_news

    def forget(self, encoder: int) -> None:
        """Deletes what an encoder read."""
        self._database.execute("DELETE FROM catalog WHERE encoder = ?", (encoder,))
