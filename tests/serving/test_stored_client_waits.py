"""While one call asks what a version needs, others wait no longer than their deadlines."""

import asyncio
import contextlib
import threading
import time

import pytest

from serving.stored_client import AsyncStoredRankingClient, StoredRankingClient, _Model
from tfmm_client import DeadlineExceeded
from tfmm_client.replicas import Deadline
from tfmm_client.steps import Wait, Work


@pytest.fixture
def client():
    with StoredRankingClient("127.0.0.1:1", index=None) as opened:
        yield opened


def model(client, timeout_s=60.0):
    return client._model(client._turns.replicas[0], None, 2.0, Deadline(timeout_s))


def test_wait_for_another_call_ends_with_the_deadline(client):
    with contextlib.closing(model(client)) as asks:
        next(asks)
        with pytest.raises(DeadlineExceeded, match=r"No answer within 0\.05 s"):
            client._run(model(client, 0.05))


def test_known_version_is_taken_while_another_call_asks_anew(client):
    old = _Model(1, {}, {}, None, time.monotonic() - 10)
    client._models[client._turns.replicas[0], None] = old
    with contextlib.closing(model(client)) as asks:
        next(asks)
        with pytest.raises(StopIteration, match=r"^_Model\(number=1,") as found:
            next(model(client))
    assert found.value.value is old


def test_call_that_is_interrupted_hinders_no_other(client, monkeypatch):
    def interrupt(step):
        raise KeyboardInterrupt("by the user")

    monkeypatch.setattr(client, "_take", interrupt)
    with pytest.raises(KeyboardInterrupt, match="by the user") as failed:
        client._run(model(client))
    assert not client._learning[client._turns.replicas[0]].locked(), failed


def test_calls_of_one_event_loop_wait_for_each_other_and_ask_once(monkeypatch):
    asked, threads = [], []

    def learn(self, replica, version, deadline):
        asked.append(replica)
        yield Wait(0.05)  # in which the other call has its turn
        yield Work(lambda: threads.append(threading.current_thread()))
        return _Model(1, {}, {}, None, time.monotonic())

    async def ask():
        async with AsyncStoredRankingClient("127.0.0.1:1", index=None) as client:
            return await asyncio.gather(*(client._run(model(client)) for _ in range(3)))

    monkeypatch.setattr(AsyncStoredRankingClient, "_learn", learn)
    found = asyncio.run(ask())
    assert found[0] is found[1] is found[2] and len(asked) == 1
    assert threads and threads[0] is not threading.main_thread()


def test_call_that_is_cancelled_hinders_no_other(monkeypatch):
    def learn(self, replica, version, deadline):
        yield Wait(60.0)

    async def ask():
        async with AsyncStoredRankingClient("127.0.0.1:1", index=None) as client:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(client._run(model(client)), 0.05)
            return client._learning[client._turns.replicas[0]].locked()

    monkeypatch.setattr(AsyncStoredRankingClient, "_learn", learn)
    assert not asyncio.run(ask())
