"""What is too big, too slow or given up is refused with the rule, the value and the way out, over REST and gRPC."""

import contextlib
import dataclasses
import json
import socket
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving import channel
from serving.model_server import __main__ as command
from serving.model_server import http_limits
from serving.model_server.errors import ServingError
from serving.model_server.limits import Limits

SMALL = Limits(max_request_bytes=4000, max_candidates=100, send_timeout_seconds=120.0)


@pytest.fixture(scope="module")
def small(half_plus_two_dir, serving_at):
    with serving_at(half_plus_two_dir, limits=SMALL) as addresses:
        yield addresses


@pytest.fixture(scope="module")
def hasty(half_plus_two_dir, serving_at):
    """A server that waits for no client long."""
    with serving_at(half_plus_two_dir, limits=dataclasses.replace(SMALL, send_timeout_seconds=2.0)) as addresses:
        yield addresses


def post(addresses, body, **options):
    return httpx.post(f"{addresses['rest']}/v1/models/half_plus_two:predict", content=body, timeout=60, **options)


def predict(addresses, tensor):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus_two"
    request.inputs["x"].CopyFrom(tensor)
    with grpc.insecure_channel(addresses["grpc"]) as channel:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=60)


def connect(addresses):
    host, port = addresses["rest"].removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def test_body_beyond_the_limit_is_413(small):
    body = json.dumps({"instances": [1.0] * 3000}).encode()
    for content in (body, iter([body[:5000], body[5000:]])):  # with its length, and in chunks
        answer = post(small, content)
        assert answer.status_code == 413
        assert "may have 4000 bytes" in answer.json()["error"] and "--max_request_bytes" in answer.json()["error"]
    assert post(small, json.dumps({"instances": [1.0] * 50}).encode()).json()["predictions"] == [2.5] * 50


def test_body_of_hundreds_of_megabytes_leaves_nothing_behind(small):
    def endless():
        while True:
            yield b" " * 65536

    hung_up = httpx.NetworkError, httpx.RemoteProtocolError
    with contextlib.suppress(*hung_up):  # the server did, before the client looked
        assert post(small, endless()).status_code == 413
    assert post(small, b'{"instances": [2]}').status_code == 200


def test_too_many_candidates_are_400(small):
    answer = post(small, json.dumps({"instances": [1] * 101}).encode())
    assert answer.status_code == 400
    assert "100 candidates or rows. Received: 101" in answer.json()["error"]
    with pytest.raises(grpc.RpcError, match=r"INVALID_ARGUMENT(.|\n)*100 candidates or rows. Received: 101"):
        predict(small, tf.make_tensor_proto(np.ones(101, np.float32)))


def test_grpc_message_beyond_the_limit_is_resource_exhausted(small):
    with pytest.raises(grpc.RpcError, match="RESOURCE_EXHAUSTED"):
        predict(small, tf.make_tensor_proto(np.ones(1500, np.float32)))


def test_small_message_that_stands_for_a_big_tensor_is_refused_before_it_is_made(small):
    tensor = tf.make_tensor_proto(np.ones(1, np.float32))
    for size in (1 << 20, 50):
        del tensor.tensor_shape.dim[:]
        tensor.tensor_shape.dim.add(size=2)
        tensor.tensor_shape.dim.add(size=1 << 30 if size > 50 else 600)
        with pytest.raises(grpc.RpcError, match=r"INVALID_ARGUMENT(.|\n)*may have 4000 bytes"):
            predict(small, tensor)


def test_shop_of_5000_candidates_with_vectors_meets_no_limit():
    limits, num_candidates, dims = Limits(), 5000, {"image": 256, "text": 256}
    assert num_candidates <= limits.max_candidates
    longest = len("-127, ") * num_candidates * sum(dims.values())  # JSON of int8 rows
    assert longest < limits.max_request_bytes


@pytest.mark.parametrize(
    "sent",
    [b"", b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: me\r\nX-Slow: ", b"GET /v1/models/m HTT"],
)
def test_client_that_does_not_finish_its_headers_is_hung_up_on(hasty, sent):
    with connect(hasty) as client:
        client.sendall(sent)
        assert client.recv(1000) == b""


def test_slow_headers_after_a_first_request_are_hung_up_on(hasty):
    with connect(hasty) as client:
        whole = b"GET /v1/models/half_plus_two HTTP/1.1\r\nHost: me\r\n\r\n"
        client.sendall(whole)
        assert client.recv(10_000).startswith(b"HTTP/1.1 200")
        client.sendall(whole[:20])
        while rest := client.recv(10_000):  # the end of the first answer, if it came in parts
            assert not rest.startswith(b"HTTP/1.1")


def test_client_that_does_not_finish_its_body_is_answered_408(hasty):
    head = b"POST /v1/models/half_plus_two:predict HTTP/1.1\r\nHost: me\r\nContent-Length: 100\r\n\r\n"
    with connect(hasty) as client:
        client.sendall(head + b'{"inst')
        answer = b""
        while part := client.recv(10_000):
            answer += part
    assert answer.startswith(b"HTTP/1.1 408") and b"--send_timeout_seconds" in answer


def wait_for_waiting(addresses, count):
    """Waits until so many calls wait for a thread."""
    deadline = time.monotonic() + 60
    while f"tfmm_requests_waiting {count:.1f}" not in httpx.get(addresses["metrics"] + "/metrics", timeout=60).text:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_calls_of_rest_clients_that_left_do_not_run(tmp_path, serving_at, write_models, monkeypatch):
    write_models["counter"](tmp_path / "1")
    with serving_at(tmp_path, name="m", num_threads=1, rest_timeout_s=0.0, metrics_port=0) as addresses:
        from serving.model_server import rest

        running, go, real, ran = threading.Event(), threading.Event(), rest._ACTIONS["predict"], []

        def held(answers, spec, body, *more):
            ran.append(body)
            running.set()
            assert go.wait(120)
            return real(answers, spec, body, *more)

        monkeypatch.setitem(rest._ACTIONS, "predict", held)
        head = b"POST /v1/models/m:predict HTTP/1.1\r\nHost: me\r\nContent-Length: %d\r\n\r\n"
        bodies = [b'{"instances": ["%d"]}' % n for n in range(3)]
        clients = [connect(addresses) for _ in bodies]
        clients[0].sendall(head % len(bodies[0]) + bodies[0])
        assert running.wait(60)
        for client, body in zip(clients[1:], bodies[1:]):
            client.sendall(head % len(body) + body)
        wait_for_waiting(addresses, 2)
        clients[1].close()
        wait_for_waiting(addresses, 1)
        go.set()
        assert clients[2].recv(1000).startswith(b"HTTP/1.1 200")
        for client in clients:
            client.close()
    assert ran == [bodies[0], bodies[2]]


@dataclasses.dataclass
class Headers:
    headers: dict


def test_rest_deadline_is_the_nearer_of_the_servers_and_the_clients():
    said = Headers({channel.TIME_OUT: "250"})
    cases = ((said, 30.0, 0.25), (said, 0.0, 0.25), (said, 0.1, 0.1), (Headers({}), 9.0, 9.0))
    for request, timeout_s, wait_s in cases:
        before = time.monotonic()
        found = http_limits.deadline(request, timeout_s)
        assert before + wait_s <= found <= time.monotonic() + wait_s
    assert http_limits.deadline(Headers({}), 0.0) is None
    assert http_limits.deadline(Headers({channel.TIME_OUT: "soon"}), 0.0) is None


def test_rest_client_says_how_long_it_waits(half_plus_two_dir, serving_at):
    with serving_at(half_plus_two_dir) as addresses:
        answer = post(addresses, b'{"instances": [1]}', headers={channel.TIME_OUT: "0"})
        assert answer.status_code == 504


def test_impossible_limits_are_refused_all_at_once(capsys):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--model_base_path=/m", "--max_candidates=0", "--deadline_margin=nan"])
    said = capsys.readouterr().err
    assert "`max_candidates` must be at least 1. Received: 0" in said and "`deadline_margin`" in said


def test_tensor_within_the_limits_passes():
    from serving.model_server.servable import check_size

    check_size("x", [100, 10], 4, SMALL)
    check_size("x", [], 4, SMALL)
    with pytest.raises(ServingError, match=r"may have 4000 bytes\. Received: 4004"):
        check_size("x", [1, 1001], 4, SMALL)
