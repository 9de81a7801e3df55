"""Requests and what became of their items, joined within a window: what is kept until its time, all of it countable.

All follows from the records and their own times. A source's parts are each about in order; the watermark is the time
that all of them have passed. A request leaves when the watermark passes the end of its window, in order of time, so
rows come out in one order, however the parts were read.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import typing

from serving.nearline import records
from serving.streaming import event_log
from serving.streaming.events import EventError
from tfmm.data import served_rows
from tfmm.data.served import Event, Served
from tfmm.index.store import DeadLetter

SECOND_US = 1_000_000
Item = int | str


@dataclasses.dataclass(frozen=True)
class Rules:
    """How requests wait for their labels."""

    label: str  # the declared column of the label
    window_us: int = 300 * SECOND_US  # a label counts that came within it; then what was shown is a negative
    lateness_us: int = SECOND_US  # how far records may be out of order, or on their way
    max_waiting: int = 100_000  # requests that wait, and labels without one
    after_us: int = 0  # what was shown at or before this was trained on before
    columns: tuple[str, ...] = ()  # that events tell, since no request knows them


@dataclasses.dataclass
class Waiting:
    """A request that waits, since `at_us`: its own time, or when it came if that was too late for it."""

    request: Served
    at_us: int
    part: str
    offset: int
    payload: bytes
    labels: dict[Item, int] = dataclasses.field(default_factory=dict)  # of the items that were shown
    told: dict[Item, dict[str, tuple[float, typing.Any]]] = dataclasses.field(default_factory=dict)  # by column, when

    def values(self, item: Item) -> dict[str, typing.Any]:
        """Returns what events told of an item, such as its position: of each column the last one."""
        return {name: value for name, (_, value) in self.told.get(item, {}).items()}

    def tell(self, event: Event, columns: typing.Collection[str]) -> None:
        """Takes the label of an event, and those columns of it."""
        self.labels[event.item_id] = max(self.labels.get(event.item_id, 0), int(event.is_click))
        told = self.told.setdefault(event.item_id, {})
        for name, value in event.values.items():
            if name in columns and (name not in told or event.time >= told[name][0]):
                told[name] = event.time, value


class Join:
    """Requests that wait for labels, labels that wait for requests, and what was there before."""

    def __init__(self, rules: Rules):
        self.rules, self.watermark_us = rules, 0
        self.letters: list[DeadLetter] = []  # since they were last taken
        self.counts: collections.Counter[str] = collections.Counter()
        self._waiting: dict[str, Waiting] = {}
        self._order: list[tuple[int, str]] = []  # heap of what waits
        self._early: dict[str, list[tuple[Event, str, int, bytes]]] = {}  # labels before their request
        self._early_order: list[tuple[int, str]] = []  # heap of them
        self._num_early = 0
        self._done: collections.OrderedDict[str, int] = collections.OrderedDict()  # ids that have left, and when
        self._newest: dict[str, int] = {}  # time by part

    @property
    def num_waiting(self) -> int:
        """How many requests wait for the end of their windows."""
        return len(self._waiting)

    @property
    def num_shown(self) -> int:
        """How many items of the waiting requests were shown, as far as it is known."""
        return sum(len(waiting.labels) for waiting in self._waiting.values())

    @property
    def room(self) -> int:
        """How many more records may wait."""
        return self.rules.max_waiting - max(len(self._waiting), self._num_early)

    @property
    def frontier_us(self) -> int:
        """Through when all requests have left."""
        return self.watermark_us - self.rules.window_us

    def newest_us(self, part: str) -> int:
        """Returns the newest time that a part has shown, 0 where it has shown none."""
        return self._newest.get(part, 0)

    def add(self, part: str, event: event_log.Event) -> None:
        """Takes a record of a part; one that cannot be used becomes a letter."""
        try:
            record = records.parse(event.payload, self.rules.label)
            if record is None:
                self.counts["nothing_said"] += 1
                return
            records.refuse_ahead(record)
            self._newest[part] = max(self._newest.get(part, 0), records.time_us(record))
            if isinstance(record, Served):
                self._add_request(record, part, event)
            else:
                self._add_event(record, part, event)
        except EventError as error:
            self.refuse(part, event.offset, str(error), event.payload)

    def refuse(self, part: str, offset: int, reason: str, payload: bytes) -> None:
        """Makes a letter of what cannot be used."""
        self.letters.append(DeadLetter(part, offset, reason, payload))
        self.counts["dead_letters"] += 1

    def _add_request(self, request: Served, part: str, event: event_log.Event) -> None:
        known, request_us = self._waiting.get(request.request_id), records.time_us(request)
        if known is not None or request.request_id in self._done:
            self.counts["twice"] += 1
            if known is not None and request.time >= known.request.time:  # the one whose answer its caller had
                known.request, known.part, known.offset, known.payload = request, part, event.offset, event.payload
            return
        if request_us <= self.rules.after_us:
            self.counts["trained_before"] += 1
            self._remember(request.request_id, max(request_us, self.watermark_us))
            return
        if len(self._waiting) >= self.rules.max_waiting:
            raise EventError(
                f"request_id: {self.rules.max_waiting:,} requests wait for labels, and no more may; shorten the window "
                "or let more wait"
            )
        at_us = request_us
        if at_us <= self.frontier_us:  # those of its time have left
            at_us = self.watermark_us
            self.counts["late_requests"] += 1
        waiting = Waiting(request, at_us, part, event.offset, event.payload)
        self._waiting[request.request_id] = waiting
        heapq.heappush(self._order, (at_us, request.request_id))
        self.counts["requests"] += 1
        for early in self._early.pop(request.request_id, ()):
            self._num_early -= 1
            self._label(waiting, *early)

    def _add_event(self, said: Event, part: str, event: event_log.Event) -> None:
        place = (part, event.offset, event.payload)
        if said.request_id in self._done:
            self.counts["late_labels"] += 1
        elif (waiting := self._waiting.get(said.request_id)) is not None:
            self._label(waiting, said, *place)
        elif self._num_early >= self.rules.max_waiting:
            raise EventError(f"request_id: {self.rules.max_waiting:,} labels wait for their requests, and no more may")
        else:
            self._wait_for_request(said, *place)

    def _wait_for_request(self, said: Event, part: str, offset: int, payload: bytes) -> None:
        self._early.setdefault(said.request_id, []).append((said, part, offset, payload))
        heapq.heappush(self._early_order, (records.time_us(said), said.request_id))
        self._num_early += 1

    def _label(self, waiting: Waiting, said: Event, part: str, offset: int, payload: bytes) -> None:
        if said.item_id not in waiting.request.items:
            self.refuse(part, offset, served_rows.NOT_AMONG_ITEMS, payload)
        elif records.time_us(said) > records.time_us(waiting.request) + self.rules.window_us:
            self.counts["late_labels"] += 1
        else:
            waiting.tell(said, self.rules.columns)
            self.counts["labels"] += 1

    def advance(self, watermark_us: int) -> list[Waiting]:
        """Moves the watermark on; returns the requests whose window is over, in order of time."""
        self.watermark_us = max(self.watermark_us, watermark_us)
        left = []
        while self._order and self._order[0][0] <= self.frontier_us:
            at_us, request_id = heapq.heappop(self._order)
            left.append(self._waiting.pop(request_id))
            self._remember(request_id, at_us)
            self.counts["shown" if left[-1].labels else "not_shown"] += 1
        self._forget()
        return left

    def _remember(self, request_id: str, at_us: int) -> None:
        self._done[request_id] = at_us

    def _forget(self) -> None:
        """Forgets what has left long ago, and makes letters of labels whose request never came."""
        before = max(self._newest.values(), default=0) - 2 * self.rules.window_us  # not by a clock, which runs on
        while self._done and (next(iter(self._done.values())) < before or len(self._done) > self.rules.max_waiting):
            self._done.popitem(last=False)
        while self._early_order and self._early_order[0][0] < self.frontier_us:
            _, name = heapq.heappop(self._early_order)
            for _, part, offset, payload in self._early.pop(name, ()):
                self._num_early -= 1
                self.refuse(part, offset, f"request_id: no request {name[:100]!r} came within the window", payload)

    def state(self) -> dict[str, typing.Any]:
        """Returns all that it keeps, as JSON values; letters must have been taken."""
        return {
            "watermark_us": self.watermark_us,
            "newest": self._newest,
            "done": list(self._done.items()),
            "waiting": [
                (w.part, w.offset, w.payload.decode(), w.at_us, list(w.labels.items()), list(w.told.items()))
                for w in self._waiting.values()
            ],
            "early": [(part, offset, p.decode()) for found in self._early.values() for _, part, offset, p in found],
            "counts": self.counts,
        }

    def restore(self, state: typing.Mapping[str, typing.Any]) -> None:
        """Takes what `state` returned."""
        self.watermark_us, self._newest = state["watermark_us"], dict(state["newest"])
        self._done = collections.OrderedDict(state["done"])
        for part, offset, text, at_us, labels, told in state["waiting"]:
            request = typing.cast(Served, records.parse(text.encode(), self.rules.label))
            found = {item: {name: tuple(one) for name, one in values.items()} for item, values in told}
            waiting = Waiting(request, at_us, part, offset, text.encode(), dict(map(tuple, labels)), found)
            self._waiting[request.request_id] = waiting
        self._order = [(w.at_us, name) for name, w in self._waiting.items()]
        heapq.heapify(self._order)
        for part, offset, text in state["early"]:
            said = typing.cast(Event, records.parse(text.encode(), self.rules.label))
            self._wait_for_request(said, part, offset, text.encode())
        self.counts = collections.Counter(state["counts"])

