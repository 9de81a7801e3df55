"""A training that is killed again and again, at any moment, ends with the weights of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest

TRAIN = """
import sys
from tfmm.config import CTRConfig
from tfmm.ctr import train
from tfmm.features import FeatureSet

def say(stage, done, total, note="", **metrics):
    print(done, total, flush=True)

shop, output = sys.argv[1:]
train.train(
    CTRConfig(units=(8,), attention_units=(8,), epochs=3, batch_size=32, block_rows=128, segments=12),
    f"{shop}/examples/train-*", f"{shop}/examples/eval-*", f"{shop}/vocabulary", output,
    FeatureSet().resolved(max_behaviors=6, min_count=1), checkpoint_dir=f"{output}/checkpoints", progress=say,
)
"""


def start(shop, output, root):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(shop.folder), str(output)], cwd=root, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


def trained(output):
    """The weights by name, and the history without its times."""
    weights = {}
    with h5py.File(output / "ctr.weights.h5") as file:
        file.visititems(lambda name, it: weights.update({name: it[()]}) if isinstance(it, h5py.Dataset) else None)
    history = json.loads((output / "history.json").read_text())
    return weights, [{name: value for name, value in line.items() if name != "seconds"} for line in history]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_training_that_is_killed_at_random_moments_ends_as_one_that_was_not(shop, root, tmp_path, kills):
    whole, killed, moments = tmp_path / "whole", tmp_path / "killed", random.Random(9)
    with start(shop, whole, root) as process:
        process.communicate()
    assert process.returncode == 0
    went_on_from = []
    for _ in range(kills):
        with start(shop, killed, root) as process:
            try:
                went_on_from.append(int(process.stdout.readline().split()[0]))
                for _ in range(moments.randrange(3)):  # a line after each segment
                    process.stdout.readline()
                time.sleep(moments.uniform(0.0, 0.15))
                assert process.poll() is None
            finally:
                process.send_signal(signal.SIGKILL)
        assert not (killed / "manifest.json").exists()
    with start(shop, killed, root) as process:
        first = int(process.stdout.readline().split()[0])
        process.communicate()
    assert process.returncode == 0
    assert first > 1 and went_on_from == sorted(went_on_from)  # what was trained before is not lost
    (weights, history), (wanted, lines) = trained(killed), trained(whole)
    assert history == lines and weights.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(weights[name], value, err_msg=name)
