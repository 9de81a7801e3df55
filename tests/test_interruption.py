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


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_five_stops_at_random_moments_change_nothing(tmp_path):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    whole.mkdir()
    stopped.mkdir()
    begun = time.monotonic()
    assert start(whole).wait() == 0, (whole / "terminal.log").read_text()[-3000:]
    duration = time.monotonic() - begun

    moments = random.Random(20261123)
    for _ in range(STOPS):
        process = start(stopped)
        try:
            process.wait(moments.uniform(0.04, 0.3) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
        assert process.wait(60) in (0, 130), (stopped / "terminal.log").read_text()[-3000:]
        assert left_over(stopped) == []
    assert start(stopped).wait() == 0, (stopped / "terminal.log").read_text()[-3000:]

    expected, found = (json.loads((folder / "summary.json").read_text()) for folder in (whole, stopped))
    assert {name: found[name] for name in RESULTS} == {name: expected[name] for name in RESULTS}
