"""The near-line trainer reads logs of any source by position: what it learns does not depend on where records lie."""

import json
import time

import confluent_kafka
import confluent_kafka.admin
import numpy as np
import pytest

from serving.deploy.kafka import broker as broker_lib
from serving.nearline.logs_of_records import Logs
from serving.streaming import event_log
from tfmm.ctr import state as state_lib
from tfmm.training import checkpoint

REQUESTS, SHOWN = 100, 4
OPTIONS = ("--window-seconds", "5", "--checkpoint-seconds", "0", "--slice-minutes", "100000")


def payloads(records):
    return [json.dumps(record).encode() for record in records]


def wait_for(condition, trainer, timeout_s=400):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline and trainer.process.poll() is None, trainer.said()[-3000:]
        time.sleep(0.05)


def require_soon(condition, timeout_s=400):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module")
def records(nearline_shop):
    return nearline_shop.records(100, REQUESTS)


@pytest.fixture(scope="module")
def learned(models):
    """Returns a function that waits until a trainer has learned all records, and returns its weights and facts."""
    origin = state_lib.read_manifest(models / "models/multimodal/Format-State")["training"]

    def learn(trainer):
        wait_for(lambda: trainer.rows() == origin["rows"] + REQUESTS * SHOWN, trainer)
        trainer.stop()
        facts, folder = trainer.facts()
        return checkpoint.read(folder / "state/variables")[0], facts

    return learn


@pytest.fixture(scope="module")
def wanted(records, learned, starting, tmp_path_factory):
    """What one SQLite log of all records teaches."""
    folder = tmp_path_factory.mktemp("sqlite")
    with event_log.SQLiteEventLog(folder / "served.sqlite") as log, starting() as start:
        log.append(payloads(records))
        return learned(start(folder / "work", "--log", log.path, *OPTIONS))


def require_equal(found, wanted):
    assert found[1]["training"] == wanted[1]["training"]
    for name, value in wanted[0].items():
        np.testing.assert_array_equal(found[0][name], value, err_msg=name)


def test_a_partition_that_is_added_is_read_on_from_its_beginning(kafka, make_topic):
    url = make_topic(kafka)
    topic = url.rpartition("/")[2]
    with event_log.open_source(url) as source:
        source.append([b"1"])
    logs = Logs([url], {}, 0.01, int)
    taken = []

    def read():
        if found := logs.read(lambda name: 0, 100):
            taken.extend(event.payload for event in found[1])

    try:
        require_soon(lambda: read() or taken == [b"1"])
        admin = confluent_kafka.admin.AdminClient({"bootstrap.servers": kafka.address})
        admin.create_partitions([confluent_kafka.admin.NewPartitions(topic, 2)])[topic].result()
        broker_lib.await_partitions(admin, topic, 2)
        producer, faults = confluent_kafka.Producer({"bootstrap.servers": kafka.address}), []
        producer.produce(topic, b"2", partition=1, on_delivery=lambda *told: faults.append(told[0]))
        assert producer.flush(120) == 0 and faults == [None]
        require_soon(lambda: read() or taken == [b"1", b"2"])
        assert sorted(logs.positions.values()) == [1, 1]
    finally:
        logs.close()


@pytest.mark.timeout(1800)
def test_kafka_whose_broker_goes_away_teaches_the_same_as_one_sqlite_log(
    make_broker, make_topic, records, learned, wanted, start_trainer, tmp_path
):
    broker = make_broker()
    requests, labels = make_topic(broker, partitions=2), make_topic(broker, partitions=3)
    for url, is_request in ((requests, True), (labels, False)):
        with event_log.open_source(url) as source:
            for payload in payloads(one for one in records if ("items" in one) == is_request):
                source.append([payload])
    trainer = start_trainer(tmp_path / "kafka", "--log", requests, "--log", labels, *OPTIONS)
    wait_for(lambda: "going on from" in trainer.said(), trainer)
    broker.kill()
    time.sleep(3.0)
    broker.up()
    require_equal(learned(trainer), wanted)
    broker.down()


@pytest.mark.timeout(1800)
def test_a_folder_and_redis_teach_the_same_as_one_sqlite_log(
    redis_server, records, learned, wanted, start_trainer, tmp_path
):
    (tmp_path / "requests").mkdir()
    folder, stream = f"folder://{tmp_path / 'requests'}", f"redis://127.0.0.1:{redis_server.port}/0?stream=nearline"
    requests = payloads(one for one in records if "items" in one)
    with event_log.open_source(folder) as source:
        for start in range(0, REQUESTS, 25):
            source.append(requests[start : start + 25])
    with event_log.open_source(stream) as source:
        source.append(payloads(one for one in records if "items" not in one))
    require_equal(learned(start_trainer(tmp_path / "both", "--log", folder, "--log", stream, *OPTIONS)), wanted)


class Source:
    """A log in memory, which may be away."""

    def __init__(self, name, times):
        self.name, self.times, self.is_away = name, times, False

    def read(self, after, limit):
        if self.is_away:
            raise ConnectionError("away")
        stop = min(after + min(limit, 2), len(self.times))
        return [event_log.Event(place + 1, b"%d" % self.times[place]) for place in range(after, stop)]


@pytest.fixture
def two_logs(monkeypatch):
    sources = {"a": Source("a", [10, 20, 30, 40]), "b": Source("b", [5, 35, 36])}
    monkeypatch.setattr(event_log, "open_source", sources.__getitem__)
    return sources, Logs(["a", "b"], {}, poll_s=0.0, time_us=int)


def drain(sources, logs, newest, room=1_000):
    found = []
    while (read := logs.read(lambda name: newest.get(name, 0), room)) is not None:
        name, events = read
        found.append((name, [event.offset for event in events]))
        newest[name] = sources[name].times[events[-1].offset - 1]
    return found


def test_the_part_that_is_furthest_behind_is_read_first(two_logs):
    sources, logs = two_logs
    assert drain(sources, logs, {}) == [("b", [1, 2]), ("a", [1, 2]), ("a", [3, 4]), ("b", [3])]
    assert logs.positions == {"a": 4, "b": 3}


def test_the_watermark_waits_for_a_log_that_is_away_and_not_for_one_that_has_no_more(two_logs):
    sources, logs = two_logs
    newest = {}
    assert logs.watermark_us(lambda name: newest.get(name, 0), 0) == 0  # nobody has said anything
    sources["b"].is_away = True
    drain(sources, logs, newest)
    assert logs.watermark_us(lambda name: newest.get(name, 0), 0) == 0
    sources["b"].is_away = False
    time.sleep(1.1)  # it is tried again after a second
    drain(sources, logs, newest)
    before_us = time.time_ns() // 1000
    assert before_us - 60_000_000 < logs.watermark_us(lambda name: newest.get(name, 0), 0) <= time.time_ns() // 1000
    sources["a"].is_away = True
    drain(sources, logs, newest)
    assert logs.watermark_us(lambda name: newest.get(name, 0), 7) == 40 - 7


class Topic:
    """A topic of one partition, whose broker may answer no question for it."""

    name, fault = "b", None

    def __init__(self, partition):
        self.partition = partition

    def parts(self):
        return [] if self.fault else [self.partition]


def test_a_topic_whose_partitions_cannot_be_listed_holds_the_watermark_until_they_can(monkeypatch):
    """Else the clicks in it would come after what they belong to was taken for negatives."""
    sources, newest = {"a": Source("a", [10, 20]), "b/0": Source("b/0", [5, 15])}, {}
    topic = Topic(sources["b/0"])
    monkeypatch.setattr(event_log, "open_source", {"a": sources["a"], "b": topic}.__getitem__)
    logs = Logs(["a", "b"], {}, poll_s=0.0, time_us=int)
    drain(sources, logs, newest)
    assert logs.watermark_us(newest.__getitem__, 0) > 20
    topic.fault = ConnectionError("no broker answers")
    sources["b/0"].times += [25]
    logs._looked -= 10.0
    drain(sources, logs, newest)
    assert logs.watermark_us(newest.__getitem__, 0) == 0
    topic.fault = None
    logs._looked -= 10.0
    drain(sources, logs, newest)
    assert newest == {"a": 20, "b/0": 25} and logs.watermark_us(newest.__getitem__, 0) > 25


def test_while_a_log_is_away_no_more_is_read_than_may_wait_for_it(two_logs):
    sources, logs = two_logs
    newest = {}
    sources["b"].is_away = True
    assert drain(sources, logs, newest, room=1)[0] == ("a", [1]) and logs.positions["a"] == 4
    logs.positions["a"] = 1
    assert drain(sources, logs, newest, room=0) == [] and logs.positions == {"a": 1, "b": 0}
    sources["b"].is_away = False
    time.sleep(1.1)  # it is tried again after a second
    assert drain(sources, logs, newest, room=0) == [("b", [1, 2]), ("b", [3]), ("a", [2, 3]), ("a", [4])]


def test_a_log_without_parts_yet_is_waited_for(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "1.jsonl").write_text("10\n20\n")
    logs = Logs([f"folder://{tmp_path / name}" for name in ("a", "b")], {}, 0.0, time_us=int)
    assert len(logs.read(lambda _: 0, 1)[1]) == 1 and logs.read(lambda _: 10, 0) is None
    (tmp_path / "b" / "1.jsonl").write_text("15\n")
    logs._looked -= 10.0
    assert len(logs.read(lambda _: 10, 0)[1]) == 1
    (tmp_path / "b" / "1.jsonl").unlink()
    (tmp_path / "b").joinpath(".tfmm_events").unlink()
    (tmp_path / "b").rmdir()  # as where a disk is not mounted
    logs._looked -= 10.0
    logs.read(lambda _: 10, 0)
    assert logs.watermark_us(lambda _: 20, 0) == 0


def test_a_folder_whose_disk_goes_away_and_leaves_an_empty_one_holds_the_watermark_until_it_is_back(tmp_path, caplog):
    """Else the clicks in it would come after what they belong to was taken for negatives."""
    folders = {name: tmp_path / name for name in ("a", "b")}
    for name, times in (("a", "10\n20\n"), ("b", "5\n15\n")):
        folders[name].mkdir()
        (folders[name] / "1.jsonl").write_text(times)
    logs, newest = Logs([f"folder://{folder}" for folder in folders.values()], {}, 0.0, time_us=int), {}

    def read():
        logs._looked -= 10.0
        while (found := logs.read(lambda name: newest.get(name, 0), 1_000)) is not None:
            newest[found[0]] = int(found[1][-1].payload)
        return logs.watermark_us(newest.__getitem__, 0)

    assert read() > 20
    folders["b"].rename(tmp_path / "disk")
    folders["b"].mkdir()
    (tmp_path / "disk" / "2.jsonl").write_text("25\n")
    assert read() == 0 and "b is not the folder that was opened: its .tfmm_events is gone" in caplog.text
    (folders["b"] / ".tfmm_events").write_text("another")  # as a writer leaves it who starts meanwhile
    (folders["b"] / "3.jsonl").write_text("30\n")
    assert read() == 0 and max(newest.values()) == 20
    folders["b"].rename(tmp_path / "left")
    (tmp_path / "disk").rename(folders["b"])
    assert read() > 25 and max(newest.values()) == 25


def test_a_disk_that_is_mounted_over_an_empty_folder_is_read_under_its_own_name(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "1.jsonl").write_text("10\n")
    with event_log.open_source(f"folder://{tmp_path / 'disk'}") as source:
        (wanted,) = [part.name for part in source.parts()]
    (tmp_path / "a").mkdir()
    logs = Logs([f"folder://{tmp_path / 'a'}"], {}, 0.0, time_us=int)
    assert logs.read(lambda _: 0, 1) is None
    (tmp_path / "a").rename(tmp_path / "below")
    (tmp_path / "disk").rename(tmp_path / "a")
    logs._looked -= 10.0
    name, events = logs.read(lambda _: 0, 1)
    assert name == wanted and len(events) == 1
    logs._looked -= 10.0
    assert logs.read(lambda _: 10, 1) is None and logs.watermark_us(lambda _: 10, 0) > 10
