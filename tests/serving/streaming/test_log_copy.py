"""A log is copied into files that training reads: everything once, whatever ends a copy in the middle."""

import collections
import json

import pytest
from click.testing import CliRunner

from serving.streaming import event_log, log_copy
from tfmm import cli
from tfmm.data import served


def payloads(first, last):
    return [json.dumps({"n": n}).encode() for n in range(first, last)]


def numbers(folder):
    return [json.loads(payload)["n"] for path in served.files(folder) for payload in served.payloads(path)]


def test_what_is_new_is_copied_and_nothing_twice(tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "log.sqlite") as log:
        log.append(payloads(0, 5))
        command = ["data", "copy-log", log.path, str(tmp_path / "copy")]
        said = CliRunner().invoke(cli.main, command, catch_exceptions=False)
        assert "5 new records" in said.output
        assert "0 new records" in CliRunner().invoke(cli.main, command, catch_exceptions=False).output
        log.append(payloads(5, 8))
        assert log_copy.copy(log.path, tmp_path / "copy", print) == 3
    assert numbers(tmp_path / "copy") == list(range(8))


def test_a_copy_that_is_killed_goes_on_behind_the_last_whole_file(tmp_path, monkeypatch):
    monkeypatch.setattr(log_copy, "FILE_BYTES", 40)
    monkeypatch.setattr(log_copy, "_READ", 3)
    written = []

    class Killed(Exception):
        pass

    def sync(number):
        written.append(number)
        if len(written) == 3:
            raise Killed

    monkeypatch.setattr(log_copy.os, "fsync", sync)
    with event_log.SQLiteEventLog(tmp_path / "log.sqlite") as log:
        log.append(payloads(0, 30))
        with pytest.raises(Killed):
            log_copy.copy(log.path, tmp_path / "copy", print)
        taken = numbers(tmp_path / "copy")
        assert 0 < len(taken) < 30 and list((tmp_path / "copy").glob(".*.jsonl"))
        assert log_copy.copy(log.path, tmp_path / "copy", print) == 30 - len(taken)
    assert sorted(numbers(tmp_path / "copy")) == list(range(30)) and not list((tmp_path / "copy").glob(".*.jsonl"))


def test_payloads_of_several_lines_stay_one_record(tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "log.sqlite") as log:
        log.append([b'{\n "n": 1\n}', b"no\njson", b'{"n": 2}'])
        log_copy.copy(log.path, tmp_path / "copy", print)
    (path,) = served.files(tmp_path / "copy")
    assert list(served.payloads(path)) == [b'{"n": 1}\n', b"no json\n", b'{"n": 2}\n']


def test_a_folder_is_not_copied(tmp_path):
    with pytest.raises(ValueError, match="training reads as it is: nothing to copy"):
        log_copy.copy(tmp_path, tmp_path / "copy", print)


def test_every_partition_of_a_topic_is_copied_once(kafka, make_topic, tmp_path, monkeypatch):
    monkeypatch.setattr(log_copy, "_SILENT_S", 120.0)  # nothing but a broker that is slow holds it up
    url = make_topic(kafka, partitions=3)
    with event_log.open_source(url) as topic:
        topic.append(payloads(0, 100))
        assert log_copy.copy(url, tmp_path / "copy", print) == 100
        topic.append(payloads(100, 140))
    assert log_copy.copy(url, tmp_path / "copy", print) == 40
    assert log_copy.copy(url, tmp_path / "copy", print) == 0
    assert collections.Counter(numbers(tmp_path / "copy")) == collections.Counter(range(140))


@pytest.mark.parametrize("prefix", ["", "sqlite:///"])
def test_a_mistyped_path_is_an_error_and_makes_no_log(tmp_path, prefix):
    with pytest.raises(FileNotFoundError, match=r"must be a SQLite file that exists, or the URL.*typo\.sqlite, where"):
        log_copy.copy(f"{prefix}{tmp_path / 'typo.sqlite'}", tmp_path / "copy", print)
    assert not [*tmp_path.iterdir()]


def test_the_bytes_of_a_file_are_counted_once_each(monkeypatch):
    """However many reads a file takes: counting anew at each read takes time by their square."""
    monkeypatch.setattr(log_copy, "_READ", 1)
    asked = collections.Counter()

    class Payload(bytes):
        def __len__(self):
            asked["len"] += 1
            return super().__len__()

    class Log:
        def read(self, after, limit):
            return [event_log.Event(after + 1, Payload(b"{}"))] if after < 50 else []

    assert [len(batch) for batch in log_copy._batches(Log(), 0)] == [50]
    assert asked["len"] == 50
