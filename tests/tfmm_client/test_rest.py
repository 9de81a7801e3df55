"""REST against servers that are none of a model's: proxies, and those that drip."""

import asyncio
import contextlib
import http.server
import json
import socket
import threading

import pytest

from tfmm_client import AsyncRankingClient, DeadlineExceeded, RankingClient, ServerError

TENSOR = {"dtype": "DT_INT64", "tensor_shape": {"dim": [{"size": "-1"}]}}
NO_DTYPE = {"rank": {"inputs": {"item_id": TENSOR | {"dtype": "DT_NONSENSE"}}}}
RANK = {"rank": {"inputs": {"item_id": TENSOR}}}


def metadata(signatures, version="1"):
    return {"model_spec": {"version": version}, "metadata": {"signature_def": {"signature_def": signatures}}}


@contextlib.contextmanager
def answering(**answers):
    """Yields the URL of a server that answers GET and POST so."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = json.dumps(answers[self.command]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def rank(kind, url, timeout_s=120.0):
    if kind is RankingClient:
        with RankingClient(rest_url=url, timeout_s=timeout_s) as client:
            return client.rank_rest({}, {"item_id": [3]})

    async def run():
        async with AsyncRankingClient(rest_url=url, timeout_s=timeout_s) as client:
            return await client.rank_rest({}, {"item_id": [3]})

    return asyncio.run(run())


@pytest.fixture(params=[RankingClient, AsyncRankingClient])
def kind(request):
    return request.param


@pytest.mark.parametrize(
    "answers",
    [
        {"GET": {"status": "ok"}},
        {"GET": metadata(NO_DTYPE)},
        {"GET": metadata(RANK, "newest")},
        {"GET": metadata([])},
        {"GET": metadata(RANK), "POST": {"status": "ok"}},
        {"GET": metadata(RANK), "POST": {"outputs": [1.0]}},
        {"GET": metadata(RANK), "POST": {"outputs": {"score": [[1.0], [1.0, 2.0]]}}},
    ],
    ids=["status", "dtype", "version", "signatures", "no outputs", "no score", "ragged"],
)
def test_answer_of_another_server_is_a_server_error(kind, answers):
    with answering(**answers) as url, pytest.raises(ServerError, match=r"^200: no answer of TensorFlow Serving's REST"):
        rank(kind, url)


def test_answer_of_a_model_is_taken(kind):
    with answering(GET=metadata(RANK), POST={"outputs": {"score": [0.5]}}) as url:
        assert rank(kind, url).tolist() == [0.5]


@contextlib.contextmanager
def dripping(head):
    """Yields the URL of a server that sends a head, then for two minutes a byte every 20 ms, and whom it sent all."""
    is_over, connections, whole = threading.Event(), [], []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip(connection):
            with connection, contextlib.suppress(OSError):
                connection.recv(10_000)
                connection.sendall(head)
                for _ in range(6000):
                    if is_over.wait(0.02):
                        return
                    connection.sendall(b"x")
                whole.append(connection)

        def serve():
            while not is_over.is_set():
                connection = server.accept()[0]
                connections.append(threading.Thread(target=drip, args=(connection,)))
                connections[-1].start()

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield "http://{}:{}".format(*server.getsockname()[:2]), whole
        finally:
            is_over.set()
            with socket.create_connection(server.getsockname()):
                pass
            for one in (thread, *connections):
                one.join()


@pytest.mark.parametrize(
    "head",
    [b"HTTP/1.1 200 OK\r\nx-slow: ", b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n"],
    ids=["headers", "body"],
)
def test_answer_that_drips_ends_with_the_deadline(kind, head):
    with dripping(head) as (url, whole):
        with pytest.raises(DeadlineExceeded, match=r"within 0\.\d+ s"):
            rank(kind, url, timeout_s=0.3)
        assert not whole


def test_client_that_is_closed_sends_nothing():
    with answering(GET=metadata(RANK), POST={"outputs": {"score": [0.5]}}) as url:
        client = RankingClient(rest_url=url)
        assert client.rank_rest({}, {"item_id": [3]}).tolist() == [0.5]
        client.close()
        client.close()
        with pytest.raises(RuntimeError, match="closed"):
            client.rank_rest({}, {"item_id": [3]})
