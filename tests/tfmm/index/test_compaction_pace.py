"""Other writers' turns while an index is compacted."""

import threading
import time

import numpy as np
import pytest

from tfmm.index import compaction, encode, item_index, store

STEPS = 8


def test_another_writer_has_its_turn_between_any_two_steps(tmp_path, monkeypatch):
    """Each step is longer than SQLite's longest wait between two looks at a lock."""
    path, in_step, progress = tmp_path / "items.sqlite", threading.Event(), []
    rows = np.ones((STEPS, 4), np.int8)
    with item_index.ItemIndex(path) as index:
        index.write("image", "v1", range(1, STEPS + 1), rows, encode.scales_of(rows), [1] * STEPS)
        index.withdraw(range(1, STEPS + 1), [2] * STEPS)
        release, written = compaction._release, []

        def slow(opened, item_id):
            progress.append(len(written))
            in_step.set()
            time.sleep(0.4)
            return release(opened, item_id)

        def write():
            with item_index.ItemIndex(path) as own:
                while len(progress) < STEPS:
                    in_step.wait(60)
                    in_step.clear()
                    own.apply(store.IndexBatch(positions={"events": len(written) + 1}))
                    written.append(len(progress))

        monkeypatch.setattr(compaction, "_release", slow)
        monkeypatch.setattr(compaction, "ITEMS_PER_STEP", 1)
        writer = threading.Thread(target=write)
        writer.start()
        assert index.compact() == (STEPS, 0)
        in_step.set()
        writer.join()
    assert progress[-1] >= STEPS // 2, f"writes before each step: {progress}"


def test_writers_wait_for_each_other_as_long_as_before_where_the_log_cannot_be_shortened(tmp_path, monkeypatch):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        fetchall = index._database.fetchall
        before = fetchall("PRAGMA busy_timeout")

        def failing(statement, *values):
            if "wal_checkpoint" in statement:
                raise OSError(28, "No space left on device")
            return fetchall(statement, *values)

        monkeypatch.setattr(index._database, "fetchall", failing)
        with pytest.raises(OSError, match="No space left"):
            index.compact()
        assert fetchall("PRAGMA busy_timeout") == before
