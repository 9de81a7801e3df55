"""What the page asks, again and again: each in a thread of its own, so that one that hangs delays no other."""

from __future__ import annotations

import collections
import threading
import time
import typing

import httpx

from serving.channel import is_local
from serving.page import cells, counters

KEEP_S = 60.0  # of a process's samples: the window of percentiles
TREND_S, TREND_POINTS = 600, 60  # of a line: its seconds and its points
REST, _MAX_REST_S = 20.0, 60.0  # times as long as it took to ask, until it is asked again; and at most
_PATIENCE_S = 10.0  # until who has not answered yet is said not to answer; or three times as long as it took before
FIRST_LOOK_S = 300.0  # the same of a first look that reads whole tables, before it is known how long it takes
_TIMEOUT_S = 2.0  # of a request for metrics
T = typing.TypeVar("T")


class Watch(threading.Thread, typing.Generic[T]):
    """One thing that is asked again and again.

    Args:
        kind: what it is, such as "server"; sections choose by it.
        shown: what it is called on the page, without passwords.
        ask: asks; what it raises is why there is no answer.
        every_s: at least so long between two answers.
        rest: and so many times as long as the answer took.
        first_s: how long the first answer may take, before it is said that there is none; None: as any.

    Attributes:
        value: the newest answer; None before the first.
    """

    def __init__(
        self,
        kind: str,
        shown: str,
        ask: typing.Callable[[], T],
        every_s: float,
        rest: float = REST,
        first_s: float | None = None,
    ) -> None:
        super().__init__(name=f"page {kind} {shown}", daemon=True)
        self.kind, self.shown = kind, shown
        self.value: T | None = None
        self._ask, self._every_s, self._rest, self._first_s = ask, every_s, rest, first_s
        self._silent_since: float | None = time.time()
        self._why: str | None = None  # why the last question had no answer
        self._has_answered = False
        self._asked_at: float | None = None  # of a question that is open, since 1970
        self._took_s = 0.0
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            took_s = self.ask()
            self._ended.wait(max(self._every_s, min(self._rest * took_s, _MAX_REST_S)))

    def ask(self) -> float:
        """Asks once; returns the seconds that it took."""
        started, self._asked_at = time.monotonic(), time.time()
        try:
            self.value = self._ask()
            self._silent_since, self._has_answered = None, True
        except Exception as error:  # whatever is wrong with what is watched, the page stands
            if self._silent_since is None:
                self._silent_since = time.time()
            self._why = " ".join(str(error).split())[:200] or type(error).__name__
        self._asked_at, self._took_s = None, time.monotonic() - started
        return self._took_s

    def stop(self) -> None:
        self._ended.set()

    @property
    def is_silent(self) -> bool:
        return self._silent_since is not None or self._hangs()

    def _hangs(self) -> bool:
        asked_at = self._asked_at
        patience_s = max(_PATIENCE_S, 3.0 * self._took_s, 0.0 if self._has_answered else self._first_s or 0.0)
        return asked_at is not None and time.time() - asked_at > patience_s

    @property
    def notes(self) -> list[cells.Cell]:
        """Returns that there is no answer, since when and why; nothing where there is one, or it was not asked yet."""
        since, why = self._silent_since, self._why
        if self._hangs():
            since, why = since or self._asked_at, "it was asked, and is silent"
        if since is None or why is None:
            return []
        when = cells.moment_text(since) if self._has_answered else f"the page was started, {cells.moment_text(since)}"
        return [cells.note(cells.BAD, f"no answer from {self.kind} {self.shown} since {when}: {why}")]


def metrics_url(address: str) -> str:
    """Returns where a process's metrics are.

    >>> metrics_url("127.0.0.1:9100"), metrics_url("http://127.0.0.1:8501/monitoring/prometheus/metrics")
    ('http://127.0.0.1:9100/metrics', 'http://127.0.0.1:8501/monitoring/prometheus/metrics')
    """
    url = address if "://" in address else f"http://{address}"
    return url if url.partition("://")[2].strip("/").count("/") else f"{url.rstrip('/')}/metrics"


def process(kind: str, address: str, every_s: float) -> Watch[counters.Counters]:
    """Watches a process by its Prometheus metrics.

    Args:
        kind: server, stream, replicator or trainer.
        address: host:port of its metrics, or their URL.
        every_s: seconds between two looks.
    """
    taken, url = counters.Counters(KEEP_S), metrics_url(address)
    client = httpx.Client(timeout=_TIMEOUT_S, trust_env=not is_local(httpx.URL(url).host))  # no proxy on this machine

    def ask() -> counters.Counters:
        response = client.get(url)
        if response.status_code != httpx.codes.OK:
            raise ValueError(f"HTTP status {response.status_code} in place of metrics")
        taken.add(time.monotonic(), counters.read(response.text))
        return taken

    return Watch(kind, address, ask, every_s)


class Trends:
    """Values over the last `TREND_S` seconds, by name; one is added each second or so."""

    def __init__(self, every_s: float) -> None:
        self._size = max(TREND_POINTS, round(TREND_S / every_s))
        self._values: dict[typing.Hashable, collections.deque[float | None]] = {}

    def add(self, name: typing.Hashable, value: float | None) -> cells.Cell:
        """Adds a value; returns the line so far, of means of as many values as make `TREND_POINTS` points."""
        own = self._values.setdefault(name, collections.deque(maxlen=self._size))
        own.append(value)
        values, per_point = list(own), self._size // TREND_POINTS
        known = [[v for v in values[at : at + per_point] if v is not None] for at in range(0, len(values), per_point)]
        return cells.points([sum(one) / len(one) if one else None for one in known])
