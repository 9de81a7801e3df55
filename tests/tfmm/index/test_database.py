"""What opening a file that others share asks of them: nothing."""

import os
import pathlib
import tempfile

import numpy as np
import pytest

from tfmm.index import database, item_index

NOBODY = 65534  # for whom, other than for root, a file that is not to be written is not


@pytest.fixture
def path(tmp_path):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        index.write("text", "v1", [1], np.ones((1, 4), np.int8), np.ones(1, np.float32), [1])
    return tmp_path / "items.sqlite"


def test_an_index_opens_while_another_writes_to_it(path, monkeypatch):
    with item_index.ItemIndex(path) as writer, writer._database.transaction():
        writer._database.execute("DELETE FROM embeddings")
        monkeypatch.setattr(database, "TIMEOUT_S", 0.0)
        with item_index.ItemIndex(path) as index:
            assert index.live_ids("text", "v1").tolist() == [1]


def test_a_file_that_may_only_be_read_opens():
    with tempfile.TemporaryDirectory() as folder:
        path, own = pathlib.Path(folder) / "items.sqlite", os.geteuid()
        with item_index.ItemIndex(path) as index:
            index.write("text", "v1", [1], np.ones((1, 4), np.int8), np.ones(1, np.float32), [1])
        os.chmod(folder, 0o777)
        os.chmod(path, 0o444)
        try:
            if own == 0:
                os.seteuid(NOBODY)
            with item_index.ItemIndex(path) as index:
                assert index.live_ids("text", "v1").tolist() == [1]
        finally:
            os.seteuid(own)


def test_a_new_index_can_give_space_back(path):
    with item_index.ItemIndex(path) as index:
        assert index._database.fetchall("PRAGMA auto_vacuum") == [(2,)]
