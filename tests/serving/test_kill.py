"""Kills at random moments, of every process from the event to the score: nothing is lost, nothing is wrong."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import threading
import time

import confluent_kafka
import grpc
import numpy as np
import pytest

from serving.deploy import started
from serving.replica import Replica
from serving.streaming import event_log, events
from tfmm.index import encode, graph_table, snapshot, store

DIM, EVENTS_PER_S = 8, 9.0
WITHIN_S = 900.0  # for processes to be at work, and all changes to have come
MODALITY = "vector"


class Revived:
    """A process that is started anew whenever it was killed."""

    def __init__(self, root, log, *command):
        self._root, self._log, self._command = root, log, command
        self.process = self._start()

    def _start(self):
        environment = {**os.environ, "PYTHONPATH": str(self._root), "TF_CPP_MIN_LOG_LEVEL": "3"}
        with self._log.open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", *self._command], cwd=self._root, env=environment, stderr=log)

    def check(self):
        """Fails where it ended by itself, with its last words."""
        assert self.process.poll() is None, self._log.read_text(errors="replace")[-3000:]

    def kill(self):
        """Kills it, and starts it anew."""
        self.check()
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        self.process = self._start()

    def end(self):
        self.process.kill()
        self.process.wait()


def any_taken(log, index):
    return any(index.position(part.name) for part in event_log.parts_of(log))


def lookup(target, ids):
    replica = Replica(target, "tfmm")
    try:
        return replica._predict(1, "serving_default", {"item_ids": ids})
    except grpc.RpcError:
        return None
    finally:
        replica.close()


class Restarted:
    """A server of events or of the index, which is started anew with what it kept."""

    def __init__(self, server, start):
        self._server, self._start = server, start

    def kill(self):
        self._server.kill()
        self._start()


@pytest.fixture
def places(request, tmp_path):
    """URLs of events and index, and the servers that hold them by name."""
    if request.param == "sqlite":
        return f"{tmp_path}/events.sqlite", f"{tmp_path}/items.sqlite", {}
    redis, broker = request.getfixturevalue("make_redis")(), request.getfixturevalue("make_broker")()
    servers = {"redis": Restarted(redis, redis.start), "broker": Restarted(broker, broker.up)}
    return request.getfixturevalue("make_topic")(broker, partitions=2), redis.url(), servers


ALL = None  # of the victims
VICTIMS = ("server", "replicator", "stream", "redis", "broker")


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("places", "victim", "kills", "longest_s"),
    [
        pytest.param("sqlite", ALL, 1, 2.0, id="sqlite, each once"),
        pytest.param("kafka-redis", ALL, 1, 2.0, id="kafka-redis, each once"),
        pytest.param("sqlite", ALL, 4, 12.0, id="sqlite, each often", marks=pytest.mark.slow),
        *(pytest.param("kafka-redis", v, 20, 12.0, id=f"kafka-redis, {v}", marks=pytest.mark.slow) for v in VICTIMS),
    ],
    indirect=["places"],
)
def test_kills_at_random_moments_lose_nothing_and_leave_nothing_wrong(
    root, tmp_path, write_table, places, victim, kills, longest_s
):
    generator, moments, items = np.random.default_rng(7), random.Random(7), random.Random(8)
    given = encode.GivenVectors(DIM, MODALITY)
    (events_url, index_url, servers), target = places, f"127.0.0.1:{started.free_ports(1)[0]}"
    vectors = {item: generator.normal(size=DIM) for item in range(1, 20)}
    history = {item: [vector] for item, vector in vectors.items()}  # all that each item ever had, oldest first
    with store.open_store(index_url) as index:
        rows, scales = encode.quantize(np.stack(list(vectors.values())))
        index.write(MODALITY, given.version, list(vectors), rows, scales, [1] * len(vectors))
        table = snapshot.take_snapshot(index, {MODALITY: given.version})[MODALITY]
    write_table(graph_table.GraphTable(MODALITY, table, DIM, 10_000, given.version), tmp_path / "models" / "1")

    with contextlib.ExitStack() as stack:
        log = stack.enter_context(event_log.open_source(events_url))
        index = stack.enter_context(store.open_store(index_url))
        processes = dict(zip(VICTIMS, [
            Revived(root, tmp_path / "server.log", "serving.model_server", "--model_name=tfmm",
                    f"--model_base_path={tmp_path / 'models'}", f"--port={target.split(':')[1]}",
                    "--index_wait_seconds=-1"),
            Revived(root, tmp_path / "replicator.log", "serving.replicator", "--index", index_url, "--target", target),
            Revived(root, tmp_path / "stream.log", "serving.streaming", "--events", events_url, "--index", index_url),
        ]))  # fmt: skip
        for process in processes.values():
            stack.callback(process.end)

        def wait(deadline):
            for process in processes.values():
                process.check()
            assert time.monotonic() < deadline
            time.sleep(0.2)

        done, stale, starts, looked_at = threading.Event(), [], [], set()  # starts: the index as each found it

        def append():
            number = 0
            while not done.is_set():
                number += 1
                item = 20 + number if number % 4 else items.randrange(1, 20 + number)  # new ones, and changes
                vectors[item] = generator.normal(size=DIM)
                history.setdefault(item, []).append(vectors[item])
                payload = events.make_event(item, vector=vectors[item].tolist())
                while True:
                    with contextlib.suppress(confluent_kafka.KafkaException):  # the broker was away for a minute
                        log.append([payload])  # twice is as good as once
                        break
                time.sleep(1 / EVENTS_PER_S)

        def watch():
            """A server that was started anew answers first when it has all that stood in the index at its start."""
            while not done.is_set():
                number = len(starts) - 1
                if number not in looked_at and (answer := lookup(target, starts[number].ids)) is not None:
                    columns = (starts[number].ids.tolist(), starts[number].rows, answer["mask"], answer["rows"])
                    for item, row, is_there, found in zip(*columns):
                        known = [rows.tolist() for rows in encode.quantize(np.stack(history[item]))[0]]
                        if not is_there or found.tolist() not in known[known.index(row.tolist()) :]:
                            stale.append(item)
                    looked_at.add(number)
                time.sleep(0.05)

        starts.append(index.embeddings(MODALITY, given.version))
        threads = [threading.Thread(target=append), threading.Thread(target=watch)]
        for thread in threads:
            thread.start()
        try:
            deadline = time.monotonic() + WITHIN_S
            while not any_taken(log, index) or lookup(target, np.array([1])) is None:  # all three are at work
                wait(deadline)
            killed = processes | servers
            order = [name for name in killed for _ in range(kills) if victim in (ALL, name)]
            moments.shuffle(order)
            for name in order:
                time.sleep(moments.uniform(0.5, longest_s))
                killed[name].kill()
                if name == "server":
                    starts.append(index.embeddings(MODALITY, given.version))
            deadline = time.monotonic() + WITHIN_S
            while len(starts) - 1 not in looked_at:  # one before may have been killed before it answered
                assert threads[1].is_alive()
                wait(deadline)
        finally:
            done.set()
            for thread in threads:
                thread.join(60)
        ids, deadline = np.array(sorted(vectors)), time.monotonic() + WITHIN_S
        rows, scales = encode.quantize(np.stack([vectors[item] for item in ids.tolist()]))
        while True:
            answer = lookup(target, ids)
            if answer is not None and answer["mask"].all() and np.array_equal(answer["rows"], rows):
                break
            wait(deadline)
        wanted = index.embeddings(MODALITY, given.version)
    assert wanted.ids.tolist() == ids.tolist()  # 0 lost
    np.testing.assert_array_equal(wanted.rows, rows)  # 0 wrong
    np.testing.assert_allclose(answer["scales"], scales, rtol=1e-6)
    assert not stale  # a restarted server was not ready before it had caught up
