"""A proxy that the environment names, and servers of this machine: the token goes to them alone."""

import socket
import threading

import pytest

from tfmm_client import Access, RankingClient, Unavailable

TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def proxy(monkeypatch):
    """The environment's proxy, as the list of the first bytes of each connection."""
    seen = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def take():
            while True:
                connection = server.accept()[0]
                with connection:
                    connection.settimeout(120)
                    if not (first := connection.recv(1000)):
                        return
                    seen.append(first)

        thread = threading.Thread(target=take)
        thread.start()
        address = server.getsockname()[:2]
        for name in ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy"):
            monkeypatch.setenv(name, "http://{}:{}".format(*address))
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield seen
        with socket.create_connection(address):
            pass
        thread.join()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
@pytest.mark.parametrize("way", ["predict", "predict_rest"])
def test_proxy_is_not_asked_for_this_machine(proxy, way, host):
    with RankingClient(f"{host}:1", f"http://{host}:1", access=Access(TOKEN), timeout_s=120) as client:
        with pytest.raises(Unavailable, match="UNAVAILABLE"):
            getattr(client, way)({}, "rank")
    assert proxy == []


def test_proxy_is_asked_for_other_machines(proxy):
    with RankingClient(rest_url="http://ranker.invalid:1", timeout_s=120) as client:
        with pytest.raises(Unavailable, match="UNAVAILABLE"):
            client.predict_rest({}, "rank")
    assert proxy[0].startswith(b"POST http://ranker.invalid:1/")
