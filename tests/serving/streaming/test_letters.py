"""Dead letters in a log of their own, and sent again."""

import logging

import click.testing
import pytest

from serving.streaming import event_log, events, letters
from tfmm import cli_dead_letters
from tfmm.index import item_index, store

PAYLOADS = [b"base64:hello", b"\xff\xfe", events.make_event("a", title="bad one", event_time_us=1)]


def run(*words):
    done = click.testing.CliRunner().invoke(cli_dead_letters.dead_letters, list(map(str, words)))
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("payload", [*PAYLOADS, None])
def test_a_letter_is_read_as_it_was_sent(payload):
    letter = store.DeadLetter("kafka:a/0", 2**40, "not JSON: \ud83d", payload)
    assert letters.from_json(letters.to_json(letter)) == letter


@pytest.mark.parametrize("payload", [b"?", b"[]", b'{"source": "a"}', events.make_event(7, title="a", event_time_us=1)])
def test_what_is_no_letter_is_named(payload):
    with pytest.raises(ValueError, match="must hold nothing else"):
        letters.from_json(payload)


def test_the_job_sends_them_to_a_topic_and_the_command_sends_their_events_again(
    kafka, make_topic, encoders_dir, tmp_path, running_job, wait_for
):
    items, dead = make_topic(kafka, partitions=2), make_topic(kafka)
    index_path = tmp_path / "items.sqlite"
    with running_job(items, encoders_dir, index_path, letters_url=dead), event_log.open_source(items) as source:
        source.append([*PAYLOADS, events.make_event("b", title="good")])
        with item_index.ItemIndex(index_path) as index:
            wait_for(lambda: len(index.dead_letters()) == 3 and len(index.embeddings("text", "text-1")) == 1)
            wait_for(lambda: sorted(letters.read(dead)) == index.dead_letters())
    shown = run(dead, "--json", "--limit", "0")
    assert shown.count("\n") == 3 and "title: cannot be decoded" in shown
    assert "2 events were sent again" in run(dead, "--reason", "not_JSON".lower(), "--send-to", tmp_path / "a.sqlite")
    with event_log.open_source(tmp_path / "a.sqlite") as log:
        assert sorted(event.payload for event in log.read(0, 9)) == sorted(PAYLOADS[:2])
    assert "3 events were sent again." in run(index_path, "--send-to", tmp_path / "b.sqlite")


class Log:
    """Takes payloads of less than 100 bytes, while it is there."""

    def __init__(self):
        self.is_away, self.taken, self.calls = False, [], 0

    def append(self, payloads):
        self.calls += 1
        if self.is_away:
            raise ConnectionError("no route")
        if any(len(payload) >= 100 for payload in payloads):
            raise ValueError("too large")
        self.taken += payloads


@pytest.fixture
def log(monkeypatch):
    log = Log()
    monkeypatch.setattr(event_log, "open_source", lambda url: log)
    return log


def of(*sizes):
    return [store.DeadLetter("a", place, "bad", b"?" * size) for place, size in enumerate(sizes)]


def test_a_log_that_is_away_takes_no_letter_from_the_index_and_is_left_alone_for_a_minute(log, caplog):
    log.is_away, sender = True, letters.LetterLog("kafka://me:secret@host/dead")
    sender.send(of(1, 1, 1, 1))
    assert "4 dead letters were not sent to kafka://me:***@host/dead, and stand in the index alone" in caplog.text
    assert "no route" in caplog.text
    calls = log.calls
    sender.send(of(1))
    sender.send([])
    assert log.calls == calls and "1 dead letters were not sent" in caplog.text


def test_a_letter_that_is_too_large_keeps_no_other_back(log, caplog):
    caplog.set_level(logging.ERROR)
    letters.LetterLog("kafka://host/dead").send(of(1, 200, 1))
    assert [letters.from_json(payload).position for payload in log.taken] == [0, 2]
    assert caplog.text.count("1 dead letters were not sent") == 1


def test_a_log_that_takes_nothing_is_refused_before_the_job(encoders_dir, tmp_path, install_entry_point):
    from serving.streaming import pipeline

    install_entry_point(tmp_path, "tfmm.event_sources", "deaf = collections:Counter")
    with pytest.raises(ValueError, match=r"need a log that takes them\. Received: deaf://here"):
        pipeline.run(tmp_path / "a.sqlite", encoders_dir, tmp_path / "i.sqlite", letters_url="deaf://here")


@pytest.mark.parametrize(
    ("place", "is_log"),
    [("kafka://h/a", True), ("folder:///a", True), ("redis://h/0?stream=a", True), ("redis://h/0?prefix=a", False),
     ("sqlite:///a", False), ("a.sqlite", False)],
)  # fmt: skip
def test_logs_are_told_from_indices(place, is_log):
    assert letters.is_log(place) == is_log
