"""What the demo shows each second: how fast, how late, how far, and which version."""

from __future__ import annotations

import dataclasses
import http.client
import time
import typing
import urllib.request

import numpy as np
from prometheus_client import parser
from rich import markup
from rich import table as rich_table

from serving import client as client_lib
from serving.demo.machinery import Running
from serving.demo.traffic import Traffic
from serving.deploy import started
from serving.nearline import candidates

OVER_S = 60.0  # of delays
_TIMEOUT_S = 5.0
Samples = dict[str, list[float]]


@dataclasses.dataclass(frozen=True)
class Figures:
    """One second of it; None: not known yet. What a process does not answer now is as it was last."""

    events_per_s: float
    delay_p50_s: float | None  # from an event to a changed score, over the last minute
    delay_p99_s: float | None
    waiting: int  # items whose score has not changed yet
    lost: int  # that were not scored by their content within a minute, since the start
    lag_rows: float | None  # changes of the index that a served table does not have
    requests_per_s: float
    failed: int  # requests, since the start
    impressions: float | None  # in the trainer's window
    trained: float | None  # rows, since the start
    version: int | None  # in service
    candidate: int | None  # that was judged last
    verdict: str


def in_parts(found: Figures) -> dict[str, str]:
    """Returns figures as they are shown, by whom they are about."""
    delays = "scored after -"
    if found.delay_p50_s is not None and found.delay_p99_s is not None:
        delays = f"scored after {1e3 * found.delay_p50_s:.0f} ms (p99 {1e3 * found.delay_p99_s:.0f} ms)"
    failed = f", {found.failed} failed" if found.failed else ""
    lost = f", {found.lost} lost" if found.lost else ""
    judged = "none judged yet" if found.candidate is None else f"candidate {found.candidate} {found.verdict}"
    return {
        "new items": f"{found.events_per_s:.1f} events/s, {delays}, {found.waiting} wait{lost}, lag "
        f"{_text(found.lag_rows)}",
        "shoppers": f"{found.requests_per_s:.1f} requests/s{failed}",
        "trainer": f"{_text(found.impressions)} impressions in its window, {_text(found.trained)} trained",
        "versions": f"{found.version or '-'} in service, {judged}",
    }


def line(found: Figures) -> str:
    """Returns figures as one line.

    >>> print(line(Figures(5.0, 0.0612, 0.143, 0, 0, 0, 10.0, 0, 490, 2310, 1795709458, 3, "pushed")))
    5.0 events/s, scored after 61 ms (p99 143 ms), 0 wait, lag 0 | 10.0 requests/s | 490 impressions in its window,
    2,310 trained | 1795709458 in service, candidate 3 pushed
    """
    return " | ".join(in_parts(found).values())


def table(found: Figures) -> rich_table.Table:
    """Returns figures as a table for a terminal."""
    result = rich_table.Table.grid(padding=(0, 2))
    for name, text in in_parts(found).items():
        result.add_row(name, markup.escape(text))
    return result


def _text(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


class Meter:
    """Reads the figures, those of a rate since the time before.

    Args:
        up: the processes.
        traffic: what is sent.
        client: of the server.
    """

    def __init__(self, up: Running, traffic: Traffic, client: client_lib.RankingClient):
        self._up, self._traffic, self._client = up, traffic, client
        self._last: dict[int, Samples] = {}  # by port, of the last time that it answered
        self._taken = (time.monotonic(), 0.0, 0.0)  # when, events that the stream took, and how many a second
        self._sent = (time.monotonic(), 0)  # when, requests

    def read(self) -> Figures:
        now, ports, counts = time.monotonic(), self._up.ports, self._traffic.counts
        server, trainer = (self._samples(port) for port in (ports.server_metrics, ports.trainer_metrics))
        (then, before), self._sent = self._sent, (now, counts.requests)
        delays = self._traffic.watch.since(now - OVER_S)
        p50, p99 = np.percentile(delays, [50, 99]).tolist() if len(delays) else (None, None)
        judged = candidates.last_verdict(self._up.trainer_dir)
        return Figures(
            events_per_s=self._events_per_s(now),
            delay_p50_s=p50,
            delay_p99_s=p99,
            waiting=self._traffic.watch.waiting,
            lost=self._traffic.watch.lost,
            lag_rows=max(server.get("tfmm_replica_lag_rows", []), default=None),
            requests_per_s=(counts.requests - before) / (now - then),
            failed=counts.failed,
            impressions=next(iter(trainer.get("tfmm_nearline_waiting_impressions", [])), None),
            trained=next(iter(trainer.get("tfmm_nearline_rows_total", [])), None),
            version=self._version(),
            candidate=judged[0] if judged else None,
            verdict=in_words(judged[1]) if judged else "",
        )

    def _samples(self, port: int) -> Samples:
        """Returns what a process says, or said last."""
        if found := samples(port):
            self._last[port] = found
        return self._last.get(port, {})

    def _events_per_s(self, now: float) -> float:
        """Returns the rate since the stream answered before; where it does not now, that of then."""
        if found := samples(self._up.ports.stream_metrics):
            then, before, _ = self._taken
            taken = sum(found.get("tfmm_stream_events_total", []))
            self._taken = (now, taken, max(0.0, taken - before) / (now - then))
        return self._taken[2]

    def _version(self) -> int | None:
        try:
            return max(self._client.versions(), default=None)
        except client_lib.PredictError:
            return None


def in_words(result: typing.Mapping[str, typing.Any]) -> str:
    """Returns a verdict in a few words: the first reason, of a refusal."""
    if result["passed"]:
        return "pushed"
    more = f" (and {len(result['reasons']) - 1} more)" if len(result["reasons"]) > 1 else ""
    return f"refused: {result['reasons'][0]}{more}"


def page(port: int) -> str:
    """Returns a process's page of metrics; "" where it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{started.HOST}:{port}/metrics", timeout=_TIMEOUT_S) as answer:
            return answer.read().decode()
    except (OSError, http.client.HTTPException):  # perhaps cut off in the middle
        return ""


def samples(port: int) -> Samples:
    """Returns the values of a process's metrics by name, of all labels; none where it does not answer."""
    found: Samples = {}
    for family in parser.text_string_to_metric_families(page(port)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample.value)
    return found
