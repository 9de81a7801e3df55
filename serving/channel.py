"""What a server and its callers say to each other besides requests, and the callers' command lines."""

from __future__ import annotations

import argparse
import typing
import urllib.parse

from tfmm_client.access import (
    AUTHORIZATION,
    NO_ACCESS,
    SCHEME,
    TIME_OUT,
    TOKEN_VARIABLE,
    Access,
    is_local,
    read_token,
)

__all__ = [
    "AUTHORIZATION", "CAUGHT_UP", "NO_ACCESS", "SCHEME", "TIME_OUT", "TOKEN_VARIABLE", "Access", "add_options",
    "from_options", "is_local", "read_token", "watermarks_text",
]  # fmt: skip

CAUGHT_UP = "tfmm-caught-up"  # the key of metadata by which the replicator says that a version has what it needs


def watermarks_text(watermarks: typing.Mapping[str, int]) -> str:
    """Returns how far a version's tables are, as metadata may have it.

    >>> watermarks_text({"text": 7, "image": 12})
    'image=12,text=7'
    """
    return ",".join(f"{urllib.parse.quote(modality)}={watermark}" for modality, watermark in sorted(watermarks.items()))


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
