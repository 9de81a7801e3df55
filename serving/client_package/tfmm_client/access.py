"""How a server is reached: over TLS where it has it, with the token that writes need."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import pathlib
import ssl
import typing
import urllib.parse

import grpc

AUTHORIZATION = "authorization"  # the key of metadata, and the header, that the token comes in
TIME_OUT = "x-envoy-expected-rq-timeout-ms"  # REST's header for how long the caller waits; meshes set it by themselves
SCHEME = "Bearer "
TOKEN_VARIABLE = "TFMM_TOKEN"


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

    def verify(self, target: str | None, rest_url: str | None = None) -> None:
        """Raises ValueError where the token would leave this machine in the clear.

        Args:
            target: as gRPC takes it; None where it is not called.
            rest_url: of REST; None alike.
        """
        if not self.token or self.allow_insecure:
            return
        clear = [] if target is None or self._has_tls or _is_local_target(target) else [target]
        if rest_url is not None:
            url = urllib.parse.urlsplit(rest_url)
            clear += [] if url.scheme == "https" or is_local(url.hostname or "") else [rest_url]
        if clear:
            raise ValueError(
                f"A token must leave this machine over TLS. Received one, and without TLS: {', '.join(clear)}. Give "
                "`ca_file` (--ssl-ca-file), or `tls` (--tls) where a public authority signed, and, of REST, an https "
                "URL; or `allow_insecure` (--allow-insecure) where something else encrypts the way."
            )

    def open(
        self, target: str, options: typing.Sequence[tuple[str, typing.Any]] = (), api: typing.Any = grpc
    ) -> typing.Any:
        """Returns a channel to host:port, or another target of gRPC's.

        Args:
            target: the address.
            options: of the channel.
            api: `grpc`, or `grpc.aio` for a channel of asyncio's.
        Raises:
            ValueError: as `verify`.
            OSError: a file of certificates cannot be read.
        """
        self.verify(target)
        if _is_local_target(target):  # else a proxy that the environment names would have the token, in the clear
            options = [*options, ("grpc.enable_http_proxy", 0)]
        if not self._has_tls:
            return api.insecure_channel(target, options)
        files = [self.ca_file, self.key_file, self.cert_file]
        contents = [pathlib.Path(path).read_bytes() if path else None for path in files]
        return api.secure_channel(target, grpc.ssl_channel_credentials(*contents), options)


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
