"""Who reaches a server, and who may write: TLS and a token off this machine; index files for their owner alone."""

import datetime
import http.server
import ipaddress
import os
import stat
import subprocess
import sys
import threading

import grpc
import httpx
import numpy as np
import pytest
import tensorflow as tf
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from tensorflow_serving.apis import model_management_pb2, model_service_pb2_grpc

from serving import channel, client, replicator
from serving.model_server import __main__ as command
from serving.model_server import access
from serving.model_server.errors import PERMISSION_DENIED, UNAUTHENTICATED
from serving.model_server.server import Options
from serving.replica import Replica
from serving.streaming import event_log
from tfmm import saved_model
from tfmm.index import item_index

TOKEN = "0123456789abcdef-token"


class Written(tf.Module):
    """A model whose item index is a counter of upserts."""

    def __init__(self):
        super().__init__()
        self.count = tf.Variable(0, dtype=tf.int64)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int64, name="item_ids")])
    def upsert(self, item_ids):
        return {"statuses": tf.zeros_like(item_ids) + self.count.assign_add(1)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def double(self, x):
        return {"y": 2.0 * x}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder, module = tmp_path_factory.mktemp("written"), Written()
    saved_model.save(module, {"serving_default": module.double, "upsert_items": module.upsert}, folder / "1")
    return folder


def certificate(folder, name, issuer=None):
    """Writes key and certificate of a name, self-signed or by (key, certificate) of an issuer; returns both."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    addresses = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer[1].subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .sign(issuer[0] if issuer else key, hashes.SHA256())
    )
    (folder / f"{name}.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    locked = serialization.BestAvailableEncryption(b"word")
    (folder / f"{name}.locked").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, locked)
    )
    (folder / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return key, made


@pytest.fixture(scope="module")
def tls(tmp_path_factory):
    """A folder with certificates of an authority, a server and a client, and SSLConfigs, some of them wrong."""
    folder = tmp_path_factory.mktemp("tls")
    authority = certificate(folder, "authority")
    for name in ("server", "caller"):
        certificate(folder, name, authority)

    def text(path):
        return (folder / path).read_text().replace("\n", "\\n")

    pair = f'server_key: "{text("server.key")}"\nserver_cert: "{text("server.pem")}"\n'
    (folder / "ssl.config").write_text(pair)
    (folder / "mutual.config").write_text(pair + f'custom_ca: "{text("authority.pem")}"\nclient_verify: true\n')
    (folder / "no_pair.config").write_text(f'server_key: "{text("caller.key")}"\nserver_cert: "{text("server.pem")}"\n')
    (folder / "locked.config").write_text(
        f'server_key: "{text("server.locked")}"\nserver_cert: "{text("server.pem")}"\n'
    )
    (folder / "no_ca.config").write_text(pair + "client_verify: true\n")
    (folder / "nonsense.config").write_text("certificate: 7")
    return folder


def predict(addresses, caller):
    url = addresses["rest"].replace("http:", "https:") if caller.ca_file else addresses["rest"]
    with client.RankingClient(addresses["grpc"], url, "m", timeout_s=60, access=caller) as connected:
        by_grpc = connected.predict({"x": np.float32([1.0])})["y"].tolist()
        assert by_grpc == connected.predict_rest({"x": np.float32([1.0])})["output"].tolist()
        return by_grpc


def upsert(addresses, caller, rest=False):
    with client.RankingClient(addresses["grpc"], addresses["rest"], "m", timeout_s=60, access=caller) as connected:
        call = connected.predict_rest if rest else connected.predict
        return call({"item_ids": np.array([1])}, "upsert_items")


def reload(addresses, base, metadata=()):
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.config.add(name="m", base_path=str(base), model_platform="tensorflow")
    with grpc.insecure_channel(addresses["grpc"]) as opened:
        stub = model_service_pb2_grpc.ModelServiceStub(opened)
        return stub.HandleReloadConfigRequest(request, timeout=60, metadata=metadata)


def test_a_network_is_not_faced_by_accident(capsys, tls):
    for host in ("0.0.0.0", "::", "10.1.2.3", "server.example"):
        with pytest.raises(ValueError, match=r"faces a network: give --ssl_config_file, or --allow_insecure"):
            Options(models=(), host=host)
        with pytest.raises(SystemExit, match="2"):
            command.main(["--model_base_path=/m", f"--host={host}"])
        assert f"--host={host} faces a network" in capsys.readouterr().err
    Options(models=(), host="0.0.0.0", allow_insecure=True)
    Options(models=(), host="0.0.0.0", ssl=access.read_ssl_config(str(tls / "ssl.config")))
    for host in ("127.0.0.1", "127.0.0.2", "::1", "localhost"):
        Options(models=(), host=host)


def test_index_is_not_waited_for_where_nobody_could_bring_it(capsys, monkeypatch):
    monkeypatch.delenv(channel.TOKEN_VARIABLE, raising=False)
    flags = ["--model_base_path=/m", "--host=0.0.0.0", "--allow_insecure=true", "--index_wait_seconds=-1"]
    with pytest.raises(SystemExit, match="2"):
        command.main(flags)
    assert f"would wait for ever: give --token_file or {channel.TOKEN_VARIABLE}" in capsys.readouterr().err


def test_on_this_machine_nothing_is_asked_without_a_token(base, serving_at):
    with serving_at(base, name="m") as addresses:
        assert upsert(addresses, channel.NO_ACCESS)["statuses"].tolist() == [1]
        reload(addresses, base)


def test_upserts_and_reloads_need_the_token_and_predicts_do_not(base, serving_at):
    with serving_at(base, name="m", token=TOKEN) as addresses:
        assert predict(addresses, channel.NO_ACCESS) == [2.0]
        for caller, received in ((channel.NO_ACCESS, "none"), (channel.Access(TOKEN + "x"), "another token")):
            with pytest.raises(client.PredictError, match=rf"UNAUTHENTICATED.*Bearer TOKEN.*Received: {received}"):
                upsert(addresses, caller)
            with pytest.raises(client.PredictError, match=rf"401.*Received: {received}"):
                upsert(addresses, caller, rest=True)
            with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):
                reload(addresses, base, caller.metadata())
        caller = channel.Access(TOKEN)
        assert upsert(addresses, caller)["statuses"].tolist() == [1]  # none of the refused ones came through
        assert upsert(addresses, caller, rest=True)["output"].tolist() == [2]
        reload(addresses, base, caller.metadata())
        refused = Replica(addresses["grpc"], "m", timeout_s=60.0)
        with pytest.raises(grpc.RpcError, match="UNAUTHENTICATED"):  # that it is caught up is a write as well
            refused._predict(1, "serving_default", {"x": np.float32([1])}, [(channel.CAUGHT_UP, "1")])
        refused.close()


def test_off_this_machine_no_token_means_no_writes():
    guard = access.Guard(is_local=False)
    assert guard.refusal("Bearer anything").code == PERMISSION_DENIED
    assert "--token_file" in guard.refusal(None).message
    guard = access.Guard(TOKEN, is_local=False)
    assert guard.refusal(f"Bearer {TOKEN}") is None and guard.refusal(f"Bearer {TOKEN}".encode()) is None
    for wrong in (None, "", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN} ", "Bearer é"):
        assert guard.refusal(wrong).code == UNAUTHENTICATED


def test_tls_on_both_ports(base, serving_at, tls):
    with serving_at(base, name="m", ssl=access.read_ssl_config(str(tls / "ssl.config"))) as addresses:
        assert predict(addresses, channel.Access(ca_file=str(tls / "authority.pem"))) == [2.0]
        with pytest.raises(client.PredictError, match="UNAVAILABLE"):
            predict(addresses, channel.NO_ACCESS)
        with pytest.raises(httpx.HTTPError, match=r"disconnected|reset|EOF"):
            httpx.get(addresses["rest"] + "/v1/models/m", timeout=60)
        with pytest.raises(client.PredictError, match="UNAVAILABLE"):  # signed by somebody else
            predict(addresses, channel.Access(ca_file=str(tls / "caller.pem")))


PUBLIC = """
import sys
import numpy as np
from serving import channel, client, replicator

target, url = sys.argv[1:]
caller = channel.from_options(replicator.parser().parse_args(["--index=i", f"--target={target}", "--tls"]))
with client.RankingClient(target, url, "m", timeout_s=60, access=caller) as connected:
    by_rest = connected.predict_rest({"x": np.float32([1.0])})["output"].tolist()
    print(connected.predict({"x": np.float32([1.0])})["y"].tolist(), by_rest)
"""


def test_server_that_a_known_authority_signed_needs_no_file_of_it(base, serving_at, tls, root):
    known = {name: str(tls / "authority.pem") for name in ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE")}
    with serving_at(base, name="m", ssl=access.read_ssl_config(str(tls / "ssl.config"))) as addresses:
        done = subprocess.run(
            [sys.executable, "-c", PUBLIC, addresses["grpc"], addresses["rest"].replace("http:", "https:")],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root), **known}, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.stdout == "[2.0] [2.0]\n", done.stderr[-2000:]
        with pytest.raises(client.PredictError, match="UNAVAILABLE"):  # no public authority signed it
            caller = channel.Access(tls=True)
            client.RankingClient(addresses["grpc"], timeout_s=60, access=caller).predict({"x": np.float32([1.0])})


def test_clients_must_have_a_certificate_where_it_is_asked(base, serving_at, tls):
    with serving_at(base, name="m", ssl=access.read_ssl_config(str(tls / "mutual.config"))) as addresses:
        files = {"cert_file": str(tls / "caller.pem"), "key_file": str(tls / "caller.key")}
        assert predict(addresses, channel.Access(ca_file=str(tls / "authority.pem"), **files)) == [2.0]
        stranger = channel.Access(ca_file=str(tls / "authority.pem"))
        with pytest.raises(client.PredictError, match="UNAVAILABLE"):
            predict(addresses, stranger)
        url = addresses["rest"].replace("http:", "https:") + "/v1/models/m"
        with pytest.raises(httpx.HTTPError, match=r"certificate required|reset|EOF|disconnected"):
            httpx.get(url, verify=stranger.context(), timeout=60)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no_pair", "of one pair"),
        ("locked", "of one pair"),
        ("no_ca", "`client_verify` needs `custom_ca`"),
        ("nonsense", "must be an SSLConfig as text proto"),
        ("missing", "No such file"),
    ],
)
def test_ssl_config_that_is_none_is_refused_at_the_start(capsys, tls, name, match):
    with pytest.raises(SystemExit, match="2"):
        command.main(["--model_base_path=/m", f"--ssl_config_file={tls / name}.config"])
    assert match in capsys.readouterr().err


def test_token_comes_from_a_file_or_the_environment(tmp_path, monkeypatch, capsys):
    (tmp_path / "token").write_text(TOKEN + "\n")
    (tmp_path / "short").write_text("hunter2")
    (tmp_path / "spaces").write_text("a token with spaces in it")
    assert channel.read_token(str(tmp_path / "token")) == TOKEN
    monkeypatch.delenv(channel.TOKEN_VARIABLE, raising=False)
    assert channel.read_token() == ""
    monkeypatch.setenv(channel.TOKEN_VARIABLE, TOKEN + "\n")  # as secrets made from files are
    assert channel.read_token() == TOKEN
    for name in ("short", "spaces"):
        with pytest.raises(ValueError, match="at least 16 printable ASCII characters"):
            channel.read_token(str(tmp_path / name))
        with pytest.raises(SystemExit, match="2"):
            command.main(["--model_base_path=/m", f"--token_file={tmp_path / name}"])
        with pytest.raises(SystemExit, match="2"):
            replicator.main(["--index=i", "--target=t", f"--token-file={tmp_path / name}"])
    with pytest.raises(SystemExit, match="2"):
        replicator.main([f"--index={tmp_path / 'items.sqlite'}", "--target=t", f"--ssl-ca-file={tmp_path / 'no.pem'}"])
    said = capsys.readouterr().err
    assert "no.pem" in said
    assert "openssl rand" in said and "hunter2" not in said


def test_secrets_are_not_printed(tls):
    options = Options(models=(), token=TOKEN, ssl=access.read_ssl_config(str(tls / "ssl.config")))
    assert TOKEN not in repr(options) and "PRIVATE KEY" not in repr(options)
    assert TOKEN not in repr(channel.Access(TOKEN))


@pytest.mark.parametrize(
    "target",
    ["server:8500", "10.1.2.3:8500", "dns:///server:8500", "ipv4:127.0.0.1:1,10.1.2.3:1", "localhost.example:8500",
     "dns://10.1.2.3/localhost:8500", "[2001:db8::1]:8500"],
)  # fmt: skip
def test_token_does_not_leave_this_machine_in_the_clear(target, tls, tmp_path, capsys):
    clear, here = channel.Access(TOKEN), "127.0.0.1:8500"
    for make in (Replica, client.RankingClient):
        with pytest.raises(ValueError, match="over TLS") as refused:
            make(target, model_name="m", access=clear)
        assert target in str(refused.value) and "--allow-insecure" in str(refused.value)
        assert TOKEN not in str(refused.value)
    with pytest.raises(ValueError, match=r"without TLS: http://server:8501\. Give"):
        client.RankingClient(here, "http://server:8501", access=channel.Access(TOKEN, str(tls / "authority.pem")))
    (tmp_path / "token").write_text(TOKEN)
    flags = [f"--index={tmp_path / 'items.sqlite'}", f"--target={target}", f"--token-file={tmp_path / 'token'}"]
    with pytest.raises(SystemExit, match="2"):
        replicator.main(flags)
    assert "A token must leave this machine over TLS" in capsys.readouterr().err
    for allowed in (channel.NO_ACCESS, channel.Access(TOKEN, allow_insecure=True),
                    channel.from_options(replicator.parser().parse_args([*flags, "--allow-insecure"]))):  # fmt: skip
        client.RankingClient(target, "http://server:8501", access=allowed).close()
    for encrypted in (channel.Access(TOKEN, str(tls / "authority.pem")), channel.Access(TOKEN, tls=True)):
        client.RankingClient(target, "https://server", access=encrypted).close()


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_request_and_token_do_not_go_where_a_server_redirects(code):
    seen = []

    class Redirects(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.path, self.headers.get(channel.AUTHORIZATION)))
            self.send_response(code)
            self.send_header("location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirects) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            with client.RankingClient("127.0.0.1:1", url, "m", timeout_s=60, access=channel.Access(TOKEN)) as connected:
                with pytest.raises(client.PredictError, match=str(code)):
                    connected.predict_rest({"x": np.float32([1.0])})
        finally:
            server.shutdown()
            thread.join(60)
    assert seen == [("/v1/models/m:predict", channel.SCHEME + TOKEN)]


@pytest.mark.parametrize("target", ["127.0.0.1:1", "localhost:1", "[::1]:1", "dns:///localhost:1", "unix:/run/s"])
def test_token_goes_in_the_clear_on_this_machine(target):
    client.RankingClient(target, "http://localhost:8501", access=channel.Access(TOKEN)).close()


def test_half_a_certificate_is_refused():
    with pytest.raises(ValueError, match="belong together"):
        channel.Access(ca_file="ca.pem", cert_file="own.pem")
    with pytest.raises(ValueError, match="to `ca_file` or `tls`"):
        channel.Access(cert_file="own.pem", key_file="own.key")
    channel.Access(cert_file="own.pem", key_file="own.key", tls=True)


def test_index_and_events_are_their_owners_alone(tmp_path):
    old = os.umask(0)
    try:
        with item_index.ItemIndex(tmp_path / "made" / "items.sqlite") as index:
            index.write("image", "v1", [1], np.ones([1, 2], np.int8), [0.5], [1])
            with event_log.SQLiteEventLog(tmp_path / "made" / "events.sqlite") as log:
                log.append([b"an event"])
                modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "made").iterdir()}
    finally:
        os.umask(old)
    assert {"items.sqlite", "items.sqlite-wal", "events.sqlite"} <= set(modes)
    assert set(modes.values()) == {0o600}
