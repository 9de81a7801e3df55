"""What a script started is told by its start, not by an id that another process may have by now."""

import json
import os
import pathlib
import platform
import select
import signal
import socket
import subprocess
import sys
import time

import pytest

from serving.deploy import started
from serving.deploy.flink import cluster
from serving.deploy.kafka import broker

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def stranger():
    """A process that nobody here wrote down."""
    process = subprocess.Popen(SLEEP)
    yield process
    process.kill()
    process.wait()


def test_processes_that_were_written_down_are_ended_by_another_object(tmp_path):
    path = tmp_path / "processes.json"
    ours = started.Processes(path)
    for name in ("first", "second"):
        ours.start(name, SLEEP, tmp_path / f"{name}.log", tmp_path)
    ids = ours.running
    assert list(ids) == ["first", "second"] and started.Processes(path).running == ids
    ours.signal("first", signal.SIGKILL)
    os.waitid(os.P_PID, ids["first"], os.WEXITED | os.WNOWAIT)
    assert ours.running == {"second": ids["second"]}
    started.Processes(path).end(within_s=60.0)
    assert not path.exists() and ours.running == {} and started.started_at(ids["second"]) is None
    ours.end(within_s=60.0)  # its children are waited for


@pytest.mark.parametrize("start", [1, None])
def test_process_that_has_the_id_of_one_that_ended_is_left_alone(tmp_path, stranger, start):
    kept = stranger.pid if start is None else [stranger.pid, start]  # bare ids are those of earlier versions
    for script, file, name in ((cluster.Cluster, "processes.json", cluster.JOB_MANAGER),
                               (broker.Broker, "process.json", broker.NAME)):  # fmt: skip
        one = script(tmp_path)
        (tmp_path / file).write_text(json.dumps({name: kept}))
        one.kill(name) if script is cluster.Cluster else one.kill()
        one.down()
        assert stranger.poll() is None and not (tmp_path / file).exists()


FIRST_THREAD_ENDS = """
import ctypes, socket, threading, time
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=time.sleep, args=(600,)).start()
print(server.getsockname()[1], flush=True)
ctypes.CDLL(None).syscall(60, 0)  # exit, of this thread alone
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the number of a system call differs")
def test_process_runs_until_its_last_thread_has_ended(tmp_path):
    ours = started.Processes(tmp_path / "processes.json")
    ours.start("one", [sys.executable, "-c", FIRST_THREAD_ENDS], tmp_path / "log", tmp_path)
    stat, end = pathlib.Path(f"/proc/{ours.ids['one']}/stat"), time.monotonic() + 60
    while ") Z" not in stat.read_text():
        assert time.monotonic() < end
        time.sleep(0.01)
    port = int((tmp_path / "log").read_text())
    assert started.answers(port) and ours.running == ours.ids
    ours.end(within_s=0.0)
    assert not started.answers(port)


def test_free_ports_are_none_that_the_system_gives_to_connections():
    """One of those may be taken before a server that is started, or started anew, listens."""
    given = pathlib.Path("/proc/sys/net/ipv4/ip_local_port_range")
    if not given.exists() or int(given.read_text().split()[0]) < 30_000:
        pytest.skip("the system leaves few others")
    found = started.free_ports(10)
    assert len(set(found)) == 10 and max(found) < int(given.read_text().split()[0])
    with socket.create_server((started.HOST, found[0])):  # nothing has it
        assert started.answers(found[0])


def test_what_a_folder_lacks_is_made_by_one_process_at_a_time(tmp_path):
    """Of two that fetch jars at once, one would start with what the other has written half."""
    code = "import sys, pathlib; from serving.deploy import started\n"
    code += "with started.alone(pathlib.Path(sys.argv[1])):\n    print('alone', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / "made" / "lib")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == b"alone\n"
        with subprocess.Popen(command, **pipes) as second:
            time.sleep(1.0)
            assert not select.select([second.stdout], [], [], 0)[0]
            first.communicate()
            assert second.stdout.readline() == b"alone\n"
            second.communicate()


def test_killed_writer_leaves_the_file_whole(tmp_path, monkeypatch):
    path = tmp_path / "processes.json"
    ours = started.Processes(path)
    ours.start("first", SLEEP, tmp_path / "log", tmp_path)
    before = path.read_text()
    with monkeypatch.context() as killed:
        killed.setattr(pathlib.Path, "replace", lambda *_: (_ for _ in ()).throw(InterruptedError("killed here")))
        with pytest.raises(InterruptedError, match="killed here"):
            ours.start("second", SLEEP, tmp_path / "log", tmp_path)
    assert path.read_text() == before
    ours._children[-1].kill()
    ours.end(within_s=60.0)
