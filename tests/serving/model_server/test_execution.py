"""Which calls run, wait and are refused."""

import asyncio
import threading

import pytest

from serving.model_server.errors import DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ServingError
from serving.model_server.execution import Executor, Terms
from serving.model_server.limits import Limits

USUAL_S = 0.0625  # exact in binary, so that sums of it are


class Clock:
    """Stands still, but for what sleeps by it: how busy the machine is changes nothing."""

    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def executor(clock):
    executors = []

    def make(num_threads=1, **limits):
        executors.append(Executor(num_threads, Limits(**limits), clock))
        return executors[-1]

    yield make
    for made in executors:
        made.close()


class Blocked:
    """A call that lasts until it is let go."""

    def __init__(self):
        self.go, self.calls = threading.Event(), 0

    def __call__(self):
        self.calls += 1
        assert self.go.wait(120)
        return self.calls


@pytest.fixture
def within(clock):
    """Returns the terms of a call whose deadline is so many seconds away."""
    return lambda seconds, kind="rank": Terms(clock() + seconds, kind)


async def learn(executor, clock, seconds=USUAL_S):
    """Shows an executor how long calls take."""
    await executor.submit(clock.sleep, seconds, terms=Terms(kind="rank"))


async def settle():
    """Lets whatever the event loop has to do be done."""
    for _ in range(10):
        await asyncio.sleep(0)


async def expect(call, code, match):
    with pytest.raises(ServingError, match=match) as caught:
        await call
    assert caught.value.code == code


def test_call_with_less_time_than_usual_is_refused_before_it_runs(executor, clock, within):
    async def main():
        pool, blocked = executor(num_threads=2), Blocked()
        await learn(pool, clock)
        other = asyncio.ensure_future(pool.submit(blocked))
        await settle()
        ran = []
        await expect(
            pool.submit(ran.append, 1, terms=within(USUAL_S)), DEADLINE_EXCEEDED, r"takes about \d+ ms.*add a replica"
        )
        await pool.submit(ran.append, 2, terms=within(20 * USUAL_S))
        await pool.submit(ran.append, 3, terms=within(USUAL_S / 10, kind="unknown"))
        await pool.submit(ran.append, 4, terms=Terms(kind="rank"))  # somebody who waits for ever
        assert ran == [2, 3, 4]
        blocked.go.set()
        await other

    asyncio.run(main())


def test_call_that_those_before_it_would_make_late_is_refused_at_once(executor, clock, within):
    async def main():
        pool, blocked = executor(), Blocked()
        await learn(pool, clock)
        held = [asyncio.ensure_future(pool.submit(blocked, terms=within(30))) for _ in range(20)]
        await settle()
        await expect(
            pool.submit(blocked, terms=within(10 * USUAL_S)), RESOURCE_EXHAUSTED, "20 requests are before this one"
        )
        admitted = asyncio.ensure_future(pool.submit(blocked, terms=within(30)))
        blocked.go.set()
        assert len(await asyncio.gather(*held, admitted)) == 21

    asyncio.run(main())


def test_call_whose_time_ran_out_while_it_waited_does_not_run(executor, clock, within):
    async def main():
        pool, blocked = executor(), Blocked()
        await learn(pool, clock)
        first = asyncio.ensure_future(pool.submit(blocked))  # of no known kind: takes longer than anybody knows
        await settle()
        ran = []
        late = asyncio.ensure_future(pool.submit(ran.append, 1, terms=within(4 * USUAL_S)))
        clock.sleep(4 * USUAL_S)
        blocked.go.set()
        await first
        await expect(late, DEADLINE_EXCEEDED, "such a request takes about")
        assert not ran

    asyncio.run(main())


def test_one_slow_hour_does_not_refuse_calls_for_ever(executor, clock, within):
    async def main():
        pool = executor()
        await learn(pool, clock, 0.3)
        for _ in range(3):  # by what is known it is late; alone it runs, and shows that calls are fast again
            await pool.submit(clock.sleep, 0.0, terms=within(0.1))
        held = [asyncio.ensure_future(pool.submit(clock.sleep, 0.0, terms=within(0.1))) for _ in range(5)]
        await asyncio.gather(*held)

    asyncio.run(main())


def test_too_many_calls_or_bytes_are_refused(executor):
    async def main():
        pool, blocked = executor(max_waiting=2, max_waiting_bytes=1000), Blocked()
        held = [asyncio.ensure_future(pool.submit(blocked, terms=Terms(size_bytes=300))) for _ in range(2)]
        await settle()
        await expect(
            pool.submit(blocked, terms=Terms(size_bytes=401)), RESOURCE_EXHAUSTED, "of 600 bytes.*Try again later"
        )
        held.append(asyncio.ensure_future(pool.submit(blocked, terms=Terms(size_bytes=400))))
        await settle()
        assert (pool.running, pool.waiting) == (1, 2)
        await expect(pool.submit(blocked), RESOURCE_EXHAUSTED, "at most 2 that wait")
        blocked.go.set()
        await asyncio.gather(*held)
        await settle()
        assert (pool.running, pool.waiting) == (0, 0)
        assert await pool.submit(blocked, terms=Terms(size_bytes=5000)) == 4  # alone, whatever its size

    asyncio.run(main())


def test_caller_that_leaves_takes_its_waiting_call_with_it(executor):
    async def main():
        pool, blocked = executor(), Blocked()
        first = asyncio.ensure_future(pool.submit(blocked))
        await settle()
        left = asyncio.ensure_future(pool.submit(blocked))
        await settle()
        left.cancel()
        await settle()
        assert pool.waiting == 0
        blocked.go.set()
        await first
        assert blocked.calls == 1

    asyncio.run(main())


def test_failed_calls_do_not_count_as_fast_ones(executor, clock):
    async def main():
        pool = executor()
        await learn(pool, clock)
        for _ in range(40):
            with pytest.raises(ZeroDivisionError, match="division"):
                await pool.submit(divmod, 1, 0, terms=Terms(kind="rank"))
        assert next(iter(pool._usual.values())) >= USUAL_S

    asyncio.run(main())
