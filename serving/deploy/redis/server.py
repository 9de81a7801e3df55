"""A Redis on this machine that keeps what it was told, also across kill -9."""

from __future__ import annotations

import pathlib

from serving.deploy import started

PROGRAM = "redis-server"


def command(port: int, folder: pathlib.Path, *options: str) -> list[str]:
    """Returns the command that is a Redis on 127.0.0.1, which syncs every write to its append-only file.

    Args:
        port: that it listens on.
        folder: which holds the file; it must be there.
        *options: of redis-server, which count over these.
    """
    settings = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    return [PROGRAM, "--bind", started.HOST, "--port", str(port), "--dir", str(folder), *settings, *options]
