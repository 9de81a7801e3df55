"""The items of an index whose vectors are most similar to one item's."""

from __future__ import annotations

import typing

import numpy as np

from tfmm.fingerprints import fingerprint
from tfmm.index.snapshot import SnapshotTable

_CHUNK = 65_536  # rows of the table that are compared at once


def similar(table: SnapshotTable, item_id: int | str, count: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Returns the most similar other items and their cosines, the most similar first, of equal ones the lesser id.

    One pass over the table, 4 D x 65,536 bytes at a time.

    Args:
        table: a modality of `tfmm.index.snapshot`.
        item_id: the item.
        count: how many; all others where they are fewer.
    Returns:
        int64 [count] ids as the index has them, and float32 [count].
    Raises:
        ValueError: the item has no vector in the table, or `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"`count` must be at least 1. Received: {count}.")
    own = fingerprint([item_id])
    found = table.lookup(own)
    if not found.mask[0] or not found.scales[0]:
        raise ValueError(
            f"The item must have a vector in the index. Received: {item_id!r}, none among {len(table):,} items."
        )
    query = found.rows[0].astype(np.float32) * found.scales[0]
    cosines = np.empty(len(table), np.float32)
    for start in range(0, len(table), _CHUNK):
        rows = slice(start, start + _CHUNK)
        cosines[rows] = (table.rows[rows].astype(np.float32) @ query) * table.scales[rows]
    cosines[(table.ids == own[0]) | (np.asarray(table.scales) == 0)] = -np.inf  # itself, and items without a vector
    best = np.lexsort((table.ids, -cosines))[:count]
    best = best[np.isfinite(cosines[best])]
    return np.asarray(table.ids)[best], cosines[best]


def titles(items: typing.Any, ids: np.ndarray) -> list[dict[str, typing.Any]]:
    """Returns `item_id` as the catalog writes it and `title`, where there is one, by the items' ids in the index."""
    places = {int(own): place for place, own in enumerate(fingerprint(items["item_id"].to_pylist()))}
    columns = [name for name in ("item_id", "title") if name in items.column_names]

    def row(item: int) -> dict[str, typing.Any]:
        if item not in places:
            return {"item_id": item}
        return {name: items[name][places[item]].as_py() for name in columns}

    return [row(int(item)) for item in ids]
