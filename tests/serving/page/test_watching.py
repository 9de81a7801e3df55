"""What the page makes of processes that hang, start anew, or tell what is no number."""

import json
import math
import threading
import time

import prometheus_client
import pytest

from serving import metrics
from serving.page import cells, counters, document, watching


def test_a_question_that_hangs_is_said_and_stands_in_nobodys_way(monkeypatch):
    monkeypatch.setattr(watching, "_PATIENCE_S", 0.05)
    end = threading.Event()
    watch = watching.Watch("index", "redis://host", lambda: end.wait(60), 1.0)
    assert not watch.notes and watch.is_silent  # it was not asked yet
    watch.start()
    while not watch.notes:
        time.sleep(0.01)
    (note,) = watch.notes
    assert "no answer from index redis://host" in note["text"] and "silent" in note["text"]
    assert note["level"] == cells.BAD and watch.is_silent
    watch.stop()
    end.set()
    watch.join(60)
    assert not watch.notes and watch.value is True


def test_a_first_look_that_reads_much_is_given_its_time(monkeypatch):
    monkeypatch.setattr(watching, "_PATIENCE_S", 0.0)
    notes = []
    watch = watching.Watch("log", "folder", lambda: notes.append(watch.notes), 1.0, first_s=watching.FIRST_LOOK_S)
    watch.ask()
    monkeypatch.setattr(watch, "_took_s", 0.0)
    watch.ask()
    assert not notes[0] and "silent" in notes[1][0]["text"]


def test_what_fails_inside_the_page_is_said_and_the_numbers_before_stay(caplog):
    faults = []

    def section():
        if faults:
            raise faults[0]
        yield cells.section("own", "Own", [], [])

    with document.Board({}, sections=[section], every_s=0.01) as board:
        faults.append(ZeroDivisionError("a fault"))
        while board.document["state"]["level"] != cells.BAD:
            time.sleep(0.01)
        assert "ZeroDivisionError('a fault')" in board.document["state"]["text"]
        assert [one["name"] for one in board.document["sections"]] == ["own"]
        faults.clear()
        while board.document["state"]["level"] == cells.BAD:
            time.sleep(0.01)
    assert "the page cannot be put together" in caplog.text


def test_numbers_that_are_none_are_unknown_and_the_document_is_json():
    registry = prometheus_client.CollectorRegistry()
    for name in ("tfmm_requests_waiting", "tfmm_requests_running"):
        prometheus_client.Gauge(name, "A gauge.", registry=registry).set(math.nan)
    with metrics.served(registry, 0, "127.0.0.1") as port:
        board = document.Board({"server": [f"127.0.0.1:{port}"]})
        for watch in board._watches:
            watch.ask()
        found = board.assemble()
    text = json.dumps(found, allow_nan=False)
    assert '"waiting": {"value": null' in text
    for made in (cells.rate, cells.duration, cells.share, cells.number, cells.moment, cells.count):
        assert made(math.inf)["value"] is None and made(None)["text"] == "–"
    assert cells.points([1.0, math.nan, 2.0])["value"] == [1.0, None, 2.0]


def test_a_page_that_is_none_of_metrics_is_no_answer():
    watch = watching.Watch("server", "a", lambda: counters.read("<html>never</html>"), 1.0)
    watch.ask()
    assert watch.notes and watch.is_silent


def samples(**counts):
    return {"n_total": {(("k", name),): float(value) for name, value in counts.items()}}


@pytest.mark.parametrize(
    ("taken", "grown"),
    [
        ([samples(a=5), samples(a=7)], {"a": 2}),
        ([samples(a=5), samples(a=1), samples(a=4)], {"a": 4}),  # started anew
        ([samples(a=5), samples(a=6, b=3)], {"a": 1, "b": 3}),  # b was not counted before
        ([samples(a=5), {}, samples(a=2)], {"a": 2}),  # gone, and back
        ([samples(a=5)], {"a": 0}),
    ],
)
def test_counters_grow_by_their_differences_also_where_a_process_starts_anew(taken, grown):
    own = counters.Counters(60.0)
    for moment, one in enumerate(taken):
        own.add(float(moment), one)
    assert own.grown("n_total", 60.0) == {(("k", name),): float(value) for name, value in grown.items()}
    assert bool(own.rates("n_total", 60.0)) == (len(taken) > 1)


def test_samples_are_kept_for_their_window_alone():
    own = counters.Counters(10.0)
    for moment in range(100):
        own.add(float(moment), samples(a=moment))
    assert own.grown("n_total", 1000.0) == {(("k", "a"),): 10.0} and own.over_s(4.0) == 4.0


def test_lines_have_as_many_points_as_they_promise():
    trends = watching.Trends(every_s=1.0)
    for second in range(2 * watching.TREND_S):
        found = trends.add("a", float(second))
    last = 2 * watching.TREND_S - 1
    assert len(found["value"]) == watching.TREND_POINTS
    assert found["value"][-1] == pytest.approx(last - 4.5, rel=1e-3)  # the mean of its ten seconds
    assert trends.add("b", None)["text"] == "no values yet"


def test_samples_may_be_read_while_others_come():
    own, end, faults = counters.Counters(1e9), threading.Event(), []

    def read():
        try:
            while not end.is_set():
                own.over_s(1e9)
        except RuntimeError as fault:
            faults.append(fault)

    reader = threading.Thread(target=read)
    reader.start()
    for moment in range(20_000):
        own.add(float(moment), {})
    end.set()
    reader.join(60)
    assert not faults
