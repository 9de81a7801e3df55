"""One writer in a folder: the second is told who is at work, and a killed one leaves no lock."""

import errno
import fcntl
import os
import signal
import subprocess
import sys

import pytest

from tfmm import folder_lock, presets
from tfmm.stages import run_file

HOLD = """
import sys
from tfmm import folder_lock
with folder_lock.hold(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def elsewhere(tmp_path, root):
    """A process that holds the lock of tmp_path."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    with process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_second_writer_is_told_in_one_line_who_is_at_work(elsewhere, tmp_path):
    said = rf"must have one writer at a time\. Received, at work there: `-c .*`, process {elsewhere.pid} of .* since 2"
    with pytest.raises(BlockingIOError, match=said) as refused, folder_lock.hold(tmp_path):
        pass
    assert "\n" not in str(refused.value)
    assert f"process {elsewhere.pid}" in folder_lock.holder(tmp_path)


def test_lock_of_a_killed_process_does_not_stay(elsewhere, tmp_path):
    elsewhere.send_signal(signal.SIGKILL)
    elsewhere.wait()
    assert folder_lock.holder(tmp_path) is None
    with folder_lock.hold(tmp_path):
        assert f"process {os.getpid()}" in folder_lock.holder(tmp_path)
    assert folder_lock.holder(tmp_path) is None


def test_folder_without_a_lock_has_no_holder_and_gets_no_file(tmp_path):
    assert folder_lock.holder(tmp_path) is None
    assert folder_lock.holder(tmp_path / "none") is None
    assert list(tmp_path.iterdir()) == []


def test_child_that_is_given_the_lock_shares_it_and_others_do_not(tmp_path, root, monkeypatch):
    def holds(**options):
        return subprocess.run(
            [sys.executable, "-c", HOLD, str(tmp_path)], input="", capture_output=True, text=True, cwd=root, **options
        )

    with folder_lock.hold(tmp_path) as lock:
        variables = {**os.environ, folder_lock.SHARED: str(lock)}
        assert holds(env=variables, pass_fds=[lock]).stdout == "held\n"
        assert "must have one writer" in holds(env=variables).stderr  # the number, without what it stands for
        assert folder_lock.holder(tmp_path) is not None  # the child that shared it has ended
    assert holds().returncode == 0


def test_two_commands_by_hand_do_not_write_into_one_folder(elsewhere, tmp_path):
    (tmp_path / run_file.FILE).write_text("{}")
    with pytest.raises(BlockingIOError, match="one writer"), run_file.beside(presets.small(), tmp_path):
        pytest.fail("both write")
    assert (tmp_path / run_file.FILE).read_text() == "{}"


@pytest.mark.parametrize("command", ["tfmm.cli quickstart --workdir {}", "tfx_pipeline.local_runner"])
def test_second_run_in_a_workdir_is_refused_in_one_line_before_it_writes(elsewhere, tmp_path, root, command):
    if command.startswith("tfx"):
        pytest.importorskip("tfx", reason="TFX is not installed")
    refused = subprocess.run(
        [sys.executable, "-m", *command.format(tmp_path).split()],
        capture_output=True, text=True, cwd=root, env={**os.environ, "TFMM_WORKDIR": str(tmp_path)},
    )  # fmt: skip
    assert refused.returncode == 1
    (line,) = [line for line in (refused.stdout + refused.stderr).splitlines() if "one writer" in line]
    assert f"process {elsewhere.pid}" in line
    assert "Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == [folder_lock.FILE]


def test_file_system_without_locks_is_said_in_one_line_and_nobody_is_at_work_there(tmp_path, monkeypatch):
    place = tmp_path / "run"

    def no_locks(descriptor, kind):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(BlockingIOError, match=r"file system that can lock files.*No locks available") as refused:
        with folder_lock.hold(place):
            raise AssertionError("the folder is not locked")
    assert "\n" not in str(refused.value)
    assert folder_lock.holder(place) is None
