"""While one call asks what a version needs, others wait no longer than their deadlines."""

import asyncio
import contextlib
import threading
import time

import pytest

from serving.stored_client import AsyncStoredRankingClient, StoredRankingClient, _Model
from tfmm_client import DeadlineExceeded, errors
from tfmm_client.inputs import RANK
from tfmm_client.replicas import Deadline
from tfmm_client.steps import Wait, Work


@pytest.fixture
def client():
    with StoredRankingClient("127.0.0.1:1", index=None) as opened:
        yield opened


def model(client, timeout_s=60.0, refresh_s=2.0):
    return client._model(client._turns.replicas[0], None, refresh_s, Deadline(timeout_s))


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
        yield Work(lambda: threads.append(threading.current_thread()), 60.0)
        return _Model(1, {}, {}, None, time.monotonic())

    async def ask():
        async with AsyncStoredRankingClient("127.0.0.1:1", index=None) as client:
            return await asyncio.gather(*(client._run(model(client)) for _ in range(3)))

    monkeypatch.setattr(AsyncStoredRankingClient, "_learn", learn)
    found = asyncio.run(ask())
    assert found[0] is found[1] is found[2] and len(asked) == 1
    assert threads and threads[0] is not threading.main_thread()


def test_calls_that_found_their_version_gone_do_not_ask_one_after_another(monkeypatch):
    """As at a swap of versions: the second asks after the first began, and all others take what it learned."""
    asked = []

    def learn(self, replica, version, deadline):
        asked.append(found_at := time.monotonic())
        yield Wait(0.05)
        return _Model(2, {}, {}, None, found_at)

    async def ask():
        async with AsyncStoredRankingClient("127.0.0.1:1", index=None) as client:
            old = _Model(1, {}, {}, None, time.monotonic())
            client._models[client._turns.replicas[0], None] = old
            return await asyncio.gather(*(client._run(model(client, refresh_s=0.0)) for _ in range(20)))

    monkeypatch.setattr(AsyncStoredRankingClient, "_learn", learn)
    assert [found.number for found in asyncio.run(ask())] == [2] * 20 and len(asked) == 2


def test_version_that_goes_while_it_is_asked_about_is_asked_for_anew(client, monkeypatch):
    asked = []

    def learn(self, replica, version, deadline):
        asked.append(replica)
        yield Wait(0.0)
        if len(asked) == 1:
            raise errors.of("NOT_FOUND", "Servable not found")
        return _Model(2, {}, {}, None, time.monotonic())

    def score(self, user, candidates, model, *others):
        yield Wait(0.0)
        return {"score": model.number}

    monkeypatch.setattr(StoredRankingClient, "_learn", learn)
    monkeypatch.setattr(StoredRankingClient, "_score", score)
    call = client._rank_at({}, {}, None, client._grpc, RANK, [], client._turns.replicas[0], Deadline(60))
    assert client._run(call) == {"score": 2} and len(asked) == 2


def test_look_up_that_hangs_costs_a_call_its_deadline_and_no_thread_of_the_application(monkeypatch):
    returns = threading.Event()

    def learn(self, replica, version, deadline):
        yield Work(returns.wait, deadline.left_s())

    async def ask():
        async with AsyncStoredRankingClient("127.0.0.1:1", index=None) as client:
            calls = [client._run(model(client, 0.1)) for _ in range(40)]
            failed = await asyncio.gather(*calls, return_exceptions=True)
            return failed, await asyncio.wait_for(asyncio.to_thread(threading.get_ident), 60)

    monkeypatch.setattr(AsyncStoredRankingClient, "_learn", learn)
    try:
        failed, thread = asyncio.run(ask())
    finally:
        returns.set()
    assert all(isinstance(one, DeadlineExceeded) for one in failed) and thread


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
