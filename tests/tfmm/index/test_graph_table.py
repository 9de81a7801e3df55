"""Tests of the table inside a SavedModel: loaded as C++ servers load it, written by several threads."""

import gc
import os
import pathlib
import tempfile
import threading

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfmm.index import encode, graph_table, snapshot, table_file

DIM = 6
SPECS = {
    "ids": tf.TensorSpec([None], tf.int64),
    "rows": tf.TensorSpec([None, DIM], tf.int8),
    "scales": tf.TensorSpec([None], tf.float32),
    "sequences": tf.TensorSpec([None], tf.int64),
    "encoder_version": tf.TensorSpec([], tf.string),
}


class Server(tf.Module):
    """A SavedModel that is one table."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def signatures(self):
        def lookup(ids):
            return dict(zip(("rows", "scales", "mask"), self.table.lookup(ids)))

        def upsert(**values):
            return {"statuses": self.table.upsert(**values)}

        return {
            "lookup": tf.function(lookup).get_concrete_function(ids=SPECS["ids"]),
            "upsert": tf.function(upsert).get_concrete_function(**SPECS),
            "status": tf.function(self.table.status).get_concrete_function(),
        }


class Loaded:
    """A SavedModel in a Session, the C++ loader of TensorFlow Serving."""

    def __init__(self, folder, **settings):
        graph = tf.Graph()
        with graph.as_default():
            self.session = tf.compat.v1.Session(graph=graph, config=tf.compat.v1.ConfigProto(**settings))
            signatures = tf.compat.v1.saved_model.loader.load(
                self.session, ["serve"], str(folder)).signature_def  # fmt: skip
            self.calls = {name: self._callable(signatures[name]) for name in ("lookup", "upsert", "status")}

    def _callable(self, signature):
        inputs, outputs = sorted(signature.inputs), sorted(signature.outputs)
        call = self.session.make_callable(
            [signature.outputs[name].name for name in outputs], [signature.inputs[name].name for name in inputs]
        )
        return lambda **values: dict(zip(outputs, call(*(values[name] for name in inputs))))

    def lookup(self, ids):
        found = self.calls["lookup"](ids=ids)
        return found["rows"], found["scales"], found["mask"]

    def upsert(self, ids, rows, scales, sequences, encoder_version="v1"):
        return self.calls["upsert"](ids=ids, rows=rows, scales=scales, sequences=sequences,
                                    encoder_version=encoder_version)["statuses"].tolist()  # fmt: skip

    def status(self):
        return self.calls["status"]()


def some_rows(count, seed=0):
    return encode.quantize(np.random.default_rng(seed).normal(size=[count, DIM]))


def a_snapshot(ids=(5, -3, 8)):
    rows, scales = some_rows(len(ids))
    sequences = np.arange(1, len(ids) + 1)
    return snapshot.SnapshotTable(np.array(ids), rows, scales, sequences, DIM, "v1", 10)


def save(folder, table=None, capacity=100):
    server = Server(graph_table.GraphTable("image", table, DIM, capacity, "v1"))
    tf.saved_model.save(server, str(folder), signatures=server.signatures())
    return folder


@pytest.fixture
def saved(tmp_path):
    """Saves a table and loads it in a Session; call it with the table's arguments."""

    loaded = []

    def save_and_load(table=None, capacity=100, **settings):
        loaded.append(Loaded(save(tmp_path / "model", table, capacity), **settings))
        return loaded[-1]

    yield save_and_load
    for one in loaded:
        one.session.close()


def test_snapshot_is_served_after_loading(saved):
    table = a_snapshot()
    loaded = saved(table)
    rows, scales, mask = loaded.lookup([8, 0, 5, 77, -3])
    assert mask.tolist() == [True, False, True, False, True]
    np.testing.assert_array_equal(rows[mask], table.rows[[2, 0, 1]])
    np.testing.assert_array_equal(scales[mask], table.scales[[2, 0, 1]])
    assert not rows[~mask].any() and not scales[~mask].any()
    assert loaded.status() == {"watermark": 10, "size": 3, "capacity": 100, "encoder_version": b"v1"}


@pytest.mark.parametrize("count", [table_file.PIECE, 2 * table_file.PIECE + 1])
def test_each_row_of_a_snapshot_of_several_pieces_is_loaded_with_its_sequence(saved, count):
    ids = np.random.default_rng(0).permutation(np.arange(1, count + 1) * 7 - 3 * count)
    ids[ids == 0] = 1
    table = a_snapshot(ids)
    loaded = saved(table, 2 * count, inter_op_parallelism_threads=1, intra_op_parallelism_threads=1)
    rows, scales, mask = loaded.lookup(ids)
    assert mask.all() and loaded.status()["size"] == count
    np.testing.assert_array_equal(rows, table.rows)
    np.testing.assert_array_equal(scales, table.scales)
    assert set(loaded.upsert(ids, *some_rows(count, 1), table.sequences)) == {graph_table.STALE}
    assert set(loaded.upsert(ids, *some_rows(count, 1), table.sequences + 1)) == {graph_table.WRITTEN}
    assert loaded.upsert([10**9], *some_rows(1), [1]) == [graph_table.WRITTEN]  # in a slot of the room


def test_room_takes_no_memory_before_items_come(saved):
    """The room would be 18 bytes a row, 720 MB."""

    def resident_mb():
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    before = resident_mb()
    loaded = saved(a_snapshot(), capacity=40_000_000)
    assert loaded.upsert([20], *some_rows(1), [11]) == [graph_table.WRITTEN]
    assert loaded.lookup([5, 20])[2].all()
    assert resident_mb() - before < 200


def flipped(data):
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda data: data[: len(data) // 2], tf.errors.InvalidArgumentError, "image rows must hold all of them"),
        (lambda data: data[:-1], tf.errors.DataLossError, "truncated record"),
        (flipped, tf.errors.DataLossError, "corrupted record"),
    ],
)
def test_damaged_file_of_rows_is_not_served(tmp_path, damage, error, message):
    save(tmp_path, a_snapshot(np.arange(1, 2 * table_file.PIECE + 1)), 2 * table_file.PIECE)
    (file,) = (tmp_path / "assets").iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(error, match=message):
        Loaded(tmp_path)
    file.unlink()
    with pytest.raises(tf.errors.NotFoundError, match="image_rows"):
        Loaded(tmp_path)


def test_file_of_rows_goes_with_its_table_and_a_saved_copy_stays(tmp_path, monkeypatch):
    temporary, table = tmp_path / "temporary", a_snapshot()
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for name in ("one", "other"):  # exported twice
        save(tmp_path / name, table)
    gc.collect()
    assert not list(temporary.iterdir())
    for name in ("one", "other"):
        loaded = Loaded((tmp_path / name).rename(tmp_path / f"moved-{name}"))
        np.testing.assert_array_equal(loaded.lookup(table.ids)[0], table.rows)
        loaded.session.close()


def test_python_loads_each_row_and_writes(tmp_path):
    table = a_snapshot()
    loaded = tf.saved_model.load(str(save(tmp_path, table)))
    rows, scales = some_rows(1, 1)
    upsert = {"ids": [20], "rows": rows, "scales": scales, "sequences": [11], "encoder_version": "v1"}
    upsert = {name: tf.constant(value, SPECS[name].dtype) for name, value in upsert.items()}
    assert loaded.signatures["upsert"](**upsert)["statuses"].numpy().tolist() == [graph_table.WRITTEN]
    found = loaded.signatures["lookup"](ids=tf.constant([*table.ids, 20, 21], tf.int64))
    np.testing.assert_array_equal(found["rows"], [*table.rows, *rows, np.zeros(DIM)])


def test_upserts_are_seen_by_the_next_lookup_and_statuses_tell(saved):
    loaded, (rows, scales) = saved(a_snapshot()), some_rows(5, 1)
    withdrawn = np.append(scales[:4], np.float32(0))
    # 8 has sequence 3 in the snapshot; 20 comes twice; 5 is withdrawn
    statuses = loaded.upsert([8, 20, 20, -3, 5], rows, withdrawn, [3, 12, 11, 13, 14])
    assert statuses == [graph_table.STALE, graph_table.WRITTEN, graph_table.STALE, graph_table.WRITTEN,
                        graph_table.WITHDRAWN]  # fmt: skip
    found, found_scales, mask = loaded.lookup([8, 20, -3, 5])
    assert mask.tolist() == [True, True, True, False]
    np.testing.assert_array_equal(found[1:3], rows[[1, 3]])
    np.testing.assert_array_equal(found_scales[1:3], scales[[1, 3]])
    assert loaded.status() == {"watermark": 14, "size": 3, "capacity": 100, "encoder_version": b"v1"}


def test_writing_twice_is_harmless(saved):
    loaded, (rows, scales) = saved(), some_rows(3)
    assert loaded.upsert([1, 2, 3], rows, scales, [1, 2, 3]) == [0, 0, 0]
    assert loaded.upsert([1, 2, 3], rows, scales, [1, 2, 3]) == [1, 1, 1]
    assert loaded.status()["size"] == 3


def test_another_encoder_is_refused(saved):
    loaded, (rows, scales) = saved(a_snapshot()), some_rows(2)
    assert loaded.upsert([5, 6], rows, scales, [50, 51], "v2") == [graph_table.REFUSED] * 2
    assert loaded.status()["watermark"] == 10 and loaded.status()["size"] == 3


def test_full_table_raises_out_of_range_and_loses_nothing(saved):
    loaded, (rows, scales) = saved(a_snapshot(), capacity=5), some_rows(3)
    with pytest.raises(tf.errors.OutOfRangeError, match="Reached limit of 5"):
        loaded.upsert([20, 21, 22], rows, scales, [11, 12, 13])
    assert loaded.status()["size"] == 3 and loaded.status()["watermark"] == 10
    assert loaded.upsert([20, 21, 8], rows, scales, [11, 12, 13]) == [0, 0, 0]  # two new ones fit still
    with pytest.raises(tf.errors.OutOfRangeError, match="Reached limit of 5"):
        loaded.upsert([23], rows[:1], scales[:1], [14])
    assert loaded.upsert([5], rows[:1], scales[:1], [15]) == [0]  # known items are written to the end
    assert loaded.lookup([5, 8, -3, 20, 21, 23])[2].tolist() == [True] * 5 + [False]


def test_id_zero_and_uneven_lengths_are_refused(saved):
    loaded, (rows, scales) = saved(), some_rows(2)
    with pytest.raises(tf.errors.InvalidArgumentError, match="must not hold 0"):
        loaded.upsert([0, 1], rows, scales, [1, 2])
    with pytest.raises(tf.errors.InvalidArgumentError, match="`scales` must hold one entry"):
        loaded.upsert([1, 2], rows, scales[:1], [1, 2])
    assert loaded.upsert([1, 2], rows, scales, [1, 2]) == [0, 0]  # the failed calls hold no lock


def test_empty_upsert_changes_nothing(saved):
    loaded, (rows, scales) = saved(a_snapshot()), some_rows(0)
    assert loaded.upsert(np.zeros([0], np.int64), rows, scales, np.zeros([0], np.int64)) == []
    assert loaded.status()["size"] == 3


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    loaded = Loaded(save(tmp_path_factory.mktemp("table"), capacity=50_000))
    yield loaded
    loaded.session.close()


_first_id = iter(range(1, 10**9, 1000))


@hypothesis.given(
    st.lists(st.lists(st.tuples(st.integers(0, 5), st.integers(1, 30), st.booleans()), max_size=6), max_size=6)
)
def test_newest_sequence_wins_in_any_order(shared, batches):
    """Against a dict: whatever the order and the batches, each item ends with its newest sequence."""
    offset, model, size = next(_first_id), {}, int(shared.status()["size"])
    for batch in batches:
        ids = [offset + item for item, _, _ in batch]
        rows = np.array([[sequence] * DIM for _, sequence, _ in batch], np.int8).reshape(-1, DIM)
        scales = np.array([0.0 if is_withdrawn else sequence for _, sequence, is_withdrawn in batch], np.float32)
        sequences = np.array([sequence for _, sequence, _ in batch], np.int64)
        statuses = shared.upsert(np.array(ids, np.int64), rows, scales, sequences)
        won = {}
        for place, (item, sequence, _) in enumerate(batch):
            best = won.get(item, (model.get(item, (0, None))[0], None))
            if sequence > best[0] or (sequence == best[0] and best[1] is not None):
                won[item] = (sequence, place)
        wanted = [graph_table.STALE] * len(batch)
        for item, (sequence, place) in won.items():
            wanted[place] = graph_table.WITHDRAWN if batch[place][2] else graph_table.WRITTEN
            model[item] = (sequence, not batch[place][2])
        assert statuses == wanted
    rows, scales, mask = shared.lookup(np.arange(offset, offset + 6))
    assert mask.tolist() == [model.get(item, (0, False))[1] for item in range(6)]
    for item in np.flatnonzero(mask):
        assert scales[item] == model[item][0] and (rows[item] == model[item][0]).all()
    assert int(shared.status()["size"]) == size + sum(is_live for _, is_live in model.values())


def test_concurrent_writers_and_readers_see_no_wrong_row(saved):
    """Four writers write the same ids in different batches; every row carries its sequence and its scale."""
    loaded, num_ids, failures = saved(capacity=400), 400, []

    def write(worker):
        generator = np.random.default_rng(worker)
        for turn in range(30):
            ids = generator.choice(num_ids, 40, replace=False) + 1
            mark = worker * 30 + turn + 1
            rows = np.full([40, DIM], mark, np.int8)
            rows[:, 0] = ids % 100
            loaded.upsert(ids, rows, np.full(40, mark, np.float32), np.full(40, mark))

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(4)]
    for thread in threads:
        thread.start()
    ids = np.arange(1, num_ids + 1)
    newest = np.zeros(num_ids)
    while any(thread.is_alive() for thread in threads):
        rows, scales, mask = loaded.lookup(ids)
        right = (rows[:, 0] == ids % 100) & (rows[:, 1:] == scales[:, None]).all(axis=1)
        failures += ids[mask & ~right].tolist()
        failures += ids[scales < newest].tolist()  # a row never goes back to an older sequence
        newest = scales
    for thread in threads:
        thread.join()
    wanted = np.zeros(num_ids)
    for worker in range(4):
        generator = np.random.default_rng(worker)
        for turn in range(30):
            chosen = generator.choice(num_ids, 40, replace=False)
            wanted[chosen] = np.maximum(wanted[chosen], worker * 30 + turn + 1)
    rows, scales, mask = loaded.lookup(ids)
    np.testing.assert_array_equal(scales, wanted)
    assert (rows[mask][:, 1:] == scales[mask][:, None]).all()
    assert not failures
    assert loaded.status()["size"] == np.count_nonzero(wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((DIM + 1, 100, "v1"), "must have dim 7"),
        ((DIM, 100, "v2"), "encoder version v2"),
        ((DIM, 2, "v1"), "at least the snapshot's 3 items"),
        ((DIM, 0, "v1"), "`capacity` must be at least 1"),
        ((1041, 9, "v1"), "`dim` must lie in 1..1040"),
    ],
)
def test_snapshot_that_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        graph_table.GraphTable("image", a_snapshot(), *arguments)
