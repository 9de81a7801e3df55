"""A newcomer's way, to the letter: each file and command of docs/first_score.md, in its order, in an empty folder."""

import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest

from serving.deploy import started

pytest.importorskip("tfx", reason="TFX is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[1]
SERVERS = ("tfmm serve", "tfmm stream")  # of which the guide says: in a terminal of its own


def blocks():
    """The guide's blocks below its installation, as (language, text)."""
    guide = (ROOT / "docs" / "first_score.md").read_text("utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```", guide[guide.index("## Your logs as tables") :], re.M | re.S)


def await_ready(log, process):
    deadline = time.monotonic() + 240  # a loaded machine imports TensorFlow in as much as a minute
    while " ready\n" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.5)


class Terminals:
    """Runs the guide's commands; a server replaces the one of its kind before it."""

    def __init__(self, folder, environment):
        self.folder, self.environment, self.running = folder, environment, {}

    def give(self, commands):
        lines = commands.replace("\\\n", " ").strip()
        if not lines.startswith(SERVERS):
            here = {"cwd": self.folder, "env": self.environment, "capture_output": True, "text": True}
            done = subprocess.run(["bash", "-ec", lines], **here, check=False)
            assert done.returncode == 0, (lines, done.stdout[-3000:], done.stderr[-3000:])
            return done.stdout
        kind = shlex.split(lines)[1]
        self.end(kind)
        with open(self.folder / f"{kind}.log", "w") as log:
            command = [sys.executable, "-m", "tfmm.cli", *shlex.split(lines)[1:]]
            here = {"cwd": self.folder, "env": self.environment, "stdout": log, "stderr": log}
            self.running[kind] = subprocess.Popen(command, **here)
        if kind == "serve":
            await_ready(self.folder / "serve.log", self.running[kind])
        return ""

    def end(self, kind):
        if process := self.running.pop(kind, None):
            process.send_signal(signal.SIGINT)
            process.wait(60)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_guide_leads_from_logs_to_a_score_that_an_event_changes(tmp_path):
    path = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    ports = dict(zip(("8500", "8501"), map(str, started.free_ports(2)), strict=True))
    terminals, said = Terminals(tmp_path, environment), []
    try:
        for language, text in blocks():
            for port, free in ports.items():
                text = text.replace(port, free)
            if language == "python":
                (tmp_path / re.match(r"# (\w+\.py)\n", text)[1]).write_text(text)
            else:
                said.append(terminals.give(text))
    finally:
        for kind in list(terminals.running):
            terminals.end(kind)
    assert any("No fault found." in text for text in said)
    (scored,) = [text for text in said if '"score"' in text]  # over REST
    assert scored.count("0.") >= 3
    before, after = re.findall(r"0\.\d{4}", said[-1])
    assert before != after
