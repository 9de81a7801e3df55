"""Lookups beside the sequence that they saw, while others write: never a change beyond it, never one left out."""

import threading

import numpy as np
import pytest
import tensorflow as tf

from tfmm import saved_model
from tfmm.index import graph_table, snapshot

DIM, IDS = 6, np.arange(1, 5001)


class Table(tf.Module):
    """A SavedModel of one table, read at once, or as a reader does that asks for the sequence by itself."""

    def __init__(self):
        super().__init__()
        table = snapshot.SnapshotTable(IDS, np.ones([len(IDS), DIM], np.int8), np.ones(len(IDS), np.float32),
                                       np.ones(len(IDS), np.int64), DIM, "v1", 1)  # fmt: skip
        self.table = graph_table.GraphTable("image", table, DIM, len(IDS) + 1, "v1")

    def signatures(self):
        def at_once(ids, others):
            (one, other), watermark = self.table.lookup_at_once([ids, others])
            return {"one": one.rows, "other": other.rows, "mask": other.mask, "watermark": watermark}

        def upsert(**values):
            return {"statuses": self.table.upsert(**values)}

        ids = tf.TensorSpec([None], tf.int64)
        upserts = {
            "ids": ids, "rows": tf.TensorSpec([None, DIM], tf.int8), "scales": tf.TensorSpec([None], tf.float32),
            "sequences": ids, "encoder_version": tf.TensorSpec([], tf.string),
        }  # fmt: skip
        return {
            "at_once": tf.function(at_once).get_concrete_function(ids=ids, others=tf.TensorSpec([1, None], tf.int64)),
            "upsert": tf.function(upsert).get_concrete_function(**upserts),
        }


@pytest.fixture
def loaded(tmp_path):
    module = Table()
    saved_model.save(module, module.signatures(), tmp_path / "1")
    with saved_model.load_session(tmp_path / "1") as session:
        yield session


def write(loaded, sequence, ids=IDS):
    return loaded("upsert", {
        "ids": ids, "rows": np.full([len(ids), DIM], sequence % 100, np.int8), "scales": np.ones(len(ids)),
        "sequences": np.full(len(ids), sequence), "encoder_version": np.array("v1", object),
    })["statuses"]  # fmt: skip


def test_reads_hold_every_change_up_to_their_sequence_and_none_beyond(loaded):
    """Two writers in turn set all rows to their sequence; three readers look 100 times each."""
    wrong, failures, ends = [], [], threading.Event()
    sequences = iter(range(2, 10**9))
    turn = threading.Lock()

    def writer():
        while not ends.is_set():
            with turn:  # a replicator sends one batch after the other
                write(loaded, next(sequences))

    def reader():
        try:
            for _ in range(100):
                found = loaded("at_once", {"ids": IDS, "others": IDS[None, ::2]})
                values = {*np.unique(found["one"]).tolist(), *np.unique(found["other"]).tolist()}
                if values != {int(found["watermark"]) % 100}:
                    wrong.append((values, int(found["watermark"])))
        except Exception as error:
            failures.append(error)

    writers = [threading.Thread(target=writer) for _ in range(2)]
    readers = [threading.Thread(target=reader) for _ in range(3)]
    for thread in (*writers, *readers):
        thread.start()
    for thread in readers:
        thread.join()
    ends.set()
    for thread in writers:
        thread.join()
    assert not failures and not wrong, (failures, wrong[:3])


def test_an_unknown_item_is_masked_and_a_refused_write_leaves_readers_free(loaded):
    with pytest.raises(tf.errors.OutOfRangeError, match="Reached limit"):
        write(loaded, 7, np.arange(9000, 9010))
    found = loaded("at_once", {"ids": IDS, "others": np.array([[1, 0, 9999]])})
    assert found["mask"].tolist() == [[True, False, False]] and found["watermark"] == 1
    assert write(loaded, 8).tolist() == [graph_table.WRITTEN] * len(IDS)
    assert loaded("at_once", {"ids": IDS, "others": np.array([[1]])})["watermark"] == 8
