"""From one encoder to another under load: both written, backfilled, switched, the old one retired."""

import threading
import time

import click.testing
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from serving import client, replica, replicator
from serving.coverage_gate import CoverageGate
from serving.streaming import embedding, event_log, events
from tfmm import artifacts, cli, fingerprints
from tfmm.index import beam, coverage, encode, graph_table, item_index, snapshot

OLD, NEW = ("old", 4), ("new", 6)  # encoder version and dim
NUM_ITEMS = 60


class _Encoder(tf.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="content")])
    def embed(self, content):
        values = [tf.strings.to_hash_bucket_strong(content, 1000, [self.dim, n]) - 500 for n in range(self.dim)]
        return {"vector": tf.math.l2_normalize(tf.cast(tf.stack(values, 1), tf.float32), axis=1)}


@pytest.fixture(scope="module")
def encoder_dirs(tmp_path_factory):
    """By version, a folder with its text encoder."""
    folders = {}
    for version, dim in (OLD, NEW):
        folders[version] = tmp_path_factory.mktemp(version)
        module = _Encoder(dim)
        path = str(folders[version] / "text" / "encoder")
        tf.saved_model.save(module, path, signatures={"serving_default": module.embed})
        facts = {"encoder_version": version, "modality": "text", "dim": dim}
        artifacts.write_manifest(folders[version] / "text", "encoder", **facts)
    return folders


@pytest.fixture
def data_dir(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    ids = list(range(1, NUM_ITEMS + 1))
    times = pa.array([1_000_000] * NUM_ITEMS, pa.timestamp("us"))
    columns = {"item_id": ids, "title": [f"title {n}" for n in ids], "category": [1] * NUM_ITEMS, "created_at": times}
    pq.write_table(pa.table(columns), folder / "items.parquet")
    return folder


class Readers:
    """Threads that ask a server for the rows of all items, and hold each answer to one encoder's."""

    def __init__(self, target, expected):
        self._target, self._expected = target, expected
        self.seen, self.faults = [], []
        self._stop = threading.Event()
        self.count = 3
        self._threads = [threading.Thread(target=self._run) for _ in range(self.count)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self):
        ids = np.arange(1, NUM_ITEMS + 1)
        with client.RankingClient(self._target, model_name="tfmm", timeout_s=60) as caller:
            while not self._stop.is_set():
                try:
                    answer = caller.predict({"item_ids": ids})
                    dim = answer["rows"].shape[1]
                    if not (answer["mask"].all() and np.array_equal(answer["rows"], self._expected[dim])):
                        self.faults.append(f"an answer of dim {dim} lacks rows, or has others")
                    self.seen.append(dim)
                except Exception as error:
                    self.faults.append(repr(error))


def rows_of(encoder_dir, titles):
    rows, _ = encode.quantize(encode.load_encoder(encoder_dir / "text")(titles))
    return rows


def test_no_answer_mixes_encoders_and_no_request_fails(
    tmp_path, encoder_dirs, data_dir, write_table, serving_at, running_job, wait_for
):
    titles = [f"title {n}" for n in range(1, NUM_ITEMS + 1)]
    expected = {dim: rows_of(encoder_dirs[version], titles) for version, dim in (OLD, NEW)}
    url, events_path, models = tmp_path / "items.sqlite", tmp_path / "events.sqlite", tmp_path / "models"
    beam.embed_catalog(data_dir, {"text": str(encoder_dirs["old"] / "text")}, url)

    def export(index, number, version, dim):
        table = snapshot.take_snapshot(index, {"text": version})["text"]
        write_table(graph_table.GraphTable("text", table, dim, 4096, version), models / str(number))

    with item_index.ItemIndex(url) as index, event_log.SQLiteEventLog(events_path) as log:
        export(index, 1, *OLD)
        with (
            replicator.Replicator(url, [f"unix:{tmp_path}/grpc"], refresh_s=0.05) as job,
            serving_at(models, name="tfmm", index_wait_s=-1.0, grpc_socket_path=f"{tmp_path}/grpc") as server,
            Readers(server["grpc"], expected) as readers,
            running_job(log.path, [encoder_dirs["old"], encoder_dirs["new"]], str(url)),
        ):
            log.append([events.make_event(1000 + n, title=f"new {n}") for n in range(5)])
            wait_for(lambda: index.position(log.name) == 5)
            assert [len(index.embeddings("text", v)) for v in ("old", "new")] == [NUM_ITEMS + 5, 5]  # both are written
            export(index, 2, *NEW)
            own = replica.Replica(server["grpc"], "tfmm", timeout_s=60.0)
            wait_for(lambda: own.versions() == {1: True, 2: False} and readers.seen)
            time.sleep(1.0)  # many looks of the replicator
            assert own.versions() == {1: True, 2: False} and set(readers.seen) == {OLD[1]}
            assert replica.versions_with(server["grpc"], "tfmm", "text", "old") == [1]
            beam.embed_catalog(data_dir, {"text": str(encoder_dirs["new"] / "text")}, url, activate=False)
            assert coverage.of_active(index, "text", "new").share == 1.0
            wait_for(lambda: own.versions() == {2: True})
            num_seen = len(readers.seen)
            wait_for(lambda: len(readers.seen) > num_seen + 10)
            assert readers.seen[num_seen:].count(OLD[1]) <= readers.count  # of each, the answer that was on its way
            log.append([events.make_event(1005, title="new 5")])
            wait_for(lambda: index.position(log.name) == 6)
            job.wait_caught_up(120)
            with client.RankingClient(server["grpc"], model_name="tfmm", timeout_s=60) as caller:
                answer = caller.predict({"item_ids": np.array([1005])})
                np.testing.assert_array_equal(answer["rows"], rows_of(encoder_dirs["new"], ["new 5"]))
            own.close()
            assert run("activate", url, "text", "new")
        assert readers.faults == [] and set(readers.seen) == {OLD[1], NEW[1]}
        assert "66 rows of old are gone" in run("retire", url, "text", "old")


def run(*words):
    result = click.testing.CliRunner().invoke(cli.main, ["index", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.output


def test_an_encoder_that_a_version_in_service_needs_is_not_retired(tmp_path, write_table, serving_at):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        for version in ("old", "new"):
            index.register_encoder("text", version, 2)
        index.activate("text", "new")
        table = snapshot.take_snapshot(index, {"text": "old"})["text"]
        write_table(graph_table.GraphTable("text", table, 2, 8, "old"), tmp_path / "models" / "1")
        with serving_at(tmp_path / "models", name="tfmm") as server:
            words = ["index", "retire", index.path, "text", "old", "--server", server["grpc"]]
            refused = click.testing.CliRunner().invoke(cli.main, words)
        assert refused.exit_code == 1 and "Received: versions [1] of tfmm" in refused.output
        refused = click.testing.CliRunner().invoke(cli.main, words)
        assert refused.exit_code == 1 and "A server must answer at" in refused.output
        assert index.has_encoder("text", "old")


@pytest.fixture
def gate_of(tmp_path):
    """Returns a function that makes gates of an index whose encoder `later` has one of the active one's four items."""
    url, gates = str(tmp_path / "items.sqlite"), []
    with item_index.ItemIndex(url) as index:
        rows, scales = encode.quantize(np.eye(4))
        for version, count in (("first", 1), ("active", 4), ("later", 1)):
            index.write("text", version, range(1, count + 1), rows[:count], scales[:count], [1] * count)
        index.activate("text", "active")

        def make(min_coverage):
            gates.append(CoverageGate(index, url, min_coverage))
            return index, gates[-1]

        yield make
        for gate in gates:
            gate.close()


def test_the_gate_waits_for_later_encoders_alone(gate_of, wait_for):
    index, gate = gate_of(0.75)
    rows, scales = encode.quantize(np.eye(4))
    assert all(gate.is_open([("text", version)]) for version in ("first", "active", "unknown"))
    assert gate_of(0.0)[1].is_open([("text", "later")])
    for _ in range(20):
        assert not gate.is_open([("text", "later")])
        time.sleep(0.01)
    index.write("text", "later", [2, 3], rows[:2], scales[:2], [1, 1])
    wait_for(lambda: gate.is_open([("text", "later"), ("text", "active")]))
    index.write("text", "active", [9, 10], rows[:2], scales[:2], [1, 1])
    for _ in range(20):
        assert not gate.is_open([("text", "later")])
        time.sleep(0.01)
    index.activate("text", "later")
    assert gate.is_open([("text", "later")])


def test_who_asks_the_gate_does_not_wait_for_its_look_at_all_items(gate_of, wait_for, monkeypatch):
    index, gate = gate_of(0.25)
    of_active, may_end, threads = coverage.of_active, threading.Event(), []

    def slow(own, *table):
        threads.append((threading.current_thread(), own is index))
        may_end.wait(120)
        return of_active(own, *table)

    monkeypatch.setattr(coverage, "of_active", slow)
    asked = [gate.is_open([("text", "later")]) for _ in range(5)]
    may_end.set()
    wait_for(lambda: gate.is_open([("text", "later")]))
    assert asked == [False] * 5
    ((looked, is_shared),) = threads
    assert looked is not threading.current_thread() and not is_shared  # whose connection others would wait for


def test_a_look_that_ends_while_the_gate_is_asked_is_taken_and_no_other_begins(gate_of):
    """One that began before a change, and was not asked for, would open the gate after it."""
    _, gate = gate_of(0.25)

    class Ending(threading.Thread):
        def is_alive(self):
            gate._enough.add((("text", "later"),))
            return False

    gate._thread = looked = Ending()
    looked.start()
    assert gate.is_open([("text", "later")]) and gate._thread is looked and not gate._enough


def test_the_gate_looks_again_after_a_look_that_failed(gate_of, wait_for, monkeypatch):
    _, gate = gate_of(0.25)
    of_active, failures = coverage.of_active, iter(range(2))

    def failing(*arguments):
        if next(failures, None) is not None:
            raise OSError("the index is away")
        return of_active(*arguments)

    monkeypatch.setattr(coverage, "of_active", failing)
    monkeypatch.setattr("serving.coverage_gate._RETRY_S", 0.01)
    wait_for(lambda: gate.is_open([("text", "later")]))


def test_an_event_that_both_encoders_refuse_is_one_dead_letter(encoder_dirs):
    encoders = [encode.load_encoder(encoder_dirs[version] / "text") for version in ("old", "new")]
    batch = [event_log.Event(n, events.make_event(n, title=title)) for n, title in ((1, "a" * 20_000), (2, "shoe"))]
    outcome = embedding.embed_events(batch, encoders)
    assert [(event.offset, reason[:22]) for event, reason in outcome.dead] == [(1, "title: must be at most")]
    assert [rows.ids.tolist() for _, rows in outcome.embedded] == [fingerprints.fingerprint([2]).tolist()] * 2
