"""Dead letters in a log of their own, and sent again."""

import click.testing
import pytest

from serving.streaming import event_log, events, letters
from tfmm import cli_dead_letters
from tfmm.index import item_index, store

PAYLOADS = [b"no JSON", b"\xff\xfe", events.make_event("a", title="bad one", event_time_us=1)]


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


def test_a_log_that_is_away_takes_no_letter_from_the_index(caplog):
    class Away:
        def append(self, payloads):
            raise ConnectionError("no route")

    letters.send([store.DeadLetter("a", 1, "bad", b"?")], Away())
    assert "1 dead letters were not sent, and stand in the index alone: no route" in caplog.text
