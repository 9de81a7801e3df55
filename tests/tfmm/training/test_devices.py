"""What is told before a training on devices that cannot be, and where one has too little memory."""

import json
import os
import subprocess
import sys

import pytest
import tensorflow as tf

from tfmm.config import CTRConfig, TrainingConfig
from tfmm.ctr import train as ctr
from tfmm.training import cluster, devices

CLUSTER = {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}
TASK = {"type": "worker", "index": 1}


@pytest.mark.parametrize(
    ("field", "value", "known"),
    [("strategy", "two", "one, mirrored, multi_worker"), ("precision", "half", "float32, mixed_bfloat16")],
)
def test_unknown_devices_are_refused_where_they_are_declared(field, value, known):
    with pytest.raises(ValueError, match=f"`training.{field}` must be one of {known}.*Received: '{value}'"):
        TrainingConfig(**{field: value})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is not set. For a single process take training.strategy=one, or mirrored"),
        ("{", "no JSON"),
        ("[]", "a `cluster` that names no jobs"),
        (json.dumps({"cluster": CLUSTER}), "a `task` without type and index: None"),
        (json.dumps({"cluster": CLUSTER, "task": {**TASK, "index": 2}}), "the task worker 2; the cluster has 2"),
        (json.dumps({"cluster": CLUSTER, "task": {**TASK, "index": "1"}}), "a `task` without type and index"),
        (json.dumps({"cluster": CLUSTER, "task": {"type": "chief", "index": 0}}), "the cluster has worker alone"),
        (json.dumps({"cluster": {"worker": ["here"]}, "task": {**TASK, "index": 0}}), "as host:port, not .'here'"),
        (json.dumps({"cluster": {**CLUSTER, "ps": ["a:1"]}, "task": TASK}), "the job 'ps'; only chief and worker"),
        (json.dumps({"cluster": {**CLUSTER, "chief": ["a:1", "b:1"]}, "task": TASK}), "there is one chief"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused_with_the_way_out(text, said):
    with pytest.raises(ValueError, match=r"needs TF_CONFIG in the environment of each process[\s\S]*" + said):
        cluster.require(text)


def test_all_that_is_wrong_with_a_cluster_is_said_at_once():
    with pytest.raises(ValueError, match=r"the job 'ps'[\s\S]*host:port[\s\S]*a `task` without"):
        cluster.require(json.dumps({"cluster": {"ps": ["a:1"], "worker": "a:1"}}))


def test_training_of_a_cluster_without_one_is_refused_before_anything_is_read(monkeypatch, tmp_path):
    monkeypatch.delenv(cluster.VARIABLE, raising=False)
    with pytest.raises(ValueError, match="it is not set"):
        ctr.train(
            CTRConfig(), "none", "none", tmp_path, tmp_path, None, training=TrainingConfig(strategy="multi_worker")
        )


UNEVEN = """
import tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tfmm.config import CTRConfig, MAKEConfig, SCLConfig, TrainingConfig
from tfmm.ctr import train as ctr
from tfmm.make import train as make
from tfmm.pretrain import train as scl
mirrored = {"training": TrainingConfig(strategy="mirrored")}
for attempt in (
    lambda: ctr.train(CTRConfig(batch_size=511), "none", "none", "none", "none", None, **mirrored),
    lambda: make.train(MAKEConfig(batch_size=255), "none", "none", "none", "none", None, **mirrored),
    lambda: scl.train(SCLConfig(batch_size=63), "none", "none", **mirrored),
):
    try:
        attempt()
    except ValueError as error:
        print(error)
"""


def test_a_batch_that_the_devices_do_not_divide_is_refused_before_anything_is_read(root):
    done = subprocess.run(
        [sys.executable, "-c", UNEVEN], text=True, capture_output=True, cwd=root, check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.stdout.splitlines() == [
        "`batch_size` is that of all devices together, and must be a multiple of their number. Received: "
        f"{rows} rows for 2 devices. Take {right}."
        for rows, right in ((511, 512), (255, 256), (63, 64))
    ], done.stderr[-2000:]


@devices.placed("`ctr.batch_size`")
def too_large(training):
    return tf.zeros([1 << 45])  # 128 TiB


def test_a_device_without_memory_says_which_setting_to_lower():
    with pytest.raises(MemoryError, match=r"Lower `ctr.batch_size`, or take training.precision=mixed_bfloat16.*shape"):
        too_large(training=TrainingConfig())
