"""Child processes that never outlive their parent, and the peak memory of all of them."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time
import typing

from tfmm import extras

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _die_with_parent() -> None:
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def terminate_as_interrupt() -> typing.Iterator[None]:
    """Lets SIGTERM end what is inside as Ctrl-C does, children first."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Child:
    """A Python module, or a program, that runs as a process of its own and in its own process group, with a log file.

    Args:
        name: how messages call it.
        arguments: what follows `program`.
        log_path: file that takes its standard output and error.
        variables: environment variables beside the parent's.
        ready_file: JSON file that the process writes once it is ready; removed before the start.
        shared: descriptors that the process gets, under the same numbers.
        program: what is run.
    """

    def __init__(
        self,
        name: str,
        arguments: typing.Sequence[str],
        log_path: pathlib.Path,
        variables: typing.Mapping[str, str] | None = None,
        ready_file: pathlib.Path | None = None,
        shared: typing.Sequence[int] = (),
        program: typing.Sequence[str] = (sys.executable, "-m"),
    ) -> None:
        self.name = name
        self._log_path = log_path
        self._ready_file = ready_file
        log_path.parent.mkdir(parents=True, exist_ok=True)
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)
        with log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*program, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **(variables or {})},
                start_new_session=True,
                pass_fds=shared,
                preexec_fn=_die_with_parent,
            )

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raises ChildProcessError with the end of its log if the process has failed."""
        if code := self.process.poll():
            raise self._ended(code)

    def require_running(self) -> None:
        """Raises ChildProcessError as `check` does, also where the process has ended without a failure."""
        if (code := self.process.poll()) is not None:
            raise self._ended(code)

    def _ended(self, code: int) -> ChildProcessError:
        tail = self._log_path.read_text(errors="replace").splitlines()[-15:]
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return ChildProcessError(f"{self.name} {how}. The end of {self._log_path}:\n" + "\n".join(tail))

    def wait_ready(self, timeout_s: float = 300.0) -> dict[str, typing.Any]:
        """Waits for the ready file and returns what it says.

        Raises:
            ChildProcessError: the process ended first.
            TimeoutError: it is not ready in time.
        """
        if self._ready_file is None:
            raise ValueError(f"{self.name} has no `ready_file` to wait for. Give one to its constructor.")
        ready_file = self._ready_file
        self.wait_until(lambda: ready_file.exists() and bool(ready_file.read_text()), timeout_s)
        return json.loads(ready_file.read_text())

    def wait_until(self, is_ready: typing.Callable[[], bool], timeout_s: float = 300.0) -> None:
        """Waits until a call says that the process is ready; raises as `wait_ready` does."""
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            self.check()
            if is_ready():
                return
            time.sleep(0.02)
        raise TimeoutError(f"{self.name} was not ready within {timeout_s:.0f} s. See {self._log_path}.")

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ends the whole process group: SIGTERM, and SIGKILL for what is left when its leader is gone or is late."""
        try:
            self._signal_group(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout_s)
        finally:  # also where a second Ctrl-C ends the wait
            self._signal_group(signal.SIGKILL)
            self.process.wait()

    def _signal_group(self, signal_number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal_number)


class PeakMemory:
    """Samples the memory of this process and all its descendants twice a second; `.gb` is the highest sum seen.

    Shared pages count once (PSS) where the system tells, else the sum is of resident sizes.
    """

    def __init__(self) -> None:
        self._psutil = extras.require("psutil", "pipeline")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.gb = 0.0

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        root = self._psutil.Process()
        while not self._stop.wait(0.5):
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    memory = process.memory_full_info()
                except self._psutil.Error:
                    continue
                total += getattr(memory, "pss", memory.rss)
            self.gb = max(self.gb, total / 1e9)
