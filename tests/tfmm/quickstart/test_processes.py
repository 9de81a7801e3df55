import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tfmm.quickstart import processes

WRITE_READY = (
    "import json, pathlib, time\npathlib.Path('ready.json').write_text(json.dumps({'port': 7}))\ntime.sleep(600)"
)
SPAWN = (
    "import subprocess, sys, time, pathlib\n"
    "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
    "pathlib.Path('ready.json').write_text(str(p.pid)); time.sleep(600)"
)


@pytest.fixture
def child_module(tmp_path, monkeypatch):
    """Makes `python -m child_module` run the given code, in tmp_path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(code):
        (tmp_path / "child_module.py").write_text(code)
        return ["child_module"]

    return write


def _seen(condition) -> bool:
    """Waits until it holds, for two minutes at most."""
    for _ in range(2400):
        if condition():
            return True
        time.sleep(0.05)
    return False


def _has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _is_gone(pid: int) -> bool:
    return _seen(lambda: _has_ended(pid))


def test_ready_file_is_returned_and_the_process_is_gone_afterwards(child_module, tmp_path):
    with processes.Child(
        "child", child_module(WRITE_READY), tmp_path / "log", ready_file=tmp_path / "ready.json"
    ) as child:
        assert child.wait_ready(120) == {"port": 7}
    assert _is_gone(child.process.pid)


def test_grandchildren_end_with_their_parent(child_module, tmp_path):
    with processes.Child("child", child_module(SPAWN), tmp_path / "log", ready_file=tmp_path / "ready.json") as child:
        grandchild = child.wait_ready(120)
    assert _is_gone(grandchild)


def test_failure_shows_the_end_of_the_log(child_module, tmp_path):
    with processes.Child(
        "The job",
        child_module("raise SystemExit('no such table')"),
        tmp_path / "log",
        ready_file=tmp_path / "ready.json",
    ) as child:
        with pytest.raises(ChildProcessError, match=r"(?s)The job ended with code 1.*no such table"):
            child.wait_ready(120)


def test_late_process_is_named(child_module, tmp_path):
    with processes.Child(
        "The job",
        child_module("import time; time.sleep(600)"),
        tmp_path / "log",
        ready_file=tmp_path / "ready.json",
    ) as child:
        with pytest.raises(TimeoutError, match="The job was not ready within 0 s"):
            child.wait_ready(0.1)


def test_process_that_ignores_sigterm_is_killed(child_module, tmp_path):
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WRITE_READY
    child = processes.Child("child", child_module(code), tmp_path / "log", ready_file=tmp_path / "ready.json")
    child.wait_ready(120)
    child.stop(timeout_s=0.3)
    assert child.process.returncode == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends orphans on Linux only")
def test_children_of_a_killed_parent_end(child_module, tmp_path, root):
    child_module(WRITE_READY)
    parent = tmp_path / "parent.py"
    parent.write_text(
        "import pathlib, sys\nfrom tfmm.quickstart import processes\n"
        "ready = pathlib.Path('ready.json')\n"
        "child = processes.Child('child', ['child_module'], pathlib.Path('log'), ready_file=ready)\n"
        "child.wait_ready(120)\nprint(child.process.pid, flush=True)\nchild.process.wait()\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}"}
    process = subprocess.Popen([sys.executable, parent], stdout=subprocess.PIPE, text=True, env=environment)
    pid = int(process.stdout.readline())
    process.kill()
    process.wait()
    process.stdout.close()
    assert _is_gone(pid)


def test_peak_memory_counts_children(child_module, tmp_path):
    code = "import json, pathlib, time; held = bytearray(600_000_000)\n" + WRITE_READY
    with processes.PeakMemory() as memory:
        assert _seen(lambda: memory.gb > 0)
        before = memory.gb
        with processes.Child(
            "child", child_module(code), tmp_path / "log", ready_file=tmp_path / "ready.json"
        ) as child:
            child.wait_ready(120)
            assert _seen(lambda: memory.gb - before > 0.3)  # the rest is what this process may give back meanwhile


def test_child_without_ready_file_cannot_be_waited_for(child_module, tmp_path):
    with processes.Child("child", child_module(json.dumps("")), tmp_path / "log") as child:
        with pytest.raises(ValueError, match="`ready_file`"):
            child.wait_ready()
