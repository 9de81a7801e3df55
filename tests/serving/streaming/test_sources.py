"""What every source of events must do; a new source joins by a line in MAKERS."""

import itertools
import pathlib
import pickle
import time
import uuid

import pytest

from serving.streaming import event_log

MAKERS = ("sqlite", "folder", "redis", "kafka")


@pytest.fixture(params=MAKERS)
def url(request, tmp_path):
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/events.sqlite"
    if request.param == "folder":
        (tmp_path / "events").mkdir()
        return f"folder://{tmp_path}/events"
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url().split("?")[0] + f"?stream={uuid.uuid4()}"
    return request.getfixturevalue("make_topic")(request.getfixturevalue("kafka"), partitions=3)


@pytest.fixture
def source(url):
    with event_log.open_source(url) as source:
        yield source


def read_all(source, positions, limit=10, at_least=0, within_s=120.0):
    """Reads every log of a source behind `positions`, which it moves on; until it has so many events, if not more."""
    found, end = [], time.monotonic() + within_s
    parts = {}
    while True:
        for part in event_log.parts_of(source):
            part = parts.setdefault(part.name, part)
            while batch := part.read(positions.get(part.name, 0), limit):
                assert len(batch) <= limit
                offsets = [positions.get(part.name, 0), *(event.offset for event in batch)]
                assert all(a < b for a, b in itertools.pairwise(offsets))
                positions[part.name] = offsets[-1]
                found += [event.payload for event in batch]
        if len(found) >= at_least or time.monotonic() > end:
            return found
        time.sleep(0.01)


def test_events_are_read_once_in_order_and_on_from_a_position(source):
    assert read_all(source, {}) == []
    source.append([b'{"n": %d}' % n for n in range(25)])
    positions = {}
    first = read_all(source, positions, limit=4, at_least=25)
    assert sorted(first) == sorted(b'{"n": %d}' % n for n in range(25))
    assert read_all(source, positions) == []
    source.append([b'{"late": 1}'])
    assert read_all(source, positions, at_least=1) == [b'{"late": 1}']


def test_another_reader_in_another_process_sees_the_same_logs(source, url):
    source.append([b"1", b"2", b"3"])
    positions = {}
    read_all(source, positions, at_least=3)
    other = pickle.loads(pickle.dumps(source))
    assert sorted(read_all(other, {}, at_least=3)) == [b"1", b"2", b"3"]
    assert read_all(event_log.open_source(url), positions) == []  # names and offsets are the log's, not the reader's


def test_a_position_may_be_taken_again(source):
    """As after a batch that was read, and not written."""
    source.append([b"1", b"2", b"3", b"4"])
    parts, end, found = event_log.parts_of(source), time.monotonic() + 120.0, {}
    while not any(found.values()) and time.monotonic() < end:
        found = {part: part.read(0, 10) for part in parts}
        time.sleep(0.01)
    part, first = next((part, events) for part, events in found.items() if events)
    assert read_many(part, 0, len(first)) == first
    assert read_many(part, first[0].offset, len(first) - 1) == first[1:]


def read_many(part, after, count, within_s=120.0):
    """Reads so many events, of which a read may give some."""
    found, end = [], time.monotonic() + within_s
    while len(found) < count and time.monotonic() < end:
        found += part.read(found[-1].offset if found else after, count - len(found))
        time.sleep(0.01)
    return found


def test_large_events_come_in_small_batches(source, monkeypatch):
    monkeypatch.setattr(event_log, "READ_BYTES", 3000)
    source.append([b"%d" % n * 1000 for n in range(9)])
    positions, found, parts = {}, [], event_log.parts_of(source)
    end = time.monotonic() + 120.0
    while len(found) < 9 and time.monotonic() < end:
        for part in parts:
            batch = part.read(positions.get(part.name, 0), 10)
            assert sum(len(event.payload) for event in batch[:-1]) < 3000
            positions[part.name] = batch[-1].offset if batch else positions.get(part.name, 0)
            found += batch
    assert sorted(event.payload for event in found) == [b"%d" % n * 1000 for n in range(9)]


def test_all_logs_that_the_docs_name_have_a_source_here():
    docs = pathlib.Path(__file__).parents[3] / "docs" / "serving.md"
    for scheme in event_log.SOURCES:
        assert scheme == "rediss" or scheme == "sqlite" or f"{scheme}://" in docs.read_text(), scheme
