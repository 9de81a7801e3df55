"""A server has all of its ports, or ends and says why."""

import asyncio
import errno
import os
import socket

import pytest

from serving.deploy import started
from serving.model_server import server
from serving.model_server.config import ModelConfig


def bound():
    """A socket on a free port, as servers bind theirs, that does not listen."""
    found = socket.socket()
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    found.bind(("127.0.0.1", 0))
    return found


@pytest.mark.parametrize("name", ["REST", "gRPC"])
def test_port_that_another_server_takes_meanwhile_ends_the_start(name, tmp_path, half_plus_two_dir):
    """Both have bound the port, which is no error; the other one listens first."""
    base, ready_file = tmp_path / "m", tmp_path / "ready.json"
    base.mkdir()
    (metrics_port,) = started.free_ports(1)
    with bound() as other:
        port = other.getsockname()[1]
        options = server.Options(
            (ModelConfig("m", str(base)),), port=port if name == "gRPC" else 0, metrics_port=metrics_port,
            rest_api_port=port if name == "REST" else 0, ready_file=str(ready_file), poll_wait_s=0.05, stop_grace_s=0.0,
        )  # fmt: skip

        async def start():
            serves = asyncio.create_task(server.serve(options, asyncio.Event()))
            while not serves.done():  # until it has bound its ports and looks for a version
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", metrics_port)
                    writer.close()
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.02)
            other.listen()
            os.symlink(half_plus_two_dir / "123", base / "1")
            await asyncio.wait_for(serves, 120)

        with pytest.raises(OSError, match=rf"{name} cannot listen on 127\.0\.0\.1, port {port}: .*in use") as refused:
            asyncio.run(start())
    assert refused.value.errno == errno.EADDRINUSE
    assert not ready_file.exists()


@pytest.mark.parametrize("name", ["REST", "gRPC", "metrics"])
def test_port_that_another_server_has_is_named_before_anything_is_loaded(name, half_plus_two_dir):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        flag = {"REST": "rest_api_port", "gRPC": "port", "metrics": "metrics_port"}[name]
        ports = {"rest_api_port": 0 if name == "metrics" else -1, flag: port}
        options = server.Options((ModelConfig("m", str(half_plus_two_dir)),), **{"port": 0, **ports})
        with pytest.raises(OSError, match=rf"{name} cannot listen on 127\.0\.0\.1, port {port}: .*in use"):
            asyncio.run(server.serve(options, asyncio.Event()))


def test_port_that_the_system_chose_is_held_until_grpc_listens_on_it(half_plus_two_dir, monkeypatch):
    """Between the two another server, started in the same moment, could be given the same."""
    held = []

    def add_ports(grpc_server, options, port):
        held.append(socket.socket())
        try:
            held[0].bind(("127.0.0.1", port))  # as a server that asks the system for any port is given none taken
        except OSError as error:
            held.append(error.errno)
        raise OSError("seen")

    monkeypatch.setattr(server, "_add_ports", add_ports)
    options = server.Options((ModelConfig("m", str(half_plus_two_dir)),), port=0)
    with pytest.raises(OSError, match="seen"):
        asyncio.run(server.serve(options, asyncio.Event()))
    held[0].close()
    assert held[1:] == [errno.EADDRINUSE]


def test_socket_path_that_cannot_be_is_named(tmp_path, half_plus_two_dir):
    options = server.Options(
        (ModelConfig("m", str(half_plus_two_dir)),), port=-1, grpc_socket_path=str(tmp_path / "no" / "grpc.sock")
    )
    with pytest.raises(OSError, match=r"gRPC cannot listen on .*/no/grpc.sock: the folder must exist"):
        asyncio.run(server.serve(options, asyncio.Event()))


def test_rest_that_ends_by_itself_ends_the_server():
    async def run(end):
        with pytest.raises(RuntimeError, match=r"REST ended by itself|a fault"):
            await server._until(asyncio.Event(), asyncio.create_task(end))

    async def ends(error=None):
        if error:
            raise error

    asyncio.run(run(ends()))
    asyncio.run(run(ends(RuntimeError("a fault"))))
