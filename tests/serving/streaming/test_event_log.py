"""Tests of the event log."""

import pickle
import sqlite3
import threading

import pytest

from serving.streaming import event_log


def test_offsets_follow_the_order_of_arrival(tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        assert log.append([]) == 0
        assert log.append([b"a", b"b"]) == 2
        assert log.append([b"c"]) == 3
        assert log.read(0, 2) == [event_log.Event(1, b"a"), event_log.Event(2, b"b")]
        assert log.read(2, 9) == [event_log.Event(3, b"c")]
        assert log.read(3, 9) == []


def test_a_new_log_has_a_new_name(tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "a") as a, event_log.SQLiteEventLog(tmp_path / "b") as b:
        with event_log.SQLiteEventLog(tmp_path / "a") as again:
            assert a.name == again.name != b.name


def test_source_travels_to_workers(tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        log.append([b"a"])
        with pickle.loads(pickle.dumps(log)) as copy:
            assert copy.name == log.name and copy.read(0, 1) == log.read(0, 1)


def test_failed_append_leaves_nothing(tmp_path):
    def payloads():
        yield b"a"
        raise RuntimeError("no more")

    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        with pytest.raises(RuntimeError, match="no more"):
            log.append(payloads())
        assert log.read(0, 9) == []


def test_large_payloads_are_read_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "READ_BYTES", 100)
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        log.append([b"a" * 60, b"b" * 60, b"c" * 300, b"d"])
        assert [event.offset for event in log.read(0, 9)] == [1, 2]
        assert [event.offset for event in log.read(2, 9)] == [3]
        assert [event.offset for event in log.read(3, 9)] == [4]
        assert log.append([b"e"]) == 5  # no read holds the file


@pytest.mark.parametrize("value", ["CAST(x'7bff' AS TEXT)", "x'7bff'"])
def test_payloads_that_others_wrote_as_text_are_bytes(value, tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        with sqlite3.connect(log.path) as other:
            other.execute(f"INSERT INTO events (payload) VALUES ({value}), (5)")
        other.close()
        assert log.read(0, 9) == [event_log.Event(1, b"{\xff"), event_log.Event(2, b"5")]


def test_writers_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "events.sqlite"
    event_log.SQLiteEventLog(path).close()

    def write(worker):
        with event_log.SQLiteEventLog(path) as log:
            for n in range(20):
                log.append([f"{worker}-{n}".encode()])

    threads = [threading.Thread(target=write, args=(worker,)) for worker in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with event_log.SQLiteEventLog(path) as log:
        found = log.read(0, 100)
    assert [event.offset for event in found] == list(range(1, 61))
    assert len({event.payload for event in found}) == 60
