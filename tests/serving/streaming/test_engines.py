"""The same job on each engine, with sources and stores that go with it: nothing lost, nothing wrong, kills included."""

import collections
import os
import random
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
import pytest

from serving.deploy import started
from serving.deploy.flink import cluster as flink
from serving.streaming import event_log, events, flink_jobs
from tfmm import beam as beam_lib
from tfmm import fingerprints
from tfmm.index import encode, store

SLOTS = (1, 1)
WITHIN_S, WAIT_S = 1800, 600  # of a machine that has much else to do
PARTITIONS, NUM_ITEMS = 4, 60
BAD = (b"no event", b'{"version": 7}', events.make_event(5, title="x", event_time_us=2**62), b"\xff", b"[]")
REASONS = {"event_time_us", "not JSON", "not a JSON object", "version"}  # of these
NOW_US = time.time_ns() // 1000


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    try:
        flink.class_path(flink.FOLDER / "lib")
    except RuntimeError as error:
        pytest.skip(str(error))
    one = flink.Cluster(tmp_path_factory.mktemp("flink"))
    one.up(SLOTS, jars=flink.FOLDER / "lib")
    yield one
    pids = one.running.values()
    one.down()
    assert pids and not any(map(started.started_at, pids))


class Feed:
    """Makes events of items, and knows what an index must hold once it has taken them all."""

    def __init__(self, seed, num_items):
        self._random, self._num_items = random.Random(seed), num_items
        self._newest = {}  # item -> (event time, title or None)
        self._clock, self._number = NOW_US, 0
        self.num_bad = 0

    def batch(self, size):
        """Changes of items out of order, withdrawals, and among them what is no event."""
        made = []
        for _ in range(size):
            self._clock += 1000
            self._number += 1
            item, time_us = f"item {self._random.randrange(self._num_items)}", self._clock
            title = None if self._random.random() < 0.15 else f"title {self._number}"
            if time_us > self._newest.get(item, (0, None))[0]:
                self._newest[item] = (time_us, title)
            made.append(events.make_event(item, title=title, event_time_us=time_us, withdrawn=title is None))
        self._random.shuffle(made)
        if self._random.random() < 0.5:
            made.insert(0, BAD[self.num_bad % len(BAD)])
            self.num_bad += 1
        return made

    def titles(self):
        """The title that each item has in the end, by its fingerprint; withdrawn items have none."""
        names = [name for name, (_, title) in self._newest.items() if title is not None]
        return dict(zip(fingerprints.fingerprint(names).tolist(), [self._newest[name][1] for name in names]))


def verify(index, feed, encoders_dir):
    """Every vector is the one of its item's newest event, encoded anew; every bad event is a dead letter, once."""
    encoder = encode.load_encoder(encoders_dir / "text")
    wanted, found = feed.titles(), index.embeddings("text", encoder.version)
    assert sorted(found.ids.tolist()) == sorted(wanted)
    rows, scales = encode.quantize(encoder([wanted[item] for item in found.ids.tolist()]))
    np.testing.assert_array_equal(found.rows, rows)
    np.testing.assert_allclose(found.scales, scales, rtol=1e-6)
    reasons = collections.Counter(letter.reason.split(":")[0] for letter in index.dead_letters())
    assert sum(reasons.values()) == feed.num_bad
    if feed.num_bad >= len(BAD):
        assert set(reasons) == REASONS


def taken(log, index):
    return sum(index.position(part.name) for part in event_log.parts_of(log))


def kill_task_manager(cluster, number):
    cluster.kill(flink.task_manager(number))
    time.sleep(1.0)
    cluster.start_task_manager(number, SLOTS[number - 1])


def jobs_of(cluster):
    return [job for job in cluster.ask("jobs/overview")["jobs"] if job["state"] in flink_jobs.GOES_ON]


def workers_of(cluster):
    found = psutil.Process(cluster.running[flink.WORKER_POOL]).children()
    return [one for one in found if started.started_at(one.pid) is not None]


def assert_one_step_reads_and_embeds(cluster):
    """On several slots; a position would else pass events that are on their way between two steps."""
    (job,) = jobs_of(cluster)
    steps = cluster.ask(f"jobs/{job['jid']}")["vertices"]
    assert [step["parallelism"] for step in steps if "Read" in step["name"] and "Embed" in step["name"]] == [sum(SLOTS)]


@pytest.mark.timeout(WITHIN_S)
@pytest.mark.parametrize("kind", ["sqlite-sqlite-here", "kafka-redis-here", "kafka-redis-flink"])
def test_all_events_take_effect_once_wherever_the_job_works(
    request, kind, encoders_dir, tmp_path, running_job, wait_for
):
    """On Flink a task manager is killed in the middle."""
    events_url, index_url, options = f"{tmp_path}/events.sqlite", f"{tmp_path}/items.sqlite", {}
    if kind.startswith("kafka"):
        broker, redis = (request.getfixturevalue(name) for name in ("kafka", "redis_server"))
        events_url = request.getfixturevalue("make_topic")(broker, partitions=PARTITIONS)
        index_url = redis.url(prefix=str(tmp_path))
    cluster = request.getfixturevalue("cluster") if kind.endswith("flink") else None
    if cluster is not None:
        options = {"pipeline_args": cluster.beam_options, "bundle_s": None}
    feed, sent, moment = Feed(7, NUM_ITEMS), 0, random.Random(3).randrange(5, 15)
    with event_log.open_source(events_url) as log, running_job(events_url, encoders_dir, index_url, **options):
        with store.open_store(index_url) as index:
            for number in range(20):
                sent += len(payloads := feed.batch(15))
                log.append(payloads)
                if number == 0:
                    wait_for(lambda: taken(log, index) > 0, timeout_s=WAIT_S)
                if cluster is not None and number == moment:
                    assert_one_step_reads_and_embeds(cluster)
                    kill_task_manager(cluster, len(SLOTS))
                time.sleep(0.05)
            wait_for(lambda: taken(log, index) == sent, timeout_s=WAIT_S)
            verify(index, feed, encoders_dir)
            assert feed.num_bad >= len(BAD)
    if cluster is not None:
        assert not jobs_of(cluster)
        wait_for(lambda: not workers_of(cluster), timeout_s=300)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_task_managers_broker_and_redis_that_are_killed_on_flink_lose_nothing(
    cluster, make_broker, make_redis, make_topic, encoders_dir, tmp_path, running_job, wait_for
):
    """Ten task managers at random moments, and broker and Redis in between, while events come."""
    broker, redis, moments = make_broker(), make_redis(), random.Random(11)
    events_url, index_url = make_topic(broker, partitions=PARTITIONS), redis.url()
    feed, sent, done = Feed(12, 10 * NUM_ITEMS), [0], threading.Event()
    options = {"pipeline_args": cluster.beam_options, "bundle_s": None}
    with event_log.open_source(events_url) as log, running_job(events_url, encoders_dir, index_url, **options):
        with store.open_store(index_url) as index:

            def append():
                while not done.is_set():
                    payloads = feed.batch(5)
                    log.append(payloads)
                    sent[0] += len(payloads)
                    time.sleep(0.25)

            thread = threading.Thread(target=append)
            thread.start()
            try:
                wait_for(lambda: taken(log, index) > 0, timeout_s=WAIT_S)
                for number in range(10):
                    time.sleep(moments.uniform(0.5, 5.0))
                    before = taken(log, index)
                    kill_task_manager(cluster, moments.randrange(len(SLOTS)) + 1)
                    if number == 3:
                        broker.kill()
                        time.sleep(2.0)
                        broker.up()
                    if number == 6:
                        redis.kill()
                        time.sleep(2.0)
                        redis.start()
                    wait_for(lambda before=before: taken(log, index) > before + 20, timeout_s=WAIT_S)
            finally:
                done.set()
                thread.join()
            wait_for(lambda: taken(log, index) == sent[0], timeout_s=WAIT_S)
            verify(index, feed, encoders_dir)


@pytest.mark.slow
@pytest.mark.timeout(WITHIN_S)
def test_job_of_a_killed_process_goes_on_and_makes_way_for_the_next(
    cluster, root, kafka, redis_server, make_topic, encoders_dir, tmp_path, wait_for
):
    events_url, index_url = make_topic(kafka, partitions=PARTITIONS), redis_server.url(prefix=str(tmp_path))
    environment = {**os.environ, beam_lib.VARIABLE: " ".join(cluster.beam_options), "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "tfmm.cli", "stream", "--events", events_url, "--index", index_url,
               "--encoders", str(encoders_dir)]  # fmt: skip
    feed, sent = Feed(13, NUM_ITEMS), 0
    with event_log.open_source(events_url) as log, store.open_store(index_url) as index:
        ids = []
        for number in (signal.SIGKILL, signal.SIGTERM):
            with subprocess.Popen(command, env=environment, cwd=tmp_path) as process:
                try:
                    wait_for(lambda: {job["jid"] for job in jobs_of(cluster)} - set(ids), process, timeout_s=WAIT_S)
                    (job,) = jobs_of(cluster)
                    ids.append(job["jid"])
                    sent += len(payloads := feed.batch(50))
                    log.append(payloads)
                    wait_for(lambda sent=sent: taken(log, index) == sent, process, timeout_s=WAIT_S)
                finally:
                    process.send_signal(number)
            assert process.returncode == (0 if number == signal.SIGTERM else -number)
            assert [job["jid"] for job in jobs_of(cluster)] == ([] if number == signal.SIGTERM else ids)
            if number == signal.SIGKILL:  # nobody waits for it, and it works all the same
                sent += len(payloads := feed.batch(50))
                log.append(payloads)
                wait_for(lambda sent=sent: taken(log, index) == sent, timeout_s=WAIT_S)
        verify(index, feed, encoders_dir)
    wait_for(lambda: not workers_of(cluster), timeout_s=300)
