"""A shop's traffic: new items as events, requests as shoppers send them, and what they click of what they are shown.

Items are drawn by the marketplace's generator, clicks by the click model that it planted (`tfmm.marketplace.visits`):
by tastes that no table tells, so models can be right or wrong about them. A request brings ids, and the history of its
user as the tables have it; the server looks up what the items are. Shown are the best of the ranking, and some of the
rest, so that the trainer's rows are not of the model's own choice alone.
"""

from __future__ import annotations

import heapq
import json
import logging
import math
import pathlib
import threading
import time
import typing

import numpy as np

from serving import client as client_lib
from serving import logging_client
from serving.demo.delays import ScoreWatch
from serving.streaming import events
from serving.streaming.kafka_events import KafkaTopic
from tfmm.config import RunConfig
from tfmm.data import served
from tfmm.marketplace import generator, visits
from tfmm.quickstart import requests

USERS = 300  # those with most behaviors
BEST, OTHERS = 7, 3  # of a ranking that are shown
CLICK_WITHIN_S = 2.0
_CLICKS_PER_S = 20.0  # looks for clicks that are due
_STOP_S = 5.0
_log = logging.getLogger(__name__)


def _length(topic: KafkaTopic) -> int:
    """Returns how many items were sent before: the number of the next one."""
    (part,) = topic.parts()
    try:
        return part.end()
    finally:
        part.close()


class Counts:
    """What was done since the start."""

    def __init__(self) -> None:
        self.events = self.requests = self.failed = self.shown = self.clicked = 0


class Traffic:
    """Threads that send, while the block lasts.

    Args:
        run: of the model in service.
        tables: the marketplace's.
        target: host:port of the server's gRPC.
        items, labels: topics of one partition, which get events of new items, and what was shown and clicked.
        events_per_s, requests_per_s: how fast.
    """

    def __init__(
        self,
        run: RunConfig,
        tables: pathlib.Path,
        target: str,
        items: KafkaTopic,
        labels: KafkaTopic,
        events_per_s: float,
        requests_per_s: float,
    ):
        self._run, self._items, self._labels = run, items, labels
        self._features, self._number = run.feature_set, _length(items)
        self._rng = np.random.default_rng()
        self._visits, self._lock = visits.Visits(run.marketplace, self._rng), threading.Lock()
        zone = run.data.time_zone
        self._users = requests.busiest_users(tables, self._features, zone, USERS)
        self._rows = requests.catalog(tables, self._features, zone)
        looked_up = {feature.name for feature in self._features.stored}
        self._sent = [c.name for c in self._features.served if c.side == "item" and c.name not in looked_up]
        self._client = logging_client.LoggingClient(target, log=None)
        self.watch = ScoreWatch(self._client, self._features, self._users[0])
        self.counts, self._fault = Counts(), ""
        self._stop = threading.Event()
        self._to_come: list[tuple[float, bytes]] = []  # heap of clicks by when they happen
        work = ((events_per_s, self._send_item), (requests_per_s, self._visit), (_CLICKS_PER_S, self._send_clicks))
        self._threads = [threading.Thread(target=self._repeat, args=one, daemon=True) for one in work if one[0]]

    @property
    def fault(self) -> str:
        """What went wrong in a thread, the watch's too; empty: nothing."""
        return self._fault or self.watch.fault

    def __enter__(self) -> Traffic:
        for thread in (*self._threads, self.watch):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(_STOP_S)
        last = threading.Thread(target=self._send_last, daemon=True)  # a broker that is gone holds nobody up
        last.start()
        last.join(_STOP_S)
        self.watch.stop()
        self._client.close()

    def _repeat(self, per_s: float, work: typing.Callable[[], None]) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            try:
                work()
            except client_lib.PredictError as error:
                self.counts.failed += 1
                _log.warning("a request failed: %s", error)
            except Exception as error:  # of the log, whose broker is perhaps gone
                self._fault = repr(error)
                _log.exception("traffic")
            due = max(due + 1.0 / per_s, time.monotonic() - 1.0)  # what is late is made up for, a second of it

    def _send_item(self) -> None:
        number, self._number = self._number, self._number + 1
        item = generator.draw_new_item(self._run.marketplace, number, time.time_ns() // 1000)
        candidate = {name: values[0] for name, values in requests.candidates_of(self._features, [item]).items()}
        event = events.event_of_row(self._run, item, candidate)
        self.watch.add(candidate, time.monotonic())
        self._items.append([event])
        with self._lock:
            self._rows[item["item_id"]] = item
            self._visits.add(item["item_id"], number)
        self.counts.events += 1

    def _visit(self) -> None:
        """One shopper's request, what it shows, and what is clicked."""
        with self._lock:
            user, pool = self._users[self._rng.integers(len(self._users))], self._visits.pool()
            rows = [self._rows[item] for item in pool]
        request_id = f"{time.time_ns()}"
        candidates = requests.candidates_of(self._features, rows)
        scores = self._client.rank(user, {name: candidates[name] for name in self._sent}, request_id=request_id)
        now, order = time.time(), np.argsort(-scores, kind="stable")
        with self._lock:
            others = self._rng.permutation(order[BEST:])[:OTHERS]
            shown = [pool[place] for place in [*order[:BEST].tolist(), *others.tolist()]]
            clicks = self._visits.clicks(user["user_id"], shown)
            after_s = self._rng.uniform(0.5, CLICK_WITHIN_S, len(shown)).tolist()
        said, clicked = [], []
        for item, is_clicked, later_s in zip(shown, clicks, after_s):
            event = {"request_id": request_id, "item_id": item}
            said.append(json.dumps({**event, "time": now, served.SHOWN: True}).encode())
            if is_clicked:
                click = {**event, "time": now + later_s, self._features.label.column: True}
                clicked.append((now + later_s, json.dumps(click).encode()))
        self._labels.append(said)
        with self._lock:
            for one in clicked:
                heapq.heappush(self._to_come, one)
        self.counts.requests += 1
        self.counts.shown += len(shown)
        self.counts.clicked += sum(clicks)

    def _send_last(self) -> None:
        """Sends the clicks that are left: what was clicked is no negative because the traffic ends."""
        try:
            self._send_clicks(math.inf)
        except Exception:  # of the log, whose broker is perhaps gone
            _log.exception("clicks that were to come are lost")

    def _send_clicks(self, until: float | None = None) -> None:
        """Sends the clicks up to a time, that of now, whatever the server does; those that no log took come again."""
        until, due = time.time() if until is None else until, []
        with self._lock:
            while self._to_come and self._to_come[0][0] <= until:
                due.append(heapq.heappop(self._to_come))
        try:
            if due:
                self._labels.append([click for _, click in due])
        except BaseException:
            with self._lock:
                for one in due:
                    heapq.heappush(self._to_come, one)
            raise
