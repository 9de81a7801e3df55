"""Logs with a backlog of many files: none of it is lost, little of it waits, few files are open."""

import contextlib
import errno
import functools
import json
import os
import resource

import pytest

from serving.nearline import joining, logs_of_records, records
from serving.nearline.logs_of_records import Logs
from serving.streaming import event_log, folder_events

T, WINDOW_S, LABEL = 1_709_596_800, 10, "click"
time_us = functools.partial(records.time_of, label=LABEL)


def request(number, at):
    return {
        "request_id": f"r{number}", "time": T + at, "model": "tfmm", "version": 1, "encoders": {}, "index": {},
        "features": {"user_id": 1}, "items": [1, 2], "scores": [0.5, 0.5],
    }  # fmt: skip


def write(path, found):
    path.write_text("".join(json.dumps(one) + "\n" for one in found))


def logs_of(*folders):
    return Logs([f"folder://{folder}" for folder in folders], {}, 0.0, time_us)


def step(logs, join):
    """As the trainer: returns whether there were records, and what has left."""
    found = logs.read(join.newest_us, join.room)
    for event in found[1] if found else ():
        join.add(found[0], event)
    return found is not None, join.advance(logs.watermark_us(join.newest_us, 1_000_000))


def drain(logs, join):
    """Returns ids of requests as they left, and how many waited at most."""
    left, waited = [], 0
    while True:
        was_found, gone = step(logs, join)
        left += [one.request.request_id for one in gone]
        waited = max(waited, join.num_waiting)
        if not was_found:
            return left, waited


@contextlib.contextmanager
def no_more_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.open("/dev/null", os.O_RDONLY))
        yield
    finally:
        for one in held:
            os.close(one)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_backlog_of_many_files_is_read_in_order_of_time_and_becomes_no_dead_letters(tmp_path):
    files, each = 60, 260
    for file in range(files):
        found = [request(n, n * 0.1) for n in range(file * each, (file + 1) * each)]
        write(tmp_path / f"{(file * 7) % files:03}.jsonl", found)  # names in another order than times
    join = joining.Join(joining.Rules(LABEL, WINDOW_S * 1_000_000, max_waiting=1_000))
    left, waited = drain(logs_of(tmp_path), join)
    assert left == [f"r{n}" for n in range(files * each)] and not join.letters
    assert waited <= WINDOW_S / 0.1 + 2 * each  # a window, and what is read together


def test_files_that_are_written_side_by_side_are_not_all_open_at_once(tmp_path):
    files, each = 150, 300
    for file in range(files):
        write(tmp_path / f"{file:03}.jsonl", [request(f"{file}-{n}", n + file / files) for n in range(each)])
    join = joining.Join(joining.Rules(LABEL, 1_000_000, max_waiting=100_000))
    logs, left, opened = logs_of(tmp_path), [], 0
    before, was_found = len(os.listdir("/proc/self/fd")), True
    while was_found:
        was_found, gone = step(logs, join)
        left += gone
        opened = max(opened, len(os.listdir("/proc/self/fd")) - before)
    assert len(left) == files * each and not join.letters
    assert 0 < opened <= 70


def test_a_file_that_cannot_be_opened_holds_all_back_until_it_can(tmp_path):
    write(tmp_path / "a.jsonl", [request(n, n) for n in range(20)])
    join, logs = joining.Join(joining.Rules(LABEL, WINDOW_S * 1_000_000)), logs_of(tmp_path)
    logs._look_for_parts()
    (part,) = logs._parts.values()
    with no_more_open_files():
        assert step(logs, join) == (False, []) and logs.watermark_us(join.newest_us, 0) == 0
        assert part.log.fault.errno == errno.EMFILE
    part.next_look, logs._looked = 0.0, logs._looked - 10.0  # seconds later
    left, _ = drain(logs, join)
    assert left == [f"r{n}" for n in range(20)] and not join.letters and part.log.fault is None


def test_a_file_that_the_system_refuses_is_said_once_and_tried_again(tmp_path, caplog):
    write(tmp_path / "a.jsonl", [{}])
    with event_log.open_source(f"folder://{tmp_path}") as source:
        (part,) = source.parts()
    with no_more_open_files():
        assert [part.read(0, 9), part.read(0, 9)] == [[], []]
    assert caplog.text.count("cannot be read, and is tried again when it is read the next time") == 1
    assert [event.payload for event in part.read(0, 9)] == [b"{}"]


@pytest.mark.parametrize("payload", [b"?", b'{"request_id": "a", "item_id": 1, "time": 1e12, "shown": true}'])
def test_a_part_that_begins_with_what_cannot_be_used_begins_with_what_can(tmp_path, payload):
    lines = [payload, json.dumps(request(1, 5)).encode()]
    (tmp_path / "a.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    logs = logs_of(tmp_path)
    write(tmp_path / "b.jsonl", [request(2, 4)])
    (name, _), (second, events) = logs.read(lambda _: 0, 9), logs.read(lambda _: 0, 9)
    assert name.endswith("b.jsonl") and second.endswith("a.jsonl") and [event.offset for event in events] == [1, 2]


def test_what_is_more_than_may_wait_stays_in_its_log_while_another_is_away(tmp_path):
    """Requests in a folder, labels in another whose disk is away for so long."""
    (tmp_path / "requests").mkdir()
    (tmp_path / "labels").mkdir()
    write(tmp_path / "requests" / "a.jsonl", [request(n, n * 0.1) for n in range(1_000)])
    clicks = [{"request_id": f"r{n}", "item_id": 1, "time": T + n * 0.1 + 1, LABEL: True} for n in range(1_000)]
    write(tmp_path / "labels" / "a.jsonl", clicks)
    join = joining.Join(joining.Rules(LABEL, WINDOW_S * 1_000_000, max_waiting=300))
    logs = logs_of(tmp_path / "requests", tmp_path / "labels")
    (tmp_path / "labels").rename(tmp_path / "away")
    for _ in range(10):
        assert step(logs, join)[1] == []
    assert join.num_waiting == 300 and not join.letters
    (tmp_path / "away").rename(tmp_path / "labels")
    logs._looked -= 10.0  # seconds later
    left, was_found = [], True
    while was_found:
        was_found, gone = step(logs, join)
        left += gone
    assert len(left) == 1_000 and all(one.labels == {1: 1} for one in left) and not join.letters


def test_files_that_are_finished_are_looked_at_seldom_and_forgotten_when_they_are_gone(tmp_path, monkeypatch):
    for number in range(1_000):
        write(tmp_path / f"{number}.jsonl", [request(number, number)])
    logs, join = logs_of(tmp_path), joining.Join(joining.Rules(LABEL, 1_000_000))
    assert len(drain(logs, join)[0]) == 1_000
    monkeypatch.setattr(logs_of_records, "_LOOKS_PER_S", 1)
    looks, read = [], folder_events.EventFile.read
    monkeypatch.setattr(folder_events.EventFile, "read", lambda *args: looks.append(args) or read(*args))
    for part in logs._parts.values():
        part.next_look = 0.0
    for _ in range(10):
        assert logs.read(join.newest_us, join.room) is None
    assert len(looks) == 1_000  # once each
    for number in range(1, 1_000):
        (tmp_path / f"{number}.jsonl").unlink()
    logs._looked -= 10.0
    logs.read(join.newest_us, join.room)
    (name,) = logs._parts
    assert name.endswith("/0.jsonl") and len(logs.positions) == 1_000
