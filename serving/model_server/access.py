"""Who may do what: TLS off this machine, and a token for what changes the models or their index."""

from __future__ import annotations

import dataclasses
import hmac
import pathlib
import ssl
import tempfile

import grpc
from google.protobuf import text_format

from serving import channel
from serving.model_server import text_protos
from serving.model_server.errors import PERMISSION_DENIED, UNAUTHENTICATED, ServingError

_ADVICE = "give --ssl_config_file, or --allow_insecure where something else encrypts and guards it"
_SSL_FIELDS = {"server_key": "STRING", "server_cert": "STRING", "custom_ca": "STRING", "client_verify": "BOOL"}


@dataclasses.dataclass(frozen=True)
class SSLConfig:
    """tensorflow_model_server's SSLConfig; every value is PEM."""

    server_key: str = dataclasses.field(repr=False)
    server_cert: str
    custom_ca: str = ""  # who signed the certificates of clients
    client_verify: bool = False  # whether clients must have one

    def grpc_credentials(self) -> grpc.ServerCredentials:
        return grpc.ssl_server_credentials(
            [(self.server_key.encode(), self.server_cert.encode())],
            self.custom_ca.encode() or None,
            self.client_verify,
        )

    def context(self) -> ssl.SSLContext:
        """Returns the same for REST.

        Raises:
            ssl.SSLError: key and certificate do not fit, or are none.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        with tempfile.TemporaryDirectory() as folder:  # the one way to give it a key; nobody else may enter
            files = [pathlib.Path(folder) / name for name in ("cert", "key")]
            for file, content in zip(files, (self.server_cert, self.server_key)):
                file.write_text(content)
            context.load_cert_chain(files[0], files[1], password="")  # a locked key is refused, not asked for
        if self.custom_ca:
            context.load_verify_locations(cadata=self.custom_ca)
        if self.client_verify:
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def read_ssl_config(path: str) -> SSLConfig:
    """Reads a --ssl_config_file: an SSLConfig as text proto.

    Raises:
        ValueError: it is none, or key and certificate are no pair.
        OSError: it cannot be read.
    """
    message = text_protos.new("SSLConfig", _SSL_FIELDS)
    try:
        text_format.Parse(pathlib.Path(path).read_text("utf-8"), message)
    except text_format.ParseError as error:
        raise ValueError(f"{path} must be an SSLConfig as text proto: {error}") from error
    found = SSLConfig(message.server_key, message.server_cert, message.custom_ca, message.client_verify)
    try:
        found.context()
    except (ssl.SSLError, ValueError) as error:
        raise ValueError(
            f"{path} must have `server_key` and `server_cert`, in PEM, of one pair, and a `custom_ca` that is one if "
            f"any. Received: {error}."
        ) from error
    if found.client_verify and not found.custom_ca:
        raise ValueError(f"{path}: `client_verify` needs `custom_ca`, who signed the clients' certificates.")
    return found


def faults(host: str, has_ssl: bool, allow_insecure: bool) -> list[str]:
    """Returns what keeps a server from listening at an address."""
    if channel.is_local(host) or has_ssl or allow_insecure:
        return []
    return [f"--host={host} faces a network: {_ADVICE}."]


class Guard:
    """Lets writes pass: upserts of the item index, and reloads of the config.

    Args:
        token: that they must bring; "" where none is set.
        is_local: whether the server is reached from this machine alone; then nothing is asked of them without a token.
    """

    def __init__(self, token: str = "", *, is_local: bool = True):
        self._token, self._is_local = token.encode(), is_local

    def refusal(self, authorization: str | bytes | None) -> ServingError | None:
        """Returns why a caller may not write; None where it may.

        Args:
            authorization: what it says under `channel.AUTHORIZATION`.
        """
        if not self._token:
            if self._is_local:
                return None
            return ServingError(
                PERMISSION_DENIED,
                "A server that faces a network takes upserts and reloads with a token alone, and has none: start it "
                f"with --token_file or {channel.TOKEN_VARIABLE}.",
            )
        given = authorization or b""
        given = given.encode("utf-8", "replace") if isinstance(given, str) else given
        if hmac.compare_digest(given, channel.SCHEME.encode() + self._token):
            return None
        received = "another token" if given else "none"
        return ServingError(
            UNAUTHENTICATED,
            f"Upserts and reloads need the server's token, as `{channel.AUTHORIZATION}: {channel.SCHEME}TOKEN`. "
            f"Received: {received}.",
        )

    def verify(self, authorization: str | bytes | None) -> None:
        """Raises ServingError where a caller may not write."""
        if (refusal := self.refusal(authorization)) is not None:
            raise refusal
