"""Upserts by a client: sent once, to one server."""

import asyncio

import numpy as np
import pytest

import tfmm_client
from tfmm_client import AsyncRankingClient, RankingClient, Retry, caller

AWAY = ("127.0.0.1:1", "http://127.0.0.1:1")  # nothing listens there
ITEM = {"item_ids": np.array([1])}


def call(kind, name, addresses, signature):
    """Calls `predict` or `predict_rest` of a client of the threads' or of asyncio's."""
    settings = {"retry": Retry(rounds=3, base_s=0.01), "timeout_s": 60}
    if kind is RankingClient:
        with RankingClient(*addresses, **settings) as client:
            return getattr(client, name)(ITEM, signature)

    async def run():
        async with AsyncRankingClient(*addresses, **settings) as client:
            return await getattr(client, name)(ITEM, signature)

    return asyncio.run(run())


@pytest.fixture(params=[RankingClient, AsyncRankingClient])
def kind(request):
    return request.param


@pytest.mark.parametrize("name", ["predict", "predict_rest"])
def test_upsert_is_sent_once(kind, name):
    with pytest.raises(tfmm_client.Unavailable, match=r"3 tries"):
        call(kind, name, AWAY, "rank")
    with pytest.raises(tfmm_client.Unavailable, match=r"^(?!.*tries)"):
        call(kind, name, AWAY, caller.UPSERT)


@pytest.mark.parametrize("name", ["predict", "predict_rest"])
@pytest.mark.parametrize("targets", [["a:1", "b:1"], "ipv4:10.0.0.7:1,10.0.0.8:1"], ids=["list", "one of several"])
def test_upsert_needs_one_server(kind, name, targets):
    with pytest.raises(ValueError, match=r"'upsert_items' must be sent to one server.*Received: .*:1, ?b|7:1,10"):
        call(kind, name, (targets,), caller.UPSERT)
