"""The benchmark of looked-up vectors, in short: both clients give one score, and all sides are timed."""

import json
import shutil
import subprocess
import sys

import pytest

from serving.deploy.redis import server as redis


@pytest.mark.slow  # two servers of the default run's size load and warm up
@pytest.mark.skipif(shutil.which(redis.PROGRAM) is None, reason=f"{redis.PROGRAM} is not on this machine")
def test_looked_up_vectors_score_as_those_in_the_graph_and_are_timed_beside_them(root):
    words = ["benchmarks/looked_up_vectors.py", "--candidates", "20", "--repeats", "3", "--without-record"]
    done = subprocess.run([sys.executable, *words], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found = json.loads(done.stdout)["20 candidates"]
    assert all(0 < one["p50"] <= one["p99"] and one["n"] == 3 for one in found["ms"].values()) and len(found["ms"]) == 3
