"""A training that goes on from another, is killed at any moment and run again ends as one that was not killed."""

import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tfmm.ctr import state as state_lib
from tfmm.training import checkpoint

TRAIN = """
import sys
from tfmm.config import CTRConfig
from tfmm.ctr import train
from tfmm.features import FeatureSet

def say(stage, done, total, note="", **metrics):
    print(done, total, flush=True)

shop, examples, output, parent = sys.argv[1:]
train.train(
    CTRConfig(units=(8,), attention_units=(8,), epochs=2, batch_size=32, block_rows=128, segments=12),
    f"{examples}/train-*", f"{examples}/eval-*", f"{shop}/vocabulary", f"{output}/Format-TFMM",
    FeatureSet().resolved(max_behaviors=6, min_count=1), checkpoint_dir=f"{output}/checkpoints", progress=say,
    parent_dir=parent or None, state_dir=f"{output}/Format-State",
)
"""


def start(root, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, *map(str, arguments)], cwd=root, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip


def finish(process):
    said, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return said


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


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kills", [2, pytest.param(10, marks=pytest.mark.slow)])
def test_going_on_that_is_killed_at_random_moments_ends_as_one_that_was_not(shop, days, root, tmp_path, kills):
    first, whole, killed, moments = tmp_path / "first", tmp_path / "whole", tmp_path / "killed", random.Random(9)
    with start(root, shop.folder, days[0], first, "") as process:
        finish(process)
    second = (shop.folder, days[1])
    with start(root, *second, whole, first / "Format-State") as process:
        finish(process)
    for _ in range(kills):
        with start(root, *second, killed, first / "Format-State") as process:
            for _ in range(1 + moments.randrange(3)):  # a line after each segment
                process.stdout.readline()
            time.sleep(moments.uniform(0.0, 0.15))
            assert process.poll() is None
            process.send_signal(signal.SIGKILL)
        assert not (killed / "Format-State" / "manifest.json").exists()
    with start(root, *second, killed, first / "Format-State") as process:
        assert int(finish(process).split()[0]) > 1  # what was trained before is not lost
    (wanted, _), (found, _) = (checkpoint.read(folder / "Format-State" / "variables") for folder in (whole, killed))
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    facts = [state_lib.read_manifest(folder / "Format-State")["training"] for folder in (whole, killed)]
    assert facts[0] == facts[1] and facts[0]["span"]["number"] == 2
