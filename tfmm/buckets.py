"""Folders of a bucket, or of any file system that TensorFlow knows: `gs://bucket/tables`, `ram://tables`.

Data folders and the examples that Beam writes may lie there. What is locked, mapped into memory or a database must lie
in a folder of this machine, and says so before any work.
"""

from __future__ import annotations

import contextlib
import io
import os
import typing

_Path = str | os.PathLike[str]


def is_url(path: _Path) -> bool:
    """Returns whether a path names a file system.

    >>> is_url("gs://bucket/tables"), is_url("tables")
    (True, False)
    """
    return "://" in os.fspath(path)


def require_local(path: _Path, what: str) -> None:
    """Raises ValueError where a path that must be a folder of this machine is a URL.

    Args:
        path: as it was given.
        what: it is, as a message begins.
    """
    if is_url(path):
        raise ValueError(
            f"{what} must lie in a folder of this machine: it is locked, mapped into memory or holds a database. "
            f"Received: {os.fspath(path)}. Mount the bucket as a folder (gcsfuse, mountpoint-s3), or name a local one "
            "and copy what it holds."
        )


@contextlib.contextmanager
def told(url: str) -> typing.Iterator[None]:
    """Turns what TensorFlow raises about a URL into OSErrors of one line."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(f"{url} is not there.") from error
    except (tf.errors.PermissionDeniedError, tf.errors.UnauthenticatedError) as error:
        raise PermissionError(f"{url} may not be used with this account. Received: {_line(error)}.") from error
    except tf.errors.OpError as error:
        raise OSError(f"{url} cannot be used. Received: {_line(error)}.") from error


def walk(url: str) -> list[tuple[str, list[str], list[str]]]:
    """Returns the folders under a URL, each with the names of its folders and files; none where it is not there."""
    import tensorflow as tf

    with told(url):
        if not tf.io.gfile.isdir(url):
            return []
        found = list(tf.io.gfile.walk(url))
    return [(top.rstrip("/"), sorted(n.rstrip("/") for n in folders), sorted(files)) for top, folders, files in found]


def names(url: str) -> tuple[list[str], list[str]]:
    """Returns the names of the folders and of the files in a folder; none where it is not there."""
    import tensorflow as tf

    with told(url):
        _, folders, files = next(tf.io.gfile.walk(url), (url, [], []))
    return sorted(name.rstrip("/") for name in folders), sorted(files)


def is_file(url: str) -> bool:
    import tensorflow as tf

    with told(url):
        return tf.io.gfile.exists(url) and not tf.io.gfile.isdir(url)


def stat(path: str) -> tuple[int, int]:
    """Returns the bytes of a file and its time of change in nanoseconds, wherever it lies."""
    if not is_url(path):
        local = os.stat(path)
        return local.st_size, local.st_mtime_ns
    import tensorflow as tf

    with told(path):
        found = tf.io.gfile.stat(path)
    return found.length, found.mtime_nsec


def relative(path: str, folder: _Path) -> str:
    """Returns the name of a file in a folder.

    >>> relative("gs://bucket/tables/items.parquet", "gs://bucket/tables"), relative("/a/b/c", "/a")
    ('items.parquet', 'b/c')
    """
    if is_url(path):
        return path.removeprefix(os.fspath(folder).rstrip("/") + "/")
    return os.path.relpath(path, folder)


@contextlib.contextmanager
def opened(path: str) -> typing.Iterator[typing.Any]:
    """Gives what Arrow reads a file by: a path of this machine as it is, a file behind a URL as one that is open."""
    if not is_url(path):
        yield path
        return
    with contextlib.closing(io.BufferedReader(_Raw(path), 1 << 20)) as file:
        yield file


class _Raw(io.RawIOBase):
    """A file behind a URL, as Python's own readers want it."""

    def __init__(self, url: str):
        import tensorflow as tf

        self._url = url
        with told(url):
            self._size = tf.io.gfile.stat(url).length
            self._file = tf.io.gfile.GFile(url, "rb")
        self._place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._size}[whence]
        self._place = start + offset
        return self._place

    def readinto(self, buffer: typing.Any) -> int:
        count = min(len(buffer), max(0, self._size - self._place))
        if not count:
            return 0
        with told(self._url):
            self._file.seek(self._place)
            data = self._file.read(count)
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def _line(error: Exception) -> str:
    return (str(getattr(error, "message", "")) or str(error)).strip().splitlines()[0].rstrip(".")
