"""The clients, with threads and with asyncio, against several servers: of two versions, away, and of other features."""

import asyncio
import contextlib
import functools

import numpy as np
import pytest
import tensorflow as tf

import tfmm_client
from tfmm.export import signatures
from tfmm_client import AsyncRankingClient, RankingClient, Retry, caller

USER, ITEMS = {"user_id": 1}, {"item_id": [3, 4]}
AWAY = ("127.0.0.1:1", "http://127.0.0.1:1")  # nothing listens there
TOKEN = "a-token-that-nobody-guesses"
WAYS = ["rank", "rank_rest"]


@pytest.fixture(scope="module")
def servers(serving_at, write_ranker, tmp_path_factory):
    """Addresses (gRPC, REST) of a server with version 1, one with version 2, and one whose version 3 takes a price."""
    folder = tmp_path_factory.mktemp("replicas")
    write_ranker(folder / "a" / "1")
    write_ranker(folder / "b" / "2", offset=100.0)
    write_ranker(folder / "c" / "3", offset=1000.0, price=([None], tf.float32))
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(serving_at(folder / name, "tfmm", token=TOKEN)) for name in "abc"]
        yield [(one["grpc"], one["rest"]) for one in found]


class Blocking:
    """The asyncio client, as one that blocks."""

    def __init__(self, *arguments, **settings):
        self._runner = asyncio.new_event_loop()
        self._client = AsyncRankingClient(*arguments, **settings)

    def __getattr__(self, name):
        def call(*arguments, **settings):
            return self._runner.run_until_complete(getattr(self._client, name)(*arguments, **settings))

        return call

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self._runner.close()


@pytest.fixture(params=[RankingClient, Blocking], ids=["threads", "asyncio"])
def make_client(request, monkeypatch):
    """Makes a client of addresses (gRPC, REST), whose connections may take long: what is away refuses them."""
    monkeypatch.setattr(caller, "CONNECT_S", 60.0)

    def make(*addresses, **settings):
        return request.param(*map(list, zip(*addresses)), **{"timeout_s": 60} | settings)

    return make


@pytest.mark.parametrize("way", WAYS)
def test_replicas_take_turns_and_a_call_is_of_one_version(make_client, servers, way):
    with make_client(*servers[:2]) as client:
        found = [getattr(client, way)(USER, ITEMS) for _ in range(6)]
    assert {tuple(scores) for scores in found} == {(3, 4), (103, 104)}
    assert all(scores.dtype == np.float32 for scores in found)
    assert [found[n].tolist() != found[n + 1].tolist() for n in range(5)] == [True] * 5


@pytest.mark.parametrize("way", WAYS)
def test_version_that_is_pinned_is_asked_where_it_is(make_client, servers, way):
    with make_client(*servers[:2]) as client:
        for _ in range(3):
            assert getattr(client, way)(USER, ITEMS, version=1).tolist() == [3, 4]
            assert getattr(client, way)(USER, ITEMS, version=2).tolist() == [103, 104]
        with pytest.raises(tfmm_client.NotFound, match=r"2 tries, 2 replicas"):
            getattr(client, way)(USER, ITEMS, version=7)


@pytest.mark.parametrize("way", WAYS)
def test_replica_that_is_away_costs_no_call(make_client, servers, way):
    with make_client(AWAY, servers[0], AWAY) as client:
        assert [getattr(client, way)(USER, ITEMS).tolist() for _ in range(6)] == [[3, 4]] * 6
        assert sorted(client.top(1, USER, ITEMS)) == [(4, 4.0)]


@pytest.mark.parametrize("way", WAYS)
def test_all_away_is_said_after_all_tries(make_client, way):
    with make_client(AWAY, AWAY, retry=Retry(rounds=2, base_s=0.01, max_s=0.01)) as client:
        with pytest.raises(tfmm_client.Unavailable, match=r"UNAVAILABLE: .*\(4 tries, 2 replicas\)$"):
            getattr(client, way)(USER, ITEMS)
    with make_client(AWAY, retry=Retry(rounds=10**6, base_s=0.01), timeout_s=0.3) as client:
        with pytest.raises((tfmm_client.Unavailable, tfmm_client.DeadlineExceeded)):
            getattr(client, way)(USER, ITEMS)


@pytest.mark.parametrize("way", WAYS)
def test_wrong_request_is_said_so_where_a_replica_is_away(make_client, servers, way):
    with make_client(AWAY, servers[0]) as client:
        for _ in range(2):  # whoever is first
            with pytest.raises(ValueError, match=r"`candidates` must have .*Received: \['color'"):
                getattr(client, way)(USER, {**ITEMS, "color": ["red", "blue"]})


@pytest.mark.parametrize("way", WAYS)
def test_call_lands_where_its_features_are_taken(make_client, servers, way):
    with make_client(servers[0], servers[2]) as client:
        for _ in range(3):
            assert getattr(client, way)(USER, ITEMS).tolist() == [3, 4]
            assert getattr(client, way)(USER, {**ITEMS, "price": [1, 2]}).tolist() == [1004, 1006]
        with pytest.raises(ValueError, match=r"`candidates` must have .*Received: \['color'"):
            getattr(client, way)(USER, {**ITEMS, "price": [1, 2], "color": ["red", "blue"]})


def kinds(client):
    """Yields the kind of what calls fail with, over gRPC and over REST."""
    wrong = {"item_id": np.arange(3)}
    for name, expected, arguments in (
        ("version", tfmm_client.NotFound, {"inputs": wrong, "signature": "rank", "version": 9}),
        ("inputs", tfmm_client.InvalidRequest, {"inputs": wrong, "signature": "rank"}),
        ("signature", tfmm_client.InvalidRequest, {"inputs": wrong, "signature": "unknown"}),
        ("token", tfmm_client.Unauthenticated, {"inputs": wrong, "signature": signatures.UPSERT}),
        ("deadline", tfmm_client.DeadlineExceeded,
         {"inputs": {"steps": np.int32(10**5)}, "signature": "slow", "timeout_s": 0.02}),
    ):  # fmt: skip
        for call in (client.predict, client.predict_rest):
            yield name, expected, functools.partial(call, **arguments)


def test_errors_are_one_tree_over_grpc_and_rest(make_client, servers):
    with make_client(servers[0], access=tfmm_client.Access(TOKEN + "x")) as client:
        client.rank(USER, ITEMS)  # connected before deadlines are short
        client.rank_rest(USER, ITEMS)
        for name, expected, call in kinds(client):
            with pytest.raises(tfmm_client.PredictError) as failed:
                call()
            assert type(failed.value) is expected, (name, failed.value)
        assert client.versions(timeout_s=60) == [1]


def test_upsert_is_named_as_the_export_names_it():
    assert caller.UPSERT == signatures.UPSERT


def test_wrong_token_is_said(make_client, servers):
    with make_client(servers[0], access=tfmm_client.Access(TOKEN + "x")) as client:
        for call in (client.predict, client.predict_rest):
            with pytest.raises(tfmm_client.Unauthenticated, match=r"need the server's token.*another token\.$"):
                call({"item_ids": np.array([1])}, signatures.UPSERT)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "`target` or `rest_url` must be given"),
        ({"target": ["a:1", "b:1"], "rest_url": "http://a:2"}, "same servers in the same order. Received: 2 and 1"),
        ({"rest_url": "a:2"}, "`rest_url` must start with http"),
    ],
)
@pytest.mark.parametrize("kind", [RankingClient, AsyncRankingClient])
def test_addresses_that_do_not_fit_are_named(kind, arguments, match):
    with pytest.raises(ValueError, match=match):
        kind(**arguments)


def test_one_way_is_enough(servers):
    grpc, rest = servers[0]
    with RankingClient(grpc) as client, pytest.raises(ValueError, match="`rest_url` must be given"):
        client.rank_rest(USER, ITEMS)
    with RankingClient(rest_url=rest, timeout_s=60) as client:
        assert client.rank_rest(USER, ITEMS).tolist() == [3, 4]
        with pytest.raises(ValueError, match="`target` must be given"):
            client.rank(USER, ITEMS)
        with pytest.raises(ValueError, match=r"`timeout_s` must be a positive number of seconds\. Received: 0"):
            client.rank_rest(USER, ITEMS, timeout_s=0)


def test_call_that_is_cancelled_ends(servers):
    async def run():
        async with AsyncRankingClient(*servers[0], timeout_s=60) as client:
            call = asyncio.ensure_future(client.predict({"steps": np.int32(10**5)}, "slow"))
            await asyncio.sleep(0.05)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            many = await asyncio.gather(*[client.rank(USER, ITEMS) for _ in range(20)])
            return {tuple(scores) for scores in many}

    assert asyncio.run(run()) == {(3, 4)}
