"""Folders by names that no library takes for a pattern: Beam's sinks and TensorFlow's loader look by one."""

from __future__ import annotations

import contextlib
import os
import pathlib
import tempfile
import typing

PATTERN = "*?[\\"  # characters that mean something in one


def is_pattern(path: str | os.PathLike[str]) -> bool:
    """Returns whether a library could take a path for a pattern.

    >>> is_pattern("run[v2]"), is_pattern("run-v2")
    (True, False)
    """
    return bool(set(os.fspath(path)) & set(PATTERN))


@contextlib.contextmanager
def plain(folder: str | os.PathLike[str]) -> typing.Iterator[str]:
    """Gives a path of a folder that is there without any of `PATTERN`: its own, or that of a link to it.

    The link lasts as long as the context; it serves on this machine alone.
    """
    path = pathlib.Path(folder)
    if not is_pattern(path):
        yield str(path)
        return
    with tempfile.TemporaryDirectory() as links:
        link = pathlib.Path(links) / "folder"
        link.symlink_to(path.resolve(), target_is_directory=True)
        yield str(link)
