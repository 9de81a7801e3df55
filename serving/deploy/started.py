"""Processes that a script of these folders starts on this machine and writes down, for another run of it to end.

An id alone is not trusted: once a process has ended the system gives its id to another one, whose start differs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time
import typing

HOST = "127.0.0.1"
_LOWEST_PORT, _CONNECTIONS = 10_000, pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")


class Processes:
    """Processes by name, as a file has them: id, and start in ticks since the machine's.

    Args:
        path: of the file, JSON.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._children: list[subprocess.Popen] = []  # of this process

    @property
    def ids(self) -> dict[str, int]:
        """The ids of all that were started, by name."""
        return {name: pid for name, (pid, _) in self._written().items()}

    @property
    def running(self) -> dict[str, int]:
        """The ids of those that are at work."""
        return {name: pid for name, (pid, start) in self._written().items() if is_running(pid, start)}

    def forget(self) -> None:
        """Forgets what was written down, as of processes that have ended."""
        self._path.unlink(missing_ok=True)

    def start(self, name: str, command: typing.Sequence[str], log_path: pathlib.Path, folder: pathlib.Path) -> None:
        """Starts a process that outlives this one.

        Args:
            name: of the process, in the place of one that ended.
            command: what it runs.
            log_path: gets what it says.
            folder: in which it works.
        """
        with log_path.open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        self._children.append(process)
        start = started_at(process.pid)
        self._write({**self._written(), name: (process.pid, -1 if start is None else start)})

    def signal(self, name: str, number: int) -> None:
        """Sends a signal to a process, if it still is the one that was started."""
        if name in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.ids[name], number)

    def end(self, within_s: float, first: typing.Collection[str] = ()) -> None:
        """Ends the processes and waits for it; kills those that are still there after some seconds.

        Args:
            within_s: seconds.
            first: names of those that are told before the others.
        """
        for name in sorted(self.running, key=lambda name: name not in first):
            self.signal(name, signal.SIGTERM)
        deadline = time.monotonic() + within_s
        while still := self.running:
            if time.monotonic() > deadline:
                for name in still:
                    self.signal(name, signal.SIGKILL)
            time.sleep(0.1)
        while self._children:
            self._children.pop().wait()
        self._path.unlink(missing_ok=True)

    def _written(self) -> dict[str, tuple[int, int]]:
        found = json.loads(self._path.read_text()) if self._path.exists() else {}
        return {name: (one[0], one[1]) for name, one in found.items() if isinstance(one, list)}  # once a bare id

    def _write(self, processes: typing.Mapping[str, tuple[int, int]]) -> None:
        aside = self._path.with_suffix(".part")
        aside.write_text(json.dumps(processes))
        aside.replace(self._path)


def started_at(pid: int) -> int | None:
    """Returns when a process began, in ticks since the machine's start; None: it has ended, with all of its threads.

    The first thread of a process that was killed may be gone a moment before those that still hold its ports.
    """
    try:
        state, *rest = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        has_ended = state == "Z" and len(os.listdir(f"/proc/{pid}/task")) == 1
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if has_ended else int(rest[18])  # field 22, of which the state is the third


def is_running(pid: int, start: int) -> bool:
    """Returns whether a process is at work that began then; one that has ended and was not waited for is not."""
    return started_at(pid) == start


def free_ports(count: int) -> list[int]:
    """Returns ports of this machine on which nothing listens.

    They lie below those that the system gives to connections, where it leaves some: any process that connects to
    another could be given one of these before a server that is started, or started anew, listens on it.
    """
    below = int(_CONNECTIONS.read_text().split()[0]) if _CONNECTIONS.exists() else 0
    drawn: typing.Sequence[int] = range(_LOWEST_PORT, below)
    if len(drawn) >= 1000 * count:  # else the system draws
        drawn = random.SystemRandom().sample(drawn, 100 * count)  # whatever seed a caller has set
    else:
        drawn = [0] * count
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in drawn:
            one = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):  # it is taken
                one.bind((HOST, port))
                found.append(one.getsockname()[1])
            if len(found) == count:
                return found
    raise OSError(f"{count} ports of {HOST} must be free, and {len(found)} are.")


def answers(port: int) -> bool:
    """Returns whether something listens at a port of this machine."""
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex((HOST, port)) == 0


def require_tools(what: str, *tools: str) -> None:
    """Raises a RuntimeError where a tool is not on the PATH that `what` needs."""
    if lacking := [tool for tool in tools if shutil.which(tool) is None]:
        raise RuntimeError(
            f"{what} needs a JDK, of Java 17 say, and Maven. Not on PATH: {', '.join(lacking)}. "
            "apt-get install default-jdk-headless maven"
        )


@contextlib.contextmanager
def alone(folder: pathlib.Path) -> typing.Iterator[None]:
    """Waits until no other process makes a folder ready, and keeps others out while the block runs."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def fetch_jars(pom: pathlib.Path, folder: pathlib.Path) -> None:
    """Has Maven put what a pom names into a folder.

    Raises:
        RuntimeError: it could not.
    """
    command = ["mvn", "-q", "-B", "-f", str(pom), "dependency:copy-dependencies", "-DincludeScope=runtime"]
    prepare(*command, f"-DoutputDirectory={folder}")


def prepare(*command: str | pathlib.Path) -> None:
    """Runs a command that prepares jars; raises a RuntimeError with what it said where it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines()[:5]
        raise RuntimeError("\n".join([f"{command[0]} could not prepare the jars:", *said]))
