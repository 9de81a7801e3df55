"""The replicator against the model server, over real gRPC: catching up, restarts, versions, faults."""

import asyncio
import collections
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf

from serving import replicator
from serving.deploy import started
from serving.model_server.config import ModelConfig
from serving.model_server.server import Options, serve
from serving.replica import Replica
from tfmm import saved_model
from tfmm.index import encode, graph_table, item_index, snapshot

DIM = 4
UPSERT_SPECS = {
    "modality": tf.TensorSpec([], tf.string),
    "item_ids": tf.TensorSpec([None], tf.int64),
    "rows": tf.TensorSpec([None, DIM], tf.int8),
    "scales": tf.TensorSpec([None], tf.float32),
    "sequences": tf.TensorSpec([None], tf.int64),
    "encoder_version": tf.TensorSpec([], tf.string),
}


class IndexOnly(tf.Module):
    """A model that is nothing but one table, with the signatures of the click model's export."""

    def __init__(self, table):
        super().__init__()
        self.table = table

    def upsert(self, modality, item_ids, rows, scales, sequences, encoder_version):
        return {"statuses": self.table.upsert(item_ids, rows, scales, sequences, encoder_version)}

    def status(self):
        return {"modality": tf.constant([self.table.modality])} | {
            name: value[None] for name, value in self.table.status().items()
        }

    def lookup(self, item_ids):
        return dict(zip(("rows", "scales", "mask"), self.table.lookup(item_ids)))

    def signatures(self):
        def concrete(method, specs):
            return tf.function(method).get_concrete_function(**specs)

        return {
            "upsert_items": concrete(self.upsert, UPSERT_SPECS),
            "index_status": concrete(self.status, {}),
            "serving_default": concrete(self.lookup, {"item_ids": tf.TensorSpec([None], tf.int64)}),
        }


def export(index, folder, capacity=64, encoder_version="v1"):
    table = None
    if index.has_encoder("image", encoder_version):
        table = snapshot.take_snapshot(index, {"image": encoder_version})["image"]
    module = IndexOnly(graph_table.GraphTable("image", table, DIM, capacity, encoder_version))
    saved_model.save(module, module.signatures(), folder)


def write(index, ids, time_us=1, encoder_version="v1"):
    rows, scales = encode.quantize(np.random.default_rng(time_us).normal(size=[len(ids), DIM]))
    index.write("image", encoder_version, ids, rows, scales, [time_us] * len(ids))


@contextlib.contextmanager
def serving(folder, port=0, **options):
    """Serves a folder of versions in a thread of this process; yields its gRPC address."""
    ready_file = folder.parent / f"{folder.name}-{time.monotonic_ns()}.json"
    settings = Options(
        models=(ModelConfig("tfmm", str(folder), options.pop("latest", 1)),),
        port=port,
        ready_file=str(ready_file),
        poll_wait_s=0.05,
        stop_grace_s=1.0,
        **options,
    )
    state = {}

    async def main():
        state["loop"], state["stop"] = asyncio.get_running_loop(), asyncio.Event()
        await serve(settings, state["stop"])

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        while not ready_file.exists():
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"127.0.0.1:{json.loads(ready_file.read_text())['grpc_port']}"
    finally:
        state["loop"].call_soon_threadsafe(state["stop"].set)
        thread.join(120)


def assert_serves(target, index, version, encoder_version="v1"):
    """Every row that the index has is what this version answers."""
    wanted = index.embeddings("image", encoder_version)
    replica = Replica(target, "tfmm", timeout_s=60.0)
    answer = replica._predict(version, "serving_default", {"item_ids": wanted.ids})
    replica.close()
    assert answer["mask"].all()
    np.testing.assert_array_equal(answer["rows"], wanted.rows)
    np.testing.assert_array_equal(answer["scales"], wanted.scales)


@pytest.fixture
def index(tmp_path):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        write(index, [1, 2, 3])
        yield index


def follow(index, *targets, **options):
    return replicator.Replicator(index.path, targets, refresh_s=0.05, **options)


def test_sends_what_came_after_the_snapshot(index, tmp_path):
    export(index, tmp_path / "model" / "1")
    write(index, [3, 4, 5], time_us=2)
    with serving(tmp_path / "model") as target, follow(index, target) as job:
        job.wait_caught_up(60)
        assert_serves(target, index, 1)
        start = time.monotonic()
        write(index, [6], time_us=3)
        job.wait_caught_up(60)
        assert time.monotonic() - start < 20.0  # and takes milliseconds, where nothing else is to be done
        assert_serves(target, index, 1)
        (lag,) = job.lag()
    assert lag == replicator.Lag(target, 1, "image", index.last_sequence("image", "v1"), 0, "following")


def counted(method, asked):
    """Returns a method that counts the calls of replicators' threads."""

    def call(*arguments, **options):
        if threading.current_thread().name.startswith("replicator"):
            asked[method.__name__] += 1
        return method(*arguments, **options)

    return call


def test_an_idle_index_is_asked_for_its_newest_change_and_once_a_refresh_for_encoders(index, tmp_path, monkeypatch):
    """Every look at a table is round trips to Redis, of each version of each replica; whole tables are never read."""
    export(index, tmp_path / "model" / "1")
    asked = collections.Counter()
    for name in ("newest_sequence", "changes", "has_encoder", "encoders", "live_ids", "snapshot"):
        monkeypatch.setattr(item_index.ItemIndex, name, counted(getattr(item_index.ItemIndex, name), asked))
    monkeypatch.setattr(Replica, "versions", counted(Replica.versions, asked))

    def looks(count):
        start = asked["newest_sequence"]
        while asked["newest_sequence"] < start + count:
            time.sleep(0.01)

    with serving(tmp_path / "model") as target, follow(index, target) as job:
        job.wait_caught_up(60)
        looks(5)
        before = collections.Counter(asked)
        looks(50)
        during = asked - before
        refreshes = during.pop("versions")
        assert set(during) == {"newest_sequence", "encoders"} and during["encoders"] <= refreshes + 1
        write(index, [7], time_us=9)
        job.wait_caught_up(60)
        assert_serves(target, index, 1)
    assert not asked["live_ids"] and not asked["snapshot"]  # in the process of `tfmm serve --index`


def test_withdrawn_items_lose_their_embedding(index, tmp_path):
    export(index, tmp_path / "model" / "1")
    with serving(tmp_path / "model") as target, follow(index, target) as job:
        index.withdraw([2], [5])
        job.wait_caught_up(60)
        replica = Replica(target, "tfmm", timeout_s=60.0)
        assert replica._predict(1, "serving_default", {"item_ids": np.array([1, 2, 3])})["mask"].tolist() == [
            True,
            False,
            True,
        ]
        assert replica.tables(1)["image"].size == 2
        replica.close()


def test_every_replica_and_loaded_version_gets_every_change(index, tmp_path):
    export(index, tmp_path / "model" / "1")
    write(index, range(10, 20), time_us=2)
    export(index, tmp_path / "model" / "2")
    write(index, range(15, 30), time_us=3)
    with serving(tmp_path / "model", latest=2) as one, serving(tmp_path / "model") as other:
        with follow(index, one, other, batch_size=4) as job:
            job.wait_caught_up(60)
            assert sorted((lag.target, lag.version) for lag in job.lag()) == sorted([(one, 1), (one, 2), (other, 2)])
            for target, version in ((one, 1), (one, 2), (other, 2)):
                assert_serves(target, index, version)


def test_a_version_that_is_loaded_later_catches_up(index, tmp_path):
    export(index, tmp_path / "model" / "1")
    with serving(tmp_path / "model") as target, follow(index, target) as job:
        job.wait_caught_up(60)
        write(index, [7, 8], time_us=2)
        export(index, tmp_path / "model" / "2", encoder_version="v2")  # another encoder, an empty table
        write(index, [1, 8], time_us=3, encoder_version="v2")
        deadline = time.monotonic() + 120
        while [lag.version for lag in job.lag()] != [2]:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.wait_caught_up(60)
        assert_serves(target, index, 2, "v2")


def size_at(target):
    """Rows that the server holds; -1 while gRPC still waits out the time that nobody answered at this address."""
    try:
        return Replica(target, "tfmm", timeout_s=60.0).tables(1)["image"].size
    except grpc.RpcError as error:
        assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        return -1


def test_a_server_that_starts_anew_gets_everything_again(index, tmp_path):
    export(index, tmp_path / "model" / "1")
    (port,) = started.free_ports(1)
    with follow(index, f"127.0.0.1:{port}") as job:
        with pytest.raises(TimeoutError, match="behind the item index"):
            job.wait_caught_up(0.1)
        for round_number in range(2, 4):
            with serving(tmp_path / "model", port) as target:
                write(index, range(round_number * 4, round_number * 4 + 4), time_us=round_number)
                deadline = time.monotonic() + 120
                while size_at(target) < index.lag("image", "v1", 0):
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
                assert_serves(target, index, 1)


def test_a_full_table_is_reported_and_nothing_is_lost(index, tmp_path):
    export(index, tmp_path / "model" / "1", capacity=4)
    write(index, [4], time_us=2)
    with serving(tmp_path / "model") as target, follow(index, target) as job:
        job.wait_caught_up(60)
        write(index, [5, 6], time_us=3)
        deadline = time.monotonic() + 120
        while "OUT_OF_RANGE" not in (lag := job.lag()[0]).state:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert lag.rows == 2
        export(index, tmp_path / "model" / "2")
        while [lag.version for lag in job.lag()] != [2]:
            assert time.monotonic() < deadline + 120
            time.sleep(0.01)
        job.wait_caught_up(60)
        assert_serves(target, index, 2)


def test_server_ahead_of_the_index_is_said_and_gets_every_row_again(index, tmp_path, caplog):
    old = tmp_path / "copy.sqlite"
    with sqlite3.connect(index.path) as database:
        database.execute("VACUUM INTO ?", (str(old),))
    database.close()
    write(index, [4, 5, 6], time_us=2)  # of which a copy from before knows nothing
    export(index, tmp_path / "model" / "1")
    with item_index.ItemIndex(old) as restored, serving(tmp_path / "model") as target:
        write(restored, [7], time_us=3)  # with a sequence number that the server is beyond
        with follow(restored, target) as job:
            deadline = time.monotonic() + 120
            while not (lags := job.lag()) or not lags[0].version or lags[0].rows:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            assert_serves(target, restored, 1)
            assert lags[0].state.startswith("ahead: it holds change") and not lags[0].is_following
            write(restored, [8, 9], time_us=4)
            job.wait_caught_up(60)
            assert_serves(target, restored, 1)
            assert "restart the server" in caplog.text
        with serving(tmp_path / "model") as other:  # a server that is not ahead is followed as ever
            write(restored, range(20, 30), time_us=5)
            export(restored, tmp_path / "model" / "2")
            with follow(restored, other) as job:
                while [lag.version for lag in job.lag()] != [2]:
                    assert time.monotonic() < deadline + 120
                    time.sleep(0.01)
                job.wait_caught_up(60)
                assert [lag.is_following for lag in job.lag()] == [True]


def test_index_that_does_not_know_the_encoder_is_said_until_it_does(index, tmp_path, caplog, monkeypatch):
    """As where a server is given the index of another shop: it would be called followed, and never get a row."""
    export(index, tmp_path / "model" / "1", encoder_version="v2")
    asked = collections.Counter()
    monkeypatch.setattr(Replica, "versions", counted(Replica.versions, asked))  # once a refresh
    with serving(tmp_path / "model") as target, follow(index, target) as job:
        deadline = time.monotonic() + 120
        while not (lags := job.lag()) or not lags[0].version or lags[0].is_following:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert lags[0].state.startswith("the index has no rows of encoder v2: is it another index")
        until = asked["versions"] + 20
        while asked["versions"] < until:
            time.sleep(0.01)
        said = sum("no rows of encoder v2" in record.getMessage() for record in caplog.records)
        assert 1 <= said < 10  # once, and again where it had to connect anew, but not at each refresh
        write(index, [4], encoder_version="v2")
        while not job.lag()[0].is_following:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.wait_caught_up(60)
        assert_serves(target, index, 1, "v2")


def test_encoder_that_is_retired_while_it_is_followed_is_said(index, tmp_path, caplog):
    export(index, tmp_path / "model" / "1")
    with serving(tmp_path / "model") as target, follow(index, target) as job:
        job.wait_caught_up(60)
        assert job.lag()[0].is_following
        index.forget("image", "v1")
        deadline = time.monotonic() + 120
        while not (lags := job.lag()) or not lags[0].version or lags[0].is_following:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert lags[0].state.startswith("the index has no rows of encoder v1") and lags[0].state in caplog.text
        write(index, [7], time_us=9)
        while not (lags := job.lag()) or not lags[0].is_following:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        job.wait_caught_up(60)
        assert_serves(target, index, 1)


def test_that_the_index_does_not_know_the_encoder_is_said_before_that_the_server_is_ahead(index, tmp_path, caplog):
    """As with another shop's newer model: "All rows are sent again" would be said, and there are none."""
    with item_index.ItemIndex(tmp_path / "newer.sqlite") as newer:
        write(newer, range(10, 20), encoder_version="v2")
        assert newer.newest_sequence() > index.newest_sequence()
        export(newer, tmp_path / "model" / "1", encoder_version="v2")
    with serving(tmp_path / "model") as target, follow(index, target) as job:
        deadline = time.monotonic() + 120
        while not (lags := job.lag()) or not lags[0].version:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert lags[0].state.startswith("the index has no rows of encoder v2") and "sent again" not in caplog.text


def test_no_targets_are_refused(index):
    with pytest.raises(ValueError, match="`targets` must name"):
        replicator.Replicator(index.path, [])


@pytest.mark.slow
def test_command_follows_and_ends_on_sigterm(index, tmp_path, root):
    export(index, tmp_path / "model" / "1")
    write(index, [9], time_us=2)
    ready, status, (port,) = tmp_path / "ready.json", tmp_path / "status.json", started.free_ports(1)
    with serving(tmp_path / "model") as target:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "serving.replicator",
                "--index",
                index.path,
                "--target",
                target,
                "--ready-file",
                str(ready),
                "--status-file",
                str(status),
                f"--metrics-port={port}",
            ],
            cwd=root,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
            stderr=subprocess.DEVNULL,
        )
        try:
            while not (ready.exists() and status.exists()):
                assert process.poll() is None
                time.sleep(0.05)
            assert_serves(target, index, 1)
            deadline = time.monotonic() + 120  # the file is written each second, first before the server was reached
            while json.loads(status.read_text())["tables"][0]["version"] != 1:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            told = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text
            table = f'{{modality="image",model_name="tfmm",target="{target}",version="1"}}'
            assert f"tfmm_replica_lag_rows{table} 0.0" in told and f"tfmm_replica_following{table} 1.0" in told
            assert f'tfmm_replica_reached{{model_name="tfmm",target="{target}"}} 1.0' in told
            (table,) = json.loads(status.read_text())["tables"]
            assert (table["rows"], table["modality"], table["version"]) == (0, "image", 1)
            process.send_signal(signal.SIGTERM)
            assert process.wait(120) == 0
        finally:
            process.kill()
            process.wait()
