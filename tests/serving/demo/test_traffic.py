"""Clicks of the demo's shoppers, the watch over new items, and figures of processes that stall."""

import collections
import json
import threading
import time
import types

import numpy as np
import pytest

from serving.demo import delays, figures, traffic
from serving.demo.delays import ScoreWatch
from serving.streaming import event_log
from tfmm.features import FeatureSet


class Client:
    """Of a server whose every request fails with an error."""

    def __init__(self, error):
        self.error = error

    def predict(self, *_):
        raise self.error

    rank = predict

    def close(self):
        pass


@pytest.fixture
def labels(tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "labels.sqlite") as log:
        yield log


@pytest.fixture
def shoppers(labels, monkeypatch):
    """A shop's traffic, without items, over a server that answers no request."""
    monkeypatch.setattr(traffic, "_STOP_S", 60.0)
    made = traffic.Traffic.__new__(traffic.Traffic)
    made._labels, made._client = labels, Client(TimeoutError("stalls"))
    made._lock, made._stop, made._to_come, made._threads = threading.Lock(), threading.Event(), [], []
    made.counts, made._fault, made.watch = traffic.Counts(), "", ScoreWatch(made._client, FeatureSet(), {})
    return made


def sent(labels):
    return [json.loads(event.payload)["item_id"] for event in labels.read(0, 10)]


def test_clicks_are_sent_when_they_are_due_whatever_the_server_does_and_the_rest_at_the_end(shoppers, labels):
    now = time.time()
    shoppers._to_come = [(now - 1.0, b'{"item_id": "due"}'), (now + 1000.0, b'{"item_id": "later"}')]
    shoppers._threads = [threading.Thread(target=shoppers._repeat, args=(100.0, shoppers._send_clicks), daemon=True)]
    with shoppers:
        deadline = time.monotonic() + 60
        while not sent(labels) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sent(labels) == ["due"]
    assert sent(labels) == ["due", "later"] and not shoppers._to_come and not shoppers.fault


def test_clicks_that_no_log_took_come_again(shoppers, labels):
    class Down:
        def append(self, payloads):
            raise OSError("down")

    shoppers._labels, shoppers._to_come = Down(), [(0.0, b'{"item_id": "due"}')]
    with pytest.raises(OSError, match="down"):
        shoppers._send_clicks()
    shoppers._labels = labels
    shoppers._send_clicks()
    assert sent(labels) == ["due"]


def test_a_fault_of_the_watch_is_one_of_the_traffic(shoppers):
    shoppers.watch._client = Client(KeyError("logit"))
    shoppers.watch._rows = lambda candidates: {}
    shoppers.watch.add({"item_id": 1}, time.monotonic())
    shoppers.watch.start()
    shoppers.watch.join(60)
    assert not shoppers.watch.is_alive() and shoppers.fault == "KeyError('logit')"


def test_items_without_scores_do_not_hide_later_ones(monkeypatch):
    """Two of three are looked at at once; the first two never get a score of their own."""
    monkeypatch.setattr(delays, "_AT_ONCE", 2)
    watch = ScoreWatch(Client(None), FeatureSet(), {})
    watch._rows = lambda candidates: [candidate["item_id"] for candidate in candidates]
    answers = lambda ids, _: {"logit": np.array([float(n == 3) for n in ids] + [0.0] * len(ids))}  # noqa: E731
    watch._client = types.SimpleNamespace(predict=answers)
    for number in (1, 2, 3):
        watch.add({"item_id": number}, time.monotonic())
    watch._look()
    watch._look()
    assert len(watch.delays) == 1 and [one["item_id"] for one, _ in watch._waiting] in ([2, 1], [1, 2])


def test_a_process_that_stalls_keeps_its_last_figures(monkeypatch, shoppers, tmp_path):
    ports = types.SimpleNamespace(stream_metrics=1, server_metrics=2, trainer_metrics=3)
    answers = collections.defaultdict(dict)
    monkeypatch.setattr(figures, "samples", lambda port: answers[port])
    client = types.SimpleNamespace(versions=lambda: [])
    meter = figures.Meter(types.SimpleNamespace(ports=ports, trainer_dir=tmp_path), shoppers, client)
    assert meter.read().lag_rows is None
    answers.update({1: {"tfmm_stream_events_total": [50.0]}, 2: {"tfmm_replica_lag_rows": [7.0]}})
    first = meter.read()
    answers.clear()
    stalled = meter.read()
    assert stalled.events_per_s == first.events_per_s > 0 and stalled.lag_rows == 7.0
    answers[1] = {"tfmm_stream_events_total": [50.0]}
    assert meter.read().events_per_s == 0.0
