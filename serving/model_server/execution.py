"""A pool for model calls: one runs per core, a limited number wait, and none that would miss its deadline."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import dataclasses
import statistics
import time
import typing

from serving.model_server.errors import DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ServingError
from serving.model_server.limits import Limits

T = typing.TypeVar("T")
_REMEMBERED = 33  # service times of a kind of call; the usual one is their median


@dataclasses.dataclass(frozen=True)
class Terms:
    """What is known of a call before it runs."""

    deadline: float | None = None  # monotonic seconds until which somebody waits for the answer
    kind: typing.Hashable = None  # calls of one kind and size take about as long
    size_bytes: int = 0


NO_TERMS = Terms()


@dataclasses.dataclass(eq=False)
class _Held:
    """A call that waits or runs."""

    terms: Terms
    usual_s: float  # what such a call took lately; 0 where none did
    is_alone: bool  # whether nothing else was held when it came: it runs, and tells how long such a call takes
    started: float | None = None
    service_s: float | None = None  # None: it did not succeed

    @property
    def key(self) -> tuple[typing.Hashable, int]:
        return self.terms.kind, self.terms.size_bytes.bit_length()


class Executor:
    """Runs blocking calls beside the event loop, which alone may call `submit`.

    A call with a deadline that it would miss, by what such calls took lately, is refused before it costs anything:
    when it comes, so that its caller can ask another replica, and again when its turn is there.

    Args:
        num_threads: calls that run at a time.
        limits: of those that wait.
        clock: gives the seconds that deadlines are counted in.
    """

    def __init__(self, num_threads: int, limits: Limits, clock: typing.Callable[[], float] = time.monotonic):
        self._clock = clock
        self._pool = concurrent.futures.ThreadPoolExecutor(num_threads, thread_name_prefix="predict")
        self._num_threads, self.limits = num_threads, limits
        self._held: set[_Held] = set()
        self._held_bytes = 0
        self._ahead_s = 0.0  # what all that is held takes one thread, by the usual
        self._times: dict[tuple[typing.Hashable, int], collections.deque[float]] = {}
        self._usual: dict[tuple[typing.Hashable, int], float] = {}

    @property
    def running(self) -> int:
        """Calls that run."""
        return min(len(self._held), self._num_threads)

    @property
    def waiting(self) -> int:
        """Calls that wait for a thread."""
        return len(self._held) - self.running

    async def submit(
        self, call: typing.Callable[..., T], *arguments: typing.Any, terms: Terms = NO_TERMS
    ) -> T:
        """Awaits `call(*arguments)`; a caller that goes away while waiting takes its call with it.

        Raises:
            ServingError: RESOURCE_EXHAUSTED where too many calls wait already, or the deadline would pass while they
                run; DEADLINE_EXCEEDED where too little time is left for the call itself.
        """
        self._verify_room(terms)
        held = _Held(terms, 0.0, not self._held)
        held.usual_s = self._usual.get(held.key, 0.0)
        self._verify_time(held)
        loop = asyncio.get_running_loop()
        future = self._pool.submit(self._run, held, call, *arguments)
        self._held.add(held)
        self._held_bytes += terms.size_bytes
        self._ahead_s += held.usual_s
        future.add_done_callback(lambda _: loop.call_soon_threadsafe(self._release, held))
        return await asyncio.wrap_future(future)

    def _verify_room(self, terms: Terms) -> None:
        limits, others = self.limits, len(self._held)
        is_full = others >= self._num_threads + limits.max_waiting
        if is_full or (others and self._held_bytes + terms.size_bytes > limits.max_waiting_bytes):
            raise ServingError(
                RESOURCE_EXHAUSTED,
                f"{others} requests of {self._held_bytes} bytes are held already, of at most {limits.max_waiting} "
                f"that wait and {limits.max_waiting_bytes} bytes. Try again later, or add a replica.",
            )

    def _verify_time(self, held: _Held) -> None:
        """Refuses a call that comes too late, or that those before it would make late."""
        if held.is_alone or held.terms.deadline is None:
            return
        left_s, needed_s = held.terms.deadline - self._clock(), self.limits.deadline_margin * held.usual_s
        if left_s < needed_s:
            raise _too_late(left_s, held.usual_s)
        started_s = sum(min(self._clock() - h.started, h.usual_s) for h in self._held if h.started is not None)
        ahead_s = (self._ahead_s - started_s) / self._num_threads
        if left_s < ahead_s + needed_s:
            raise ServingError(
                RESOURCE_EXHAUSTED,
                f"The deadline is {1e3 * left_s:.0f} ms away; {len(self._held)} requests are before this one and take "
                f"about {1e3 * ahead_s:.0f} ms, this one {1e3 * held.usual_s:.0f} ms. Add a replica, or wait longer.",
            )

    def _run(self, held: _Held, call: typing.Callable[..., T], *arguments: typing.Any) -> T:
        held.started = self._clock()
        if held.terms.deadline is not None and not held.is_alone:
            left_s = held.terms.deadline - held.started
            if left_s < self.limits.deadline_margin * held.usual_s:
                raise _too_late(left_s, held.usual_s)
        result = call(*arguments)
        held.service_s = self._clock() - held.started
        return result

    def _release(self, held: _Held) -> None:
        self._held.discard(held)
        self._held_bytes -= held.terms.size_bytes
        self._ahead_s = self._ahead_s - held.usual_s if self._held else 0.0
        if held.service_s is not None:
            times = self._times.setdefault(held.key, collections.deque(maxlen=_REMEMBERED))
            times.append(held.service_s)
            self._usual[held.key] = statistics.median(times)

    def close(self) -> None:
        self._pool.shutdown(wait=True)


def _too_late(left_s: float, usual_s: float) -> ServingError:
    return ServingError(
        DEADLINE_EXCEEDED,
        f"The deadline is {1e3 * left_s:.0f} ms away, and such a request takes about {1e3 * usual_s:.0f} ms. Give it "
        "more time, or add a replica.",
    )
