"""The log's files: whole whenever they are seen, and nothing lost by a full disk or a process that was killed."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from serving import served_log
from serving.streaming import event_log
from tfmm.data import served

KILLED = """
import functools, sys, time
from serving import served_log
log = served_log.Log("served", sys.argv[1], rotate_s=3600.0)
def record(number):
    return {"request_id": f"r{number}", "time": 1.0, "model": "m", "version": 1, "encoders": {"a": "b"},
            "index": {"a": 3}, "features": {"user_id": 7}, "items": [1, "x"], "scores": [0.5, 0.25]}
for number in range(2000):
    with log.place() as place:
        place.fill(functools.partial(record, number))
while log.counts["written"] < 2000:
    time.sleep(0.01)
print("written", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """Logs that end have all the time that they need; tests of what they lose set their own."""
    monkeypatch.setattr(served_log, "_STOP_S", 300.0)
    monkeypatch.setattr(served_log, "_LAST_S", 60.0)


def record(number):
    return {"request_id": f"r{number}", "time": 1.5, "model": "m", "version": 1, "encoders": {}, "index": {"image": 4},
            "features": {"user_id": number, "x": [None, 1.5]}, "items": ["a"], "scores": [0.5]}  # fmt: skip


def put(log, numbers):
    for number in numbers:
        with log.place() as place:
            place.fill(lambda number=number: record(number))


def ids(folder):
    return sorted(
        int(one.request_id[1:])
        for path in served.files(folder)
        for one in map(served.parse, served.payloads(path))
    )


def test_a_reader_never_sees_half_a_file(tmp_path, monkeypatch):
    """Files are closed all the time while records come; whoever looks reads whole ones, and each record once."""
    monkeypatch.setattr(served_log, "ROTATE_BYTES", 2_000)
    log = served_log.Log("served", f"folder://{tmp_path}", max_waiting=10_000)
    writer = threading.Thread(target=put, args=(log, range(1000)))
    writer.start()
    while writer.is_alive():
        found = ids(tmp_path)
        assert len(found) == len(set(found))
    log.close()
    assert ids(tmp_path) == list(range(1000)) and len(served.files(tmp_path)) > 3
    assert not list(tmp_path.glob(".*"))
    one = served.parse(next(served.payloads(served.files(tmp_path)[0])))
    assert one.features["x"] == [None, 1.5] and one.index == {"image": 4} and one.item_features is None


def test_what_a_killed_process_wrote_is_there_when_the_folder_is_opened_again(tmp_path, root):
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    served_log.Log("served", str(tmp_path)).close()  # beside it: what a living process writes is its own
    assert served.files(tmp_path) == []
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with next(tmp_path.glob(".*.jsonl")).open("ab") as file:
        file.write(b'{"request_id": "half')
    served_log.Log("served", str(tmp_path)).close()
    assert ids(tmp_path) == list(range(2000)) and not list(tmp_path.glob(".*"))


def test_a_disk_that_was_full_for_a_while_loses_and_repeats_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(served_log, "_RETRY_S", 0.01)
    log = served_log.Log("served", str(tmp_path))
    convert, failures = log._sink._convert, iter(range(3))

    def failing(lines):
        if next(failures, None) is not None:
            raise OSError(28, "No space left on device")
        convert(lines)

    log._sink._convert = failing
    monkeypatch.setattr(served_log, "ROTATE_BYTES", 1)
    put(log, range(50))
    log.close()
    assert ids(tmp_path) == list(range(50)) and log.counts["failures"] == 3 and log.counts["lost"] == 0


def test_a_log_of_events_takes_records_as_a_folder_does(tmp_path):
    log = served_log.Log("served", f"sqlite:///{tmp_path / 'served.sqlite'}")
    put(log, range(10))
    log.close()
    with event_log.SQLiteEventLog(tmp_path / "served.sqlite") as source:
        found = [served.parse(event.payload) for event in source.read(0, 100)]
    assert [one.features["user_id"] for one in found] == list(range(10))
    assert json.loads(served.to_json(found[3]))["index"] == {"image": 4}


def test_a_sample_drops_what_finds_no_place_and_takes_the_same_requests_everywhere(tmp_path):
    logs = [served_log.Log("inspection", str(tmp_path / name), sample_rate=0.25, max_waiting=1) for name in "ab"]
    taken = [[number for number in range(4000) if log.takes(f"r{number}")] for log in logs]
    assert taken[0] == taken[1] and 800 < len(taken[0]) < 1200
    with logs[0].place() as first, logs[0].place() as second:
        first.fill(lambda: record(1))
        second.fill(lambda: record(2))
    for log in logs:
        log.close()
    assert ids(tmp_path / "a") == [1] and logs[0].counts["dropped"] == 1


def test_what_cannot_be_appended_to_is_no_log():
    with pytest.raises(ValueError, match="scheme of an event source's URL must be one of"):
        served_log.Log("served", "queue://shop/served")


def test_a_record_that_cannot_be_made_takes_no_other_along(tmp_path):
    log = served_log.Log("served", str(tmp_path))
    with log.place() as place:
        place.fill(lambda: {}["missing"])
    put(log, [1])
    log.close()
    assert ids(tmp_path) == [1] and log.counts["lost"] == 1


def test_another_server_on_the_folder_leaves_a_file_that_is_being_begun(tmp_path, monkeypatch):
    """It starts after the file was made, and before it is locked."""
    locks, folders = fcntl.flock, []

    def late(file, kind):
        if not folders:
            folders.append(None)
            served_log.Log("served", str(tmp_path)).close()
        locks(file, kind)

    monkeypatch.setattr(served_log, "_RETRY_S", 0.01)
    monkeypatch.setattr(served_log.fcntl, "flock", late)
    log = served_log.Log("served", str(tmp_path))
    put(log, range(3))
    log.close()
    assert folders and ids(tmp_path) == [0, 1, 2] and not list(tmp_path.glob(".*"))
    assert log.counts["failures"] == log.counts["lost"] == 0


def test_a_server_that_ends_while_its_broker_is_away_tries_no_further_batch_once_its_time_is_up(tmp_path, monkeypatch):
    monkeypatch.setattr(served_log, "_RETRY_S", 0.01)
    monkeypatch.setattr(served_log, "_STOP_S", 0.0)
    monkeypatch.setattr(served_log, "_BATCH", 10)
    log, is_tried, may_fail, tries = served_log.Log("served", str(tmp_path)), threading.Event(), threading.Event(), []

    def failing(payloads):
        tries.append(len(payloads))
        is_tried.set()
        may_fail.wait(60)
        raise OSError("the broker is away")

    log._sink.append = failing
    put(log, range(100))
    is_tried.wait(60)
    closing = threading.Thread(target=log.close)
    closing.start()
    while log._stops_at is None:
        time.sleep(0.01)
    may_fail.set()
    closing.join()
    assert len(tries) == 1 and log.counts["lost"] == 100 and log.counts["written"] == 0


def test_a_server_ends_though_its_log_hangs(tmp_path, monkeypatch, caplog):
    """What is neither written nor given up by then is lost, and said."""
    for name in ("_STOP_S", "_LAST_S"):
        monkeypatch.setattr(served_log, name, 0.1, raising=False)
    monkeypatch.setattr(served_log, "_BATCH", 10)
    log, is_tried, may_end = served_log.Log("served", str(tmp_path)), threading.Event(), threading.Event()
    append = log._sink.append

    def hanging(payloads):
        is_tried.set()
        may_end.wait(500)
        append(payloads)

    log._sink.append = hanging
    put(log, range(25))
    is_tried.wait(60)
    closing = threading.Thread(target=log.close)
    closing.start()
    closing.join(60)  # far longer than it takes
    has_ended, lost = not closing.is_alive(), log.counts["lost"]
    may_end.set()
    closing.join()
    log._thread.join()
    assert has_ended and lost == 25 and "25 records are lost" in caplog.text
