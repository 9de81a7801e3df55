"""Which version of a model a request asks for: by number, by a label of the server's config, or the newest."""

from __future__ import annotations

import typing
import urllib.parse

Version = int | str | None  # a number, a label such as "stable", or the newest that is in service


def choose(spec: typing.Any, version: Version) -> None:
    """Puts a version into a request's ModelSpec."""
    if isinstance(version, str):
        spec.version_label = version
    elif version is not None:
        spec.version.value = version


def path(version: Version) -> str:
    """Returns what stands for a version in a path of REST.

    >>> path(3), path("stable"), path(None)
    ('/versions/3', '/labels/stable', '')
    """
    if version is None:
        return ""
    return f"/labels/{urllib.parse.quote(version, safe='')}" if isinstance(version, str) else f"/versions/{version}"
