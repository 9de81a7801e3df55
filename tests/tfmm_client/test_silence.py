"""Machines that fall silent: their connections end."""

import contextlib
import os
import socket
from concurrent import futures

import grpc
import pytest

from tfmm_client import PredictError, RankingClient, caller


def test_connection_ends_where_nothing_is_acknowledged():
    """As the kernel has it of the client's own sockets."""
    server = grpc.server(futures.ThreadPoolExecutor(1))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    found = []
    try:
        with RankingClient(f"127.0.0.1:{port}", timeout_s=120) as client:
            with pytest.raises(PredictError, match="UNIMPLEMENTED"):
                client.predict({}, "rank")
            for name in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError), socket.socket(fileno=os.dup(int(name))) as one:
                    if one.getpeername()[1:2] == (port,):
                        found.append(one.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
    finally:
        server.stop(None).wait()
    assert found == [1e3 * caller.SILENT_S]
