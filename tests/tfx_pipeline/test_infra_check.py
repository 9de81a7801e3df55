"""The server that the infra check asks: what it said is in the message, and it ends with who started it."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfx_pipeline import infra_check


def write_server(folder, words):
    server = folder / infra_check.SERVER
    server.write_text(f"#!/bin/sh\n{words}\n")
    server.chmod(0o755)
    return server


def test_last_lines_of_a_server_are_in_the_message_since_its_log_goes_with_the_node(tmp_path):
    server = write_server(tmp_path, "seq 1 50 | sed 's/^/line /'\nexit 3")
    said = infra_check.fault(tmp_path, str(server), tmp_path / "log")
    assert said is not None and str(tmp_path / "log") not in said
    first, title, *lines = said.splitlines()
    assert first == "it cannot be loaded: the server ended with code 3."
    assert title == "The server's last lines:"
    assert [line.strip() for line in lines] == [f"line {number}" for number in range(46, 51)]


ASK = """
import pathlib, sys
from tfx_pipeline import infra_check
infra_check.fault(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))
"""


def test_server_ends_with_a_node_that_is_killed(tmp_path, root):
    server = write_server(tmp_path, f"echo $$ > {tmp_path}/pid\nexec sleep 3600")
    node = subprocess.Popen(
        [sys.executable, "-c", ASK, str(tmp_path), str(server), str(tmp_path / "log")],
        env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    pid = wait_for(lambda: (tmp_path / "pid").read_text().strip() if (tmp_path / "pid").exists() else "")
    node.send_signal(signal.SIGKILL)
    node.wait()
    wait_for(lambda: is_gone(pid))


def is_gone(pid):
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # it went meanwhile
        return True


def wait_for(condition):
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError("not within five minutes")
