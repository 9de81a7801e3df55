"""Gives back what an index in a SQLite file no longer needs, while others read and write it."""

from __future__ import annotations

import contextlib
import os
import time
import typing

from tfmm.index import database, store

ITEMS_PER_STEP = 500  # whose rows are deleted in one transaction: writers wait for milliseconds
PAGES_PER_STEP = 500  # of the file, that are given back in one transaction
PAUSE_S = 0.11  # between two transactions at least: a waiting writer looks at the lock each 0.1 s, as SQLite does
PATIENCE_MS = 500  # with readers of old states, while writers wait
_KEPT = """
DELETE FROM dead_letters WHERE source = ? AND (position, reason) IN (
    SELECT position, reason FROM dead_letters WHERE source = ? ORDER BY position DESC, reason LIMIT ? OFFSET ?)
"""


def compact(opened: database.Database, keep_letters: int | None) -> store.Compacted:
    """Deletes the rows of withdrawn items, of which `withdrawals` tells all tables from then on, and old dead letters.

    The file gets smaller where it was made by `Database(shrinks=True)`; else later rows fill the space.
    """
    steps = _Steps(opened)
    withdrawn, start, is_full = 0, -(1 << 63), True
    while is_full and start < 1 << 63:
        with steps.transaction():
            query = "SELECT item_id FROM withdrawals WHERE item_id >= ? ORDER BY item_id LIMIT ?"
            items = [item_id for (item_id,) in opened.execute(query, (start, ITEMS_PER_STEP)).fetchall()]
            withdrawn += sum(_release(opened, item_id) for item_id in items)
        is_full = len(items) == ITEMS_PER_STEP
        start = items[-1] + 1 if items else start
    letters = 0 if keep_letters is None else _delete_letters(opened, steps, keep_letters)
    _shrink(opened, steps)
    return store.Compacted(withdrawn, letters)


class _Steps:
    """Transactions with time in between, as much as each took, in which other writers have their turn."""

    def __init__(self, opened: database.Database):
        self._opened, self._next = opened, 0.0  # monotonic seconds

    @contextlib.contextmanager
    def transaction(self) -> typing.Iterator[None]:
        time.sleep(max(0.0, self._next - time.monotonic()))
        with self._opened.transaction():
            start = time.monotonic()
            yield
        end = time.monotonic()
        self._next = end + max(PAUSE_S, end - start)


def _shrink(opened: database.Database, steps: _Steps) -> None:
    """Gives free pages of the file back to the disk, where it can."""
    free = size(opened).free_bytes
    while free and opened.fetchall("PRAGMA auto_vacuum")[0][0]:
        with steps.transaction():
            opened.fetchall(f"PRAGMA incremental_vacuum({PAGES_PER_STEP})")
        free, before = size(opened).free_bytes, free
        if free >= before:  # writers free pages too
            break
    with opened.lock:
        opened.fetchall(f"PRAGMA busy_timeout={PATIENCE_MS}")
        try:
            opened.fetchall("PRAGMA wal_checkpoint(TRUNCATE)")  # of the log, too; while others read it, later
        finally:
            opened.fetchall(f"PRAGMA busy_timeout={1000 * database.TIMEOUT_S:.0f}")


def _release(opened: database.Database, item_id: int) -> int:
    """Deletes a withdrawn item's rows, inside a transaction; those of tables that it has come back to stay."""
    query = "SELECT encoder, sequence FROM embeddings WHERE encoder IN (SELECT encoder FROM encoders) AND item_id = ? "
    found = opened.execute(query + "AND scale = 0", (item_id,)).fetchall()
    if found:
        newest = max(sequence for _, sequence in found)
        statement = "UPDATE withdrawals SET sequence = MAX(sequence, ?) WHERE item_id = ?"
        opened.execute(statement, (newest, item_id))
    for encoder, _ in found:
        opened.execute("DELETE FROM embeddings WHERE encoder = ? AND item_id = ?", (encoder, item_id))
    return len(found)


def _delete_letters(opened: database.Database, steps: _Steps, keep: int) -> int:
    deleted = 0
    for (source,) in opened.fetchall("SELECT DISTINCT source FROM dead_letters"):
        step = ITEMS_PER_STEP
        while step == ITEMS_PER_STEP:
            with steps.transaction():
                step = opened.execute(_KEPT, (source, source, ITEMS_PER_STEP, keep)).rowcount
            deleted += step
    return deleted


def size(opened: database.Database) -> store.Size:
    """Returns the bytes of the file, and of its log of writes that are not in it yet."""
    pages, page_bytes, free = (
        opened.fetchall(f"PRAGMA {name}")[0][0] for name in ("page_count", "page_size", "freelist_count")
    )
    log = f"{opened.path}-wal"
    log_bytes = os.path.getsize(log) if os.path.exists(log) else 0
    return store.Size(pages * page_bytes + log_bytes, free * page_bytes)
