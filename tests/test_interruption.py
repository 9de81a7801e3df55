"""A run that is stopped again and again ends like one that was not."""

import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

RESULTS = ("data", "acc_at_1", "acc_at_5", "encoders", "id", "multimodal", "gate")
STOPS = 5
ENDS = {signal.SIGINT: (130,), signal.SIGKILL: (-signal.SIGKILL, 1)}  # 1 where one of its children was killed


def start(workdir):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "TF_CPP_MIN_LOG_LEVEL": "2"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    with (workdir / "terminal.log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tfmm.cli", "quickstart", "--preset", "small", "--workdir", str(workdir)],
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )


def left_over(workdir):
    return [p.pid for p in psutil.process_iter(["cmdline"]) if str(workdir) in " ".join(p.info["cmdline"] or [])]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nobody stopped, and how long it took."""
    workdir, begun = tmp_path_factory.mktemp("whole"), time.monotonic()
    assert start(workdir).wait() == 0, (workdir / "terminal.log").read_text()[-3000:]
    return results(workdir), time.monotonic() - begun


def results(workdir):
    summary = json.loads((workdir / "summary.json").read_text())
    return {name: summary[name] for name in RESULTS}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_five_stops_at_random_moments_change_nothing(tmp_path, whole, number):
    expected, duration = whole
    moments = random.Random(20261123)
    for _ in range(STOPS):
        process = start(tmp_path)
        try:
            process.wait(moments.uniform(0.04, 0.3) * duration)
        except subprocess.TimeoutExpired:
            family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            victim = family[0] if number == signal.SIGINT else moments.choice(family)
            victim.send_signal(number)
        assert process.wait(60) in (0, *ENDS[number]), (tmp_path / "terminal.log").read_text()[-3000:]
        deadline = time.monotonic() + 60  # the kernel ends the children of one that was killed
        while left := left_over(tmp_path):
            assert number == signal.SIGKILL and time.monotonic() < deadline, left
            time.sleep(0.1)
    assert start(tmp_path).wait() == 0, (tmp_path / "terminal.log").read_text()[-3000:]
    assert results(tmp_path) == expected
