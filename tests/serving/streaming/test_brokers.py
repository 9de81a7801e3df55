"""What only logs with a server of their own can do: gain a partition, delete what is old, go away and return."""

import json
import logging
import time

import confluent_kafka
import confluent_kafka.admin
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.deploy.kafka import broker as broker_lib
from serving.streaming import event_log, events, reading
from tfmm import fingerprints
from tfmm.index import store


def vectors_of(index):
    return set(index.embeddings("text", "text-1").ids.tolist()) if index.has_encoder("text", "text-1") else set()


def ids_of(names):
    return set(fingerprints.fingerprint(list(names)).tolist())


def append(source, names):
    source.append([events.make_event(name, title=f"title of {name}") for name in names])


def admin_of(broker):
    return confluent_kafka.admin.AdminClient({"bootstrap.servers": broker.address})


def test_a_partition_that_is_added_is_read(kafka, make_topic, encoders_dir, tmp_path, running_job, wait_for):
    url, index_path = make_topic(kafka), tmp_path / "items.sqlite"
    topic = url.rpartition("/")[2]
    with running_job(url, encoders_dir, index_path), event_log.open_source(url) as source:
        append(source, "ab")
        with store.open_store(index_path) as index:
            wait_for(lambda: vectors_of(index) == ids_of("ab"))
            admin = admin_of(kafka)
            admin.create_partitions([confluent_kafka.admin.NewPartitions(topic, 4)])[topic].result()
            broker_lib.await_partitions(admin, topic, 4)  # else a producer gives their events up
            producer, faults = confluent_kafka.Producer({"bootstrap.servers": kafka.address}), []
            for partition in (1, 2, 3):
                name = f"new-{partition}"
                payload = events.make_event(name, title=name)
                producer.produce(topic, payload, partition=partition, on_delivery=lambda *told: faults.append(told[0]))
            assert producer.flush(120) == 0 and faults == [None] * 3
            wait_for(lambda: vectors_of(index) == ids_of(["a", "b", "new-1", "new-2", "new-3"]))


def test_a_broker_that_goes_away_is_waited_for(make_broker, make_topic, encoders_dir, tmp_path, running_job, wait_for):
    broker, index_path = make_broker(), tmp_path / "items.sqlite"
    url = make_topic(broker, partitions=2)
    with running_job(url, encoders_dir, index_path), event_log.open_source(url) as source:
        append(source, "abc")
        with store.open_store(index_path) as index:
            wait_for(lambda: vectors_of(index) == ids_of("abc"))
            assert len(source.parts()) == 2 and source.fault is None
            broker.kill()
            assert source.parts() == [] and source.fault is not None
            time.sleep(3.0)
            broker.up()
            wait_for(lambda: len(source.parts()) == 2 and source.fault is None)
            append(source, "de")
            wait_for(lambda: vectors_of(index) == ids_of("abcde"))
    broker.down()


def test_what_retention_deleted_is_said_and_reading_goes_on(kafka, make_topic, caplog):
    url = make_topic(kafka)
    with event_log.open_source(url) as source:
        source.append([b"%d" % n for n in range(10)])
        place = confluent_kafka.TopicPartition(source.topic, 0, 6)
        admin = admin_of(kafka)
        (done,) = admin.delete_records([place]).values()
        assert done.result().low_watermark == 6
        for after, is_lost in ((3, True), (6, False), (0, False)):
            caplog.clear()
            (part,), found = source.parts(), []
            end = time.monotonic() + 120
            while len(found) < 4 and time.monotonic() < end:  # a read gives what has come by then
                found += part.read(found[-1].offset if found else after, 10)
                time.sleep(0.01)
            assert [event.payload for event in found] == [b"6", b"7", b"8", b"9"]
            assert ("lost: offsets 4 to 6, deleted before they were read, of kafka:" in caplog.text) == is_lost


def test_what_a_stream_was_trimmed_of_is_said(redis_server, caplog):
    url = redis_server.url().split("?")[0] + "?stream=trimmed"
    with event_log.open_source(url) as source:
        source.append([b"%d" % n for n in range(10)])
        offsets = [event.offset for event in source.read(0, 10)]
        source._redis.xtrim("trimmed", maxlen=4, approximate=False)
        for after, is_lost in ((offsets[2], True), (offsets[6], False), (0, False)):
            caplog.clear()
            with event_log.open_source(url) as reader:
                assert [event.payload for event in reader.read(after, 10)][-3:] == [b"7", b"8", b"9"]
            assert ("lost: perhaps entries behind" in caplog.text) == is_lost


def test_a_stream_of_other_fields_becomes_dead_letters(redis_server, encoders_dir, tmp_path, running_job, wait_for):
    url = redis_server.url().split("?")[0] + "?stream=others"
    index_path = tmp_path / "items.sqlite"
    with running_job(url, encoders_dir, index_path), event_log.open_source(url) as source:
        source._redis.xadd("others", {"item": 7, "name": b"\xff"})
        append(source, "a")
        with store.open_store(index_path) as index:
            wait_for(lambda: vectors_of(index) == ids_of("a"))
            (letter,) = index.dead_letters()
    assert (letter.source, letter.payload) == (
        source.name,
        '{"item": "7", "name": "\ufffd"}'.encode("ascii", "backslashreplace"),
    )


@pytest.mark.parametrize(
    ("url", "fault"),
    [
        ("kafka://{}/", "must read kafka://host:port/topic"),
        ("kafka://{}/a/b", "must read kafka://host:port/topic"),
        ("kafka://{}/nowhere", "The topic of .* must exist. Received: 'nowhere'"),
        ("kafka://{}/nowhere?nonsense=1", 'must be librdkafka\'s. No such configuration property: "nonsense"'),
        ("redis://{}/0", "must name a stream"),
        ("folder:///nowhere/at/all", "must be a folder"),
    ],
)
def test_an_address_that_leads_nowhere_is_refused(request, url, fault):
    if url.startswith("kafka"):
        url = url.format(request.getfixturevalue("kafka").address)
    if url.startswith("redis"):
        url = url.format(f"127.0.0.1:{request.getfixturevalue('redis_server').port}")
    with pytest.raises((ValueError, FileNotFoundError), match=fault):
        event_log.open_source(url)


def test_settings_of_a_file_are_taken(kafka, make_topic, tmp_path):
    settings = tmp_path / "kafka.properties"
    settings.write_text("# of the shop\nclient.id = shop\n\nsocket.timeout.ms=5000\n")
    with event_log.open_source(f"{make_topic(kafka)}?config={settings}&group=ads") as source:
        assert source.settings["client.id"] == "shop" and source.settings["socket.timeout.ms"] == "5000"
        assert source.group == "ads"
    settings.write_text("client.id\n")
    with pytest.raises(ValueError, match=r"must read `setting=value`\. Received: 'client.id'"):
        event_log.open_source(f"kafka://{kafka.address}/a?config={settings}")


def test_the_group_learns_how_far_the_index_is(
    kafka, make_topic, encoders_dir, tmp_path, running_job, wait_for, monkeypatch
):
    from serving.streaming import kafka_events

    monkeypatch.setattr(kafka_events, "_COMMIT_EVERY_S", 0.05)
    url = make_topic(kafka)
    with (
        running_job(f"{url}?group=watched", encoders_dir, tmp_path / "items.sqlite"),
        event_log.open_source(url) as source,
    ):
        append(source, "abc")
        consumer = confluent_kafka.Consumer({"bootstrap.servers": kafka.address, "group.id": "watched"})
        place = [confluent_kafka.TopicPartition(source.topic, 0)]
        wait_for(lambda: consumer.committed(place, timeout=60)[0].offset == 3)
        consumer.close()


def test_a_rebalance_of_the_group_takes_no_partition_away(
    kafka, make_topic, encoders_dir, tmp_path, running_job, wait_for, monkeypatch
):
    """Others that come into the group, and go, are given its partitions; commits of the job then fail."""
    from serving.streaming import kafka_events

    monkeypatch.setattr(kafka_events, "_COMMIT_EVERY_S", 0.05)
    url, index_path = make_topic(kafka, partitions=2), tmp_path / "items.sqlite"
    settings = {"bootstrap.servers": kafka.address, "group.id": "shared", "auto.offset.reset": "earliest"}
    with (
        running_job(f"{url}?group=shared", encoders_dir, index_path),
        event_log.open_source(url) as source,
        store.open_store(index_path) as index,
    ):
        append(source, "ab")
        wait_for(lambda: vectors_of(index) == ids_of("ab"))
        other = confluent_kafka.Consumer(settings)
        other.subscribe([source.topic])

        def is_assigned():
            other.poll(0.1)
            return len(other.assignment()) == 2

        wait_for(is_assigned)
        append(source, "cdef")
        wait_for(lambda: vectors_of(index) == ids_of("abcdef"))
        other.close()
        append(source, "gh")
        wait_for(lambda: vectors_of(index) == ids_of("abcdefgh"))


def test_shares_take_each_log_once(tmp_path):
    for number in range(7):
        (tmp_path / f"{number}.jsonl").write_bytes(b"{}\n")
    source = event_log.open_source(f"folder://{tmp_path}")
    taken = [part.name for number in range(3) for part in reading.Share(number, 3).of(source.parts())]
    assert sorted(taken) == [part.name for part in source.parts()]
    one = event_log.open_source(tmp_path / "events.sqlite")
    assert [len(reading.Share(number, 3).of([one])) for number in range(3)].count(1) == 1
    one.close()


def test_a_file_that_is_damaged_or_gone_keeps_no_other_back(tmp_path, caplog):
    (tmp_path / "a.parquet").write_bytes(b"")
    (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more PAR1")
    (tmp_path / "c.jsonl").write_bytes(b"{}\n")
    (tmp_path / ".d.jsonl").write_bytes(b"{}\n")
    with event_log.open_source(f"folder://{tmp_path}") as source:
        parts = source.parts()
        assert [len(part.read(0, 9)) for part in parts] == [0, 0, 1]
        assert caplog.text.count("cannot be read") == 2
        assert [len(part.read(0, 9)) for part in parts[:2]] == [0, 0] and caplog.text.count("cannot be read") == 2
        pq.write_table(pa.table({"item_id": [1, 2], "title": ["a", None]}), tmp_path / "a.parquet")
        assert [event.payload for event in parts[0].read(0, 9)] == [
            b'{"version": 1, "item_id": 1, "title": "a"}',
            b'{"version": 1, "item_id": 2}',
        ]
        (tmp_path / "c.jsonl").unlink()
        assert parts[2].read(0, 9) == []


def test_a_last_line_without_an_end_is_an_event_where_it_is_a_whole_object(tmp_path, caplog):
    """As `"\\n".join` writes it; the beginning of an object never is one, so half an event is never taken."""
    path = tmp_path / "a.jsonl"
    with caplog.at_level(logging.INFO), event_log.open_source(f"folder://{tmp_path}") as source:
        path.write_bytes(b'{"n": 1}\n{"n": 2}')
        (part,) = source.parts()
        assert [event.payload for event in part.read(0, 9)] == [b'{"n": 1}', b'{"n": 2}']
        path.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n": {"m": 3}')
        assert part.read(2, 9) == [] and "a.jsonl ends in a half-written line" in caplog.text
        path.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n": {"m": 3}}\n')
        assert part.read(2, 9) == [event_log.Event(3, b'{"n": {"m": 3}}')]


def test_a_line_that_comes_after_the_last_one_was_read_is_seen_at_once(tmp_path):
    """Whatever the reader did meanwhile: embed what it has read, for one."""
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"1\n2\n")
    with event_log.open_source(f"folder://{tmp_path}") as source:
        (part,) = source.parts()
        assert [event.payload for event in part.read(0, 9)] == [b"1", b"2"]
        for number in (3, 4):
            with path.open("ab") as file:
                file.write(b"%d\n" % number)
            assert part.read(number - 1, 9) == [event_log.Event(number, b"%d" % number)]
        assert part.read(4, 9) == part.read(4, 9) == []
        with path.open("ab") as file:
            file.write(b"5\n")
        assert part.read(4, 9) == [event_log.Event(5, b"5")]


def test_what_is_no_file_of_events_is_named_once(tmp_path, caplog):
    for name in ("a.jsonl", "b.json", "c.csv", "_SUCCESS", ".d.json"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "more").mkdir()
    with event_log.open_source(f"folder://{tmp_path}") as source:
        assert len(source.parts()) == len(source.parts()) == 1
    assert [record.getMessage() for record in caplog.records] == [
        f"not used: {tmp_path / name} (events are files *.parquet or *.jsonl)" for name in ("b.json", "c.csv", "more")
    ]


def test_rows_of_a_table_are_read_on_from_where_they_were(tmp_path, monkeypatch):
    """Each row is decoded once, however small the batches that the job takes."""
    decoded = []
    iterate = pq.ParquetFile.iter_batches
    monkeypatch.setattr(
        pq.ParquetFile, "iter_batches",
        lambda self, **options: (decoded.append(batch.num_rows) or batch for batch in iterate(self, **options)),
    )  # fmt: skip
    times = pa.array(range(2000), pa.timestamp("ms"))
    table = {
        "item_id": range(2000),
        "image": [b"\xff"] * 2000,
        "event_time_us": times,
        "contents": [{"clip": b"a"}] * 2000,
    }
    pq.write_table(pa.table(table), tmp_path / "items.parquet")
    with event_log.open_source(f"folder://{tmp_path}") as source:
        (part,) = source.parts()
        position, found = 0, []
        while batch := part.read(position, 32):
            found += batch
            position = batch[-1].offset
        assert [event.offset for event in found] == list(range(1, 2001)) and sum(decoded) == 2000
        last = json.loads(found[-1].payload)
        assert last == {"version": 1, "item_id": 1999, "image": "/w==", "event_time_us": 1999000,
                        "contents": {"clip": {"base64": "YQ=="}}}  # fmt: skip
        (again,) = source.parts()
        assert again.read(1990, 32) == found[1990:]


def test_files_that_are_appended_never_share_a_name_and_the_folder_keeps_its_own(tmp_path):
    with event_log.open_source(f"folder://{tmp_path}") as source:
        assert source.append([b"1", b"2\n3"]) == 2
        (first,) = source.parts()
        assert [event.payload for event in first.read(0, 9)] == [b"1", b"2 3"]
        (tmp_path / "mounted").symlink_to(tmp_path)
        (again,) = event_log.open_source(f"folder://{tmp_path}/mounted").parts()
        assert again.name == first.name
        for path in tmp_path.glob("*.jsonl"):
            path.unlink()
        source.append([b"4"])
        (second,) = source.parts()
        assert second.name != first.name


def test_a_stream_and_the_index_may_lie_in_one_redis(redis_server, tmp_path, encoders_dir, running_job, wait_for):
    """Offsets of entries are beyond what a float64 holds."""
    url = redis_server.url().split("?")[0] + "?stream=beside"
    index_url = redis_server.url(prefix=str(tmp_path))
    with running_job(url, encoders_dir, index_url), event_log.open_source(url) as source:
        append(source, "ab")
        source.append([b"?"])
        append(source, "c")
        with store.open_store(index_url) as index:
            wait_for(lambda: vectors_of(index) == ids_of("abc"))
            assert index.position(source.name) > 2**53 and len(index.dead_letters()) == 1
