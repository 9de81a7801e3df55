"""Tests of the index in a SQLite file: what `test_store.py` does not ask of every store."""

import contextlib
import sqlite3
import subprocess
import sys

import numpy as np
import pytest

from tfmm.index import item_index, store

FORMAT_2 = """
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
INSERT INTO counters VALUES ('sequence', 100), ('position:log', 7);
INSERT INTO encoders VALUES (1, 'image', 'v1', 2, 1);
INSERT INTO embeddings VALUES (1, 5, 100, 3, 0.2, x'0304'), (1, 6, 99, 4, 0.0, x'0000');
INSERT INTO items VALUES (5, 9, 3, NULL), (6, 9, 1, 4);
INSERT INTO dead_letters VALUES ('log', 2, 'not JSON', x'3f');
PRAGMA user_version=2;
"""


def test_full_disk_is_named_and_leaves_nothing():
    with item_index.ItemIndex(":memory:") as index:
        index._database.execute("PRAGMA max_page_count = 1")
        letter = store.DeadLetter("log", 1, "not JSON", bytes(10**6))
        with pytest.raises(sqlite3.OperationalError, match="disk is full") as fault:
            index.apply(store.IndexBatch(dead_letters=[letter], positions={"log": 1}))
        assert index.is_failing(fault.value)
        index._database.execute("PRAGMA max_page_count = 1000000")
        assert index.dead_letters() == [] and index.position("log") == 0
        index.apply(store.IndexBatch(dead_letters=[letter]))
        assert len(index.dead_letters()) == 1


def test_killed_writer_leaves_a_whole_index(tmp_path, root):
    """A process that is killed inside a transaction takes all of it along, and blocks nobody."""
    program = (
        "import os, numpy as np\n"
        "from tfmm.index import item_index\n"
        f"index = item_index.ItemIndex({str(tmp_path / 'items.sqlite')!r})\n"
        "index.write('image', 'v1', [1], np.ones([1, 2], np.int8), [0.5], [1])\n"
        "with index._database.transaction():\n"
        "    index.write('image', 'v1', [2], np.ones([1, 2], np.int8), [0.5], [1])\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=root).returncode == -9
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        assert index.embeddings("image", "v1").ids.tolist() == [1]
        assert index.write("image", "v1", [2], np.ones([1, 2], np.int8), [0.5], [1]) == 1
        assert np.diff(index.changes("image", "v1", 0).sequences).tolist() == [1]  # the lost one is taken again


def test_file_of_the_format_before_is_upgraded_with_all_that_counts(tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "items.sqlite")) as connection:
        connection.executescript(FORMAT_2)
    for _ in range(2):
        with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
            assert index.active_encoders()["image"] == store.EncoderEntry("image", "v1", 2, True)
            found = index.changes("image", "v1", 0)
            assert (found.ids.tolist(), found.sequences.tolist()) == ([6, 5], [99, 100])
            assert (index.position("log"), len(index.dead_letters())) == (7, 1)
            assert index.write("image", "v1", [6], np.ones([1, 2], np.int8), [0.5], [4]) == 0  # withdrawn at 4
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        assert index.write("image", "v1", [6], np.ones([1, 2], np.int8), [0.5], [5]) == 1
        assert index.last_sequence("image", "v1") == 101


@pytest.mark.parametrize("version", [1, 9])
def test_file_of_another_format_is_refused(version, tmp_path):
    item_index.ItemIndex(tmp_path / "items.sqlite").close()
    with contextlib.closing(sqlite3.connect(tmp_path / "items.sqlite")) as connection:
        connection.execute(f"PRAGMA user_version={version}")
    with pytest.raises(ValueError, match=rf"must have format 4\. Received: {version}\. Upgrade tfmm, or name"):
        item_index.ItemIndex(tmp_path / "items.sqlite")
