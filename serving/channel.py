"""How clients and the replicator reach a server: over TLS where it has it, with the token that writes need."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import os
import pathlib
import ssl
import typing
import urllib.parse
import urllib.request

import grpc

AUTHORIZATION = "authorization"  # the key of metadata, and the header, that the token comes in
CAUGHT_UP = "tfmm-caught-up"  # the key of metadata by which the replicator says that a version has what it needs
TIME_OUT = "x-envoy-expected-rq-timeout-ms"  # REST's header for how long the caller waits; meshes set it by themselves
SCHEME = "Bearer "
TOKEN_VARIABLE = "TFMM_TOKEN"


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nowhere: no such server redirects, and request and token would go where they were not sent."""

    def redirect_request(self, *_: typing.Any) -> None:
        return None


def watermarks_text(watermarks: typing.Mapping[str, int]) -> str:
    """Returns how far a version's tables are, as metadata may have it.

    >>> watermarks_text({"text": 7, "image": 12})
    'image=12,text=7'
    """
    return ",".join(f"{urllib.parse.quote(modality)}={watermark}" for modality, watermark in sorted(watermarks.items()))


@dataclasses.dataclass(frozen=True)
class Access:
    """What a server asks of its callers.

    Args:
        token: for writes, `read_token`; "" where none is asked for.
        ca_file: PEM file of who signed the server's certificate; "" where the server has no TLS, or `tls` is said.
        cert_file: PEM file of the caller's own certificate, where the server wants one (`client_verify`).
        key_file: its key.
        allow_insecure: whether the token may leave this machine without TLS.
        tls: whether gRPC uses TLS; with a `ca_file` it does. Without one, who signed is looked up among the authorities
            that gRPC knows (its own list, or that of GRPC_DEFAULT_SSL_ROOTS_FILE_PATH), of REST among the system's.
    """

    token: str = dataclasses.field(default="", repr=False)
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    allow_insecure: bool = False
    tls: bool = False

    def __post_init__(self) -> None:
        if bool(self.cert_file) != bool(self.key_file) or (self.cert_file and not self._has_tls):
            raise ValueError(
                "`cert_file` and `key_file` belong together, and to `ca_file` or `tls`. Received: "
                f"{self.cert_file!r}, {self.key_file!r}, {self.ca_file!r}, {self.tls}."
            )

    @property
    def _has_tls(self) -> bool:
        return self.tls or bool(self.ca_file)

    def metadata(self) -> list[tuple[str, str]]:
        """Returns what each call says of its caller."""
        return [(AUTHORIZATION, SCHEME + self.token)] if self.token else []

    def context(self) -> ssl.SSLContext:
        """Returns what REST over https needs."""
        context = ssl.create_default_context(cafile=self.ca_file or None)
        if self.cert_file:
            context.load_cert_chain(self.cert_file, self.key_file)
        return context

    def verify(self, target: str, rest_url: str | None = None) -> None:
        """Raises ValueError where the token would leave this machine in the clear.

        Args:
            target: as gRPC takes it.
            rest_url: of REST; None where it is not called.
        """
        if not self.token or self.allow_insecure:
            return
        clear = [] if self._has_tls or _is_local_target(target) else [target]
        if rest_url is not None:
            url = urllib.parse.urlsplit(rest_url)
            clear += [] if url.scheme == "https" or is_local(url.hostname or "") else [rest_url]
        if clear:
            raise ValueError(
                f"A token must leave this machine over TLS. Received one, and without TLS: {', '.join(clear)}. Give "
                "`ca_file` (--ssl-ca-file), or `tls` (--tls) where a public authority signed, and, of REST, an https "
                "URL; or `allow_insecure` (--allow-insecure) where something else encrypts the way."
            )

    def open(self, target: str, options: typing.Sequence[tuple[str, typing.Any]] = ()) -> grpc.Channel:
        """Returns a channel to host:port, or another target of gRPC's.

        Raises:
            ValueError: as `verify`.
        """
        self.verify(target)
        if not self._has_tls:
            return grpc.insecure_channel(target, options)
        files = [self.ca_file, self.key_file, self.cert_file]
        contents = [pathlib.Path(path).read_bytes() if path else None for path in files]
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(*contents), options)


NO_ACCESS = Access()  # of a server on this machine


def is_local(host: str) -> bool:
    """Returns whether an address is reached from this machine alone.

    >>> [is_local(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.7", "server")]
    [True, True, True, False, False, False]
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_local_target(target: str) -> bool:
    """Returns whether a target of gRPC's surely stays on this machine.

    >>> [_is_local_target(target) for target in ("unix:/run/s", "dns:///localhost:1", "[::1]:1", "ipv4:10.0.0.7:1")]
    [True, True, True, False]
    """
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    for scheme in ("dns:///", "dns:", "ipv4:", "ipv6:"):
        target = target.removeprefix(scheme)
    hosts = [address.rpartition(":")[0] or address for address in target.split(",")]
    return all(is_local(host.removeprefix("[").removesuffix("]")) for host in hosts)


def read_token(path: str = "") -> str:
    """Returns the token in a file, or, where none is named, in the variable TFMM_TOKEN; "" where there is none.

    Raises:
        ValueError: it is shorter than 16 characters, or holds others than printable ASCII.
    """
    text = (pathlib.Path(path).read_text("utf-8") if path else os.environ.get(TOKEN_VARIABLE, "")).strip()
    if (path or text) and (len(text) < 16 or not (text.isascii() and text.isprintable() and " " not in text)):
        raise ValueError(
            f"A token must have at least 16 printable ASCII characters without spaces. Received: {len(text)} "
            f"characters in {path or TOKEN_VARIABLE}. `openssl rand -hex 32` makes one."
        )
    return text


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `Access` to a caller's command line."""
    parser.add_argument("--token-file", default="", help=f"file with the servers' token; else {TOKEN_VARIABLE} has it")
    parser.add_argument("--ssl-ca-file", default="", help="PEM of who signed the servers' certificates; they use TLS")
    parser.add_argument("--tls", action="store_true", help="servers use TLS; without --ssl-ca-file: publicly signed")
    parser.add_argument("--ssl-cert-file", default="", help="PEM of the own certificate, where servers want one")
    parser.add_argument("--ssl-key-file", default="", help="PEM of its key")
    parser.add_argument("--allow-insecure", action="store_true", help="let the token leave this machine without TLS")


def from_options(options: typing.Any) -> Access:
    """Returns what parsed options say.

    Raises:
        ValueError, OSError: as `read_token` and `Access`.
    """
    return Access(
        read_token(options.token_file),
        options.ssl_ca_file,
        options.ssl_cert_file,
        options.ssl_key_file,
        options.allow_insecure,
        options.tls,
    )
