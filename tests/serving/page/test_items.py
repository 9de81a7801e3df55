"""The last items while what tells of them is away, or slow."""

import asyncio
import base64
import queue
import threading
from concurrent import futures

import httpx
import numpy as np
import pytest

from serving.page import app, items, serve
from serving.streaming import event_log, events
from tfmm.index import encode, store

ITEMS = np.arange(100, 140, dtype=np.int64)
GIVEN = encode.GivenVectors(8)


@pytest.fixture
def index(tmp_path):
    """An item index."""
    path = str(tmp_path / "items.sqlite")
    with store.open_store(path) as opened:
        rows, scales = encode.quantize(np.random.default_rng(0).normal(size=(len(ITEMS), 8)))
        opened.write(GIVEN.modality, GIVEN.version, ITEMS, rows, scales, [1] * len(ITEMS))
        opened.keep_id_types({"user_id": "int64", "item_id": "int64", "category": "int64"})
    return path


def shown(watch):
    """The texts of items by their ids."""
    return {row["cells"]["item"]["value"]: row["cells"]["item"]["text"] for row in watch.value or ()}


def test_items_are_kept_while_their_events_cannot_be_read(index, tmp_path):
    path = tmp_path / "events.sqlite"
    watch = items.Items(index, str(path)).watches[0]
    watch.ask()
    assert "events.sqlite does not exist yet" in watch.notes[0]["text"]
    with event_log.SQLiteEventLog(path) as log:
        log.append([events.make_event(139, category=1, title="the last")])
        watch.ask()
    assert not watch.notes
    assert len(shown(watch)) == items.COUNT and shown(watch)[139] == "the last"


def test_a_catalog_that_takes_long_holds_up_no_reader_of_what_is_met(index, tmp_path, monkeypatch):
    path, opening, go_on = tmp_path / "events.sqlite", threading.Event(), threading.Event()

    def open_slowly(_):
        opening.set()
        go_on.wait(300)
        return lambda item: None

    monkeypatch.setattr(items, "Catalog", open_slowly)
    own = items.Items(index, str(path), tmp_path)
    own._keep(139, items.Content(139, "the last", b"picture"))
    with futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(own.picture, "138")
        opening.wait(60)
        try:
            pool.submit(own._keep, 137, items.Content(137)).result(60)
            assert pool.submit(own.picture, "139").result(60) == b"picture"
        finally:
            go_on.set()
        assert slow.result(60) is None


def test_a_picture_that_takes_long_holds_up_no_other_answer():
    asked, go_on, found, servers = threading.Event(), threading.Event(), queue.Queue(), []

    def picture(_):
        asked.set()
        go_on.wait(300)
        return b"\x89PNG\r\n\x1a\n"

    application = app.application(lambda: {"told": 1}, picture)
    server = threading.Thread(
        target=serve.run, args=(application, "127.0.0.1", 0, None, found.put, servers.append), daemon=True
    )
    server.start()
    url = found.get(timeout=60)
    with futures.ThreadPoolExecutor() as pool:
        slow = pool.submit(httpx.get, f"{url}picture/1", timeout=400)
        asked.wait(60)
        try:
            assert httpx.get(f"{url}data.json", timeout=60).json() == {"told": 1}
        finally:
            go_on.set()
            assert slow.result(60).status_code == 200
            servers[0].should_exit = True
            server.join(60)


@pytest.mark.parametrize(
    ("host", "asked", "status"),
    [
        ("127.0.0.1", "127.0.0.1:8600", 200), ("127.0.0.1", "localhost:8600", 200), ("::1", "[::1]:8600", 200),
        ("127.0.0.1", "rebound.example:8600", 400), ("localhost", "rebound.example", 400),
        ("0.0.0.0", "shop.example", 200),
    ],
)  # fmt: skip
def test_a_page_of_this_machine_answers_to_no_other_name(host, asked, status):
    application = app.application(lambda: {"told": 1}, host=host)

    async def ask():
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get("/data.json", headers={"host": asked})

    assert asyncio.run(ask()).status_code == status


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401), ("Bearer 0123456789abcdef", 200), ("bearer 0123456789abcdef", 200),
        ("Bearer 0123456789abcdeg", 401),
        ("Basic " + base64.b64encode(b"anybody:0123456789abcdef").decode(), 200),
        ("Basic " + base64.b64encode(b"0123456789abcdef").decode(), 401),
        ("Basic " + base64.b64encode(b"0123456789abcdef:").decode(), 401), ("Basic !", 401), ("0123456789abcdef", 401),
    ],
)  # fmt: skip
def test_a_page_with_a_token_is_read_by_who_brings_it(given, status):
    asked = []

    def picture(item):
        asked.append(item)
        return b"\x89PNG\r\n\x1a\n"

    application = app.application(lambda: {"told": 1}, picture, token="0123456789abcdef")

    async def ask(path):
        transport, headers = httpx.ASGITransport(application), {"authorization": given} if given else {}
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.get(path, headers=headers)

    for path in ("/data.json", "/picture/7"):
        answer = asyncio.run(ask(path))
        assert answer.status_code == status
        assert answer.headers.get("www-authenticate", "").startswith("Basic " if status == 401 else "")
    assert asked == ([] if status == 401 else ["7"])
