"""The REST API: formats, status map and error bodies of TensorFlow Serving."""

import asyncio
import contextlib
import json
import socket

import pytest

from serving.model_server import server as server_module

PREDICT = "/half_plus_two:predict"


def ask(rest, body, path=PREDICT):
    response = rest.post(path, content=body if isinstance(body, (str, bytes)) else json.dumps(body))
    return response.status_code, response.json()


def several(**changes):
    inputs = {"x": [[1, 2], [3, 4.5]], "n": [10, 20], "text": ["a", {"b64": "/w=="}]} | changes
    return {"signature_name": "several", "inputs": inputs}


def test_row_format_of_one_input(rest):
    assert ask(rest, {"instances": [1.0, 2, 5]}) == (200, {"predictions": [2.5, 3.0, 4.5]})
    assert ask(rest, {"instances": [{"x": 1.0}, {"x": 2.0}]}) == (200, {"predictions": [2.5, 3.0]})


def test_columnar_format_of_one_input(rest):
    assert ask(rest, {"inputs": [1.0]}) == (200, {"outputs": [2.5]})
    assert ask(rest, {"inputs": {"x": [1.0]}}) == (200, {"outputs": [2.5]})


@pytest.mark.parametrize("path", ["/half_plus_two/versions/123:predict", "/half_plus_two:PREDICT"])
def test_version_in_the_path_and_any_case_of_the_method(rest, path):
    assert ask(rest, {"inputs": [1.0]}, path)[0] == 200


def test_columnar_outputs_are_named_and_bytes_are_base64(rest):
    status, body = ask(rest, several())
    assert status == 200
    assert body["outputs"] == {
        "sum": [13.0, 27.5],
        "n": [10, 20],
        "scalar": 2,
        "text": ["a", "�"],
        "raw_bytes": [{"b64": "YQ=="}, {"b64": "/w=="}],
    }


def test_row_format_needs_a_batch_dimension_in_every_output(rest):
    rows = [{"x": [1, 2], "n": 10, "text": "a"}]
    status, body = ask(rest, {"signature_name": "several", "instances": rows})
    assert status == 400 and "no common batch size" in body["error"]


def test_numbers_read_as_the_shortest_text(rest):
    response = rest.post(PREDICT, content='{"inputs": [0.2, 2, NaN, Infinity, -Infinity]} trailing')
    assert response.text == '{"outputs": [2.1, 3.0, NaN, Infinity, -Infinity]}'
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize(("body", "message"), [
    ("{", "JSON Parse error"),
    ("[1]", "must be an object"),
    ({"instances": []}, "non-empty list"),
    ({"instances": [1], "inputs": [1]}, "exactly one"),
    ({"signature_name": 3, "inputs": [1]}, "must be a string"),
    ({"inputs": {"z": [1]}}, "Missing named input: ['x']"),
    ({"inputs": ["a"]}, "not of expected type"),
    ({"inputs": [True]}, "not of expected type"),
    ({"inputs": [[1], [2, 3]]}, "must all have 1 elements"),
    ({"inputs": [[1], 2]}, "must all have"),
    ({"inputs": 1.0}, "expects shape"),
    ({"signature_name": "none", "inputs": [1]}, "not found"),
    ({"signature_name": "several", "inputs": [1]}, "must be named"),
    ({"signature_name": "several", "inputs": {"x": [[1, 2]]}}, "Missing named input: ['n', 'text']"),
    ({"instances": [{"x": 1}, {"y": 2}]}, "Instance 1 is not"),
    (several(n=[1.0, 2]), "not of expected type: int64"),
    (several(n=[2**63, 1]), "not of expected type: int64"),
    (several(text=["a", {"b64": "!"}]), "base64"),
    (several(text=["a", 3]), "a string tensor takes"),
])  # fmt: skip
def test_bad_requests_are_400_with_the_reason(rest, body, message):
    status, answer = ask(rest, body)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/half_plus_two/versions/7", 404),
        ("POST", "/nowhere:predict", 404),
        ("POST", "/half_plus_two/versions/7:predict", 404),
        ("POST", "/half_plus_two/labels/stable:predict", 400),
        ("POST", "/half_plus_two:classify", 400),
        ("GET", "/half_plus_two:predict", 400),
        ("POST", "/half_plus_two", 400),
        ("DELETE", "/half_plus_two", 400),
        ("GET", "/half_plus_two/versions/x", 400),
        ("GET", "/half_plus_two/versions/99999999999999999999", 400),
    ],
)
def test_paths_and_methods(rest, method, path, status):
    response = rest.request(method, path, content='{"inputs": [1]}')
    assert response.status_code == status
    assert response.json()["error"]


def test_answers_do_not_wait_for_the_clients_ack():
    accepted = []

    class Seen(asyncio.Protocol):
        def connection_made(self, transport):
            connection = transport.get_extra_info("socket")
            accepted.append(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            transport.close()

    async def connect():
        with contextlib.closing(server_module._reserve("REST", "127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            server = await asyncio.get_running_loop().create_server(Seen, sock=listener)
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            while not accepted:
                await asyncio.sleep(0.01)
            writer.close()
            await writer.wait_closed()
            server.close()

    asyncio.run(connect())
    assert accepted[0]


def test_outside_v1_is_404(rest):
    assert rest.get("http://" + rest.base_url.netloc.decode() + "/other").status_code == 404


def test_status_names_the_version(rest):
    assert rest.get("/half_plus_two").json() == {
        "model_version_status": [
            {"version": "123", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        ]
    }


def test_metadata_shows_the_signatures(rest):
    body = rest.get("/half_plus_two/metadata").json()
    assert body["model_spec"]["version"] == "123"
    signatures = body["metadata"]["signature_def"]["signature_def"]
    assert set(signatures) == {"serving_default", "several"}
    assert signatures["serving_default"]["inputs"]["x"]["dtype"] == "DT_FLOAT"
