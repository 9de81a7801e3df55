"""One writer at a time in a folder: a lock that says who holds it, and that no killed process leaves behind."""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import getpass
import json
import os
import pathlib
import platform
import shlex
import sys
import time
import typing

FILE = ".lock"  # in the folder; it stays there, and who holds it is up to the system
SHARED = "TFMM_LOCK"  # variable of a child process: the descriptor of a lock that its parent holds and shares
WAIT_S = 1.0  # for one that is held for a moment, as `holder` does, before the second writer is refused


class _CannotLock(BlockingIOError):
    """The file system refuses the lock itself."""


@contextlib.contextmanager
def hold(folder: str | os.PathLike[str]) -> typing.Iterator[int]:
    """Lets nobody else write into a folder, made where missing, while the `with` lasts.

    Yields:
        The lock's descriptor. A child process that is given it (`pass_fds`), and the variable `SHARED` with its number,
        may take the lock of its parent again.
    Raises:
        BlockingIOError: another process holds it, or the file system knows no locks; one line says which.
    """
    path = pathlib.Path(folder) / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    shared = _shared(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644) if shared is None else shared
    try:
        if shared is None:
            deadline = time.monotonic() + WAIT_S
            while not _take(descriptor, fcntl.LOCK_EX):
                if time.monotonic() > deadline:
                    raise BlockingIOError(
                        f"{path.parent} must have one writer at a time. Received, at work there: {_read(descriptor)}. "
                        "Wait for it to end, or name another folder."
                    )
                time.sleep(0.05)
            _write(descriptor)
        yield descriptor
    finally:
        if shared is None:
            os.close(descriptor)


def holder(folder: str | os.PathLike[str]) -> str | None:
    """Returns who writes into a folder at this moment, in words; None: nobody, as where nobody can lock."""
    try:
        descriptor = os.open(pathlib.Path(folder) / FILE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return None if _take(descriptor, fcntl.LOCK_SH) else _read(descriptor)
    except _CannotLock:
        return None
    finally:
        os.close(descriptor)


def _take(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:  # as network file systems without a lock service answer
        raise _CannotLock(
            f"The folder must lie on a file system that can lock files, so that it has one writer at a time. Received: "
            f"{error.strerror} ({FILE}). Name a folder on a local disk, or mount it with locks."
        ) from error
    return True


def _shared(path: pathlib.Path) -> int | None:
    """Returns the descriptor of this lock that the parent process gave us, if it did."""
    number = os.environ.get(SHARED, "")
    if not number.isdigit() or not path.exists():
        return None
    try:
        given = os.fstat(int(number))
    except OSError:  # a variable of a parent that shared nothing with us
        return None
    return int(number) if os.path.samestat(given, path.stat()) else None


def _write(descriptor: int) -> None:
    """Writes down who we are, for whoever comes second."""
    facts = {
        "command": shlex.join([pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]),
        "pid": os.getpid(),
        "user": _user(),
        "host": platform.node(),
        "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(facts).encode(), 0)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number that has no name
        return str(os.getuid())


def _read(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 1 << 16, 0))
        return "`{command}`, process {pid} of {user} on {host}, since {since}".format(**facts)
    except (ValueError, KeyError):
        return "a process that has not said who it is"
