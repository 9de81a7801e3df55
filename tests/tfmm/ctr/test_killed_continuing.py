"""A training that goes on from another, is killed at any moment and run again ends as one that was not killed."""

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tfmm.ctr import state as state_lib
from tfmm.training import checkpoint

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

shop, examples, output, parent, line, later_s = sys.argv[1:]
train.train(
    CTRConfig(units=(8,), attention_units=(8,), epochs=2, batch_size=32, block_rows=128, segments=12),
    f"{examples}/train-*", f"{examples}/eval-*", f"{shop}/vocabulary", f"{output}/Format-TFMM",
    FeatureSet().resolved(max_behaviors=6, min_count=1), checkpoint_dir=f"{output}/checkpoints", progress=say,
    parent_dir=parent or None, state_dir=f"{output}/Format-State",
)
"""


def train(root, *folders, line=0, later_s=0.0):
    """Trains, to the end or until so long after a line; returns the first line that it printed."""
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, *map(str, (*folders, line, later_s))], cwd=root, text=True, capture_output=True,
        env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}, check=False,
    )  # fmt: skip
    assert done.returncode == (-signal.SIGALRM if line else 0), done.stderr[-2000:]
    return done.stdout.splitlines()[0]


@pytest.fixture(scope="module")
def days(shop, tmp_path_factory):
    """Folders of examples: the first half of the shop's rows in time, and the second."""
    records = {split: [] for split in ("train", "eval")}
    for split, found in records.items():
        for path in sorted((shop.folder / "examples").glob(f"{split}-*")):
            found += tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()
        found.sort(key=lambda one: tf.train.Example.FromString(one).features.feature["timestamp"].int64_list.value[0])
    half = len(records["train"]) // 2
    parts = [(records["train"][:half], records["train"][half:]), (records["train"][half:], records["eval"])]
    folders = []
    for part in parts:
        folders.append(tmp_path_factory.mktemp("day"))
        for split, rows in zip(("train", "eval"), part):
            with tf.io.TFRecordWriter(str(folders[-1] / f"{split}-00000.tfrecord.gz"), "GZIP") as writer:
                for row in rows:
                    writer.write(row)
    return folders


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_going_on_that_is_killed_at_random_moments_ends_as_one_that_was_not(shop, days, root, tmp_path, kills):
    first, whole, killed, moments = tmp_path / "first", tmp_path / "whole", tmp_path / "killed", random.Random(9)
    train(root, shop.folder, days[0], first, "")
    second = (shop.folder, days[1])
    train(root, *second, whole, first / "Format-State")
    for _ in range(kills):
        moment = {"line": 1 + moments.randrange(3), "later_s": moments.uniform(0.001, 0.15)}
        train(root, *second, killed, first / "Format-State", **moment)
        assert not (killed / "Format-State" / "manifest.json").exists()
    assert "were trained before" in train(root, *second, killed, first / "Format-State")  # it is not lost
    (wanted, _), (found, _) = (checkpoint.read(folder / "Format-State" / "variables") for folder in (whole, killed))
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    facts = [state_lib.read_manifest(folder / "Format-State")["training"] for folder in (whole, killed)]
    assert facts[0] == facts[1] and facts[0]["span"]["number"] == 2
