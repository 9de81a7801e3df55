"""A training that is killed again and again, at any moment, ends with the weights of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys

import h5py
import numpy as np
import pytest

# It ends itself, so that how far it came does not depend on when another process has its turn. By default SIGALRM ends
# a process as SIGKILL does: nothing of it runs on.
TRAIN = """
import itertools, signal, sys
from tfmm.config import CTRConfig
from tfmm.ctr import train
from tfmm.features import FeatureSet
from tfmm.training import loop

loop.REPORT_INTERVAL_S = float("inf")  # a line after each segment, and none within one
numbers = itertools.count(1)

def say(stage, done, total, note="", **metrics):
    print(done, total, note, flush=True)
    if next(numbers) == int(line):
        signal.setitimer(signal.ITIMER_REAL, float(later_s))

shop, output, line, later_s = sys.argv[1:]
train.train(
    CTRConfig(units=(8,), attention_units=(8,), epochs=3, batch_size=32, block_rows=128, segments=12),
    f"{shop}/examples/train-*", f"{shop}/examples/eval-*", f"{shop}/vocabulary", output,
    FeatureSet().resolved(max_behaviors=6, min_count=1), checkpoint_dir=f"{output}/checkpoints", progress=say,
)
"""


def train(shop, output, root, line=0, later_s=0.0):
    """Trains, to the end or until so long after a line; returns the first line that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *map(str, (shop.folder, output, line, later_s))], cwd=root, text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}, check=False,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGALRM if line else 0), done.stderr[-2000:]
    return done.stdout.splitlines()[0]


def trained(output):
    """The weights by name, and the history without its times."""
    weights = {}
    with h5py.File(output / "ctr.weights.h5") as file:
        file.visititems(lambda name, it: weights.update({name: it[()]}) if isinstance(it, h5py.Dataset) else None)
    history = json.loads((output / "history.json").read_text())
    return weights, [{name: value for name, value in line.items() if name != "seconds"} for line in history]


@pytest.mark.slow  # test_killed_continuing.py kills the same training, and test_train.py stops it, within seconds
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [10])
def test_training_that_is_killed_at_random_moments_ends_as_one_that_was_not(shop, root, tmp_path, kills):
    whole, killed, moments = tmp_path / "whole", tmp_path / "killed", random.Random(9)
    train(shop, whole, root)
    first_lines = []
    for _ in range(kills):
        first_lines.append(train(shop, killed, root, 1 + moments.randrange(3), moments.uniform(0.001, 0.15)))
        assert not (killed / "manifest.json").exists()
    first_lines.append(train(shop, killed, root))
    assert all("were trained before" in line for line in first_lines[1:])
    went_on_from = [int(line.split()[0]) for line in first_lines]
    assert went_on_from == sorted(went_on_from)  # what was trained before is not lost
    (weights, history), (wanted, lines) = trained(killed), trained(whole)
    assert history == lines and weights.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
