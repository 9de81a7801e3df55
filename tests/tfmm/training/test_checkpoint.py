"""The checkpoint file: complete or absent, and never another run's."""

import os
import pathlib
import signal
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.training import checkpoint as checkpoint_lib
from tfmm.training.checkpoint import Checkpoint


def test_every_dtype_comes_back_bit_for_bit(tmp_path):
    values = [
        np.float32([1 / 3, -0.0, np.inf]),
        np.int64([2**62, -5]),
        np.array(True),
        np.zeros((0, 4), np.int32),
    ]
    variables = [tf.Variable(value) for value in values]
    keras_variable = keras.Variable(np.float32([[0.1]]), trainable=False)
    Checkpoint(tmp_path, "k", {"a": variables, "b": [keras_variable]}).save(3, [{"loss": 1.0}])
    for variable in variables:
        variable.assign(tf.zeros_like(variable))
    keras_variable.assign([[9.0]])
    assert Checkpoint(tmp_path, "k", {"a": variables, "b": [keras_variable]}).restore() == (
        3,
        [{"loss": 1.0}],
    )
    for variable, value in zip(variables, values, strict=True):
        assert variable.numpy().tobytes() == value.tobytes()
    assert np.asarray(keras_variable)[0, 0] == np.float32(0.1)


def test_other_shapes_are_refused_and_nothing_is_assigned(tmp_path):
    Checkpoint(tmp_path, "k", {"a": [tf.Variable([1.0]), tf.Variable([2.0])]}).save(1)
    same, longer = tf.Variable([7.0]), tf.Variable([7.0, 7.0])
    with pytest.raises(ValueError, match=r"must hold the variables of this run.*a/1"):
        Checkpoint(tmp_path, "k", {"a": [same, longer]}).restore()
    assert same.numpy() == 7.0


def test_damaged_file_is_named(tmp_path):
    checkpoint = Checkpoint(tmp_path, "k", {"a": [tf.Variable(np.arange(1000.0))]})
    checkpoint.save(1)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:500])
    with pytest.raises(ValueError, match="is damaged"):
        checkpoint.restore()


@pytest.mark.parametrize("key", ["", "a/b", ".."])
def test_key_must_be_a_file_name(tmp_path, key):
    with pytest.raises(ValueError, match="`key` must be a plain file name"):
        Checkpoint(tmp_path, key, {})


def test_failure_while_writing_keeps_the_epoch_before(tmp_path, monkeypatch):
    variable = tf.Variable(1.0)
    checkpoint = Checkpoint(tmp_path, "k", {"a": [variable]})
    checkpoint.save(1)
    variable.assign(2.0)
    monkeypatch.setattr(
        checkpoint_lib.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        checkpoint.save(2)
    assert checkpoint.restore()[0] == 1
    assert variable.numpy() == 1.0


KILLED = textwrap.dedent("""
    import itertools, sys, tensorflow as tf
    from tfmm.training.checkpoint import Checkpoint
    variable = tf.Variable(tf.zeros([200_000]))
    checkpoint = Checkpoint(sys.argv[1], "k", {"a": [variable]})
    for epoch in itertools.count(1):
        variable.assign(tf.fill([200_000], float(epoch)))
        checkpoint.save(epoch)
        print(epoch, flush=True)
""")


@pytest.mark.slow
def test_kill_during_writing_leaves_a_whole_checkpoint(tmp_path):
    root = pathlib.Path(checkpoint_lib.__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
        cwd=root,
    )
    seen = 0
    while seen < 20:
        seen = int(process.stdout.readline())
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    variable = tf.Variable(tf.zeros([200_000]))
    epochs, _ = Checkpoint(tmp_path, "k", {"a": [variable]}).restore()
    assert epochs >= 20
    np.testing.assert_array_equal(variable.numpy(), np.full(200_000, epochs, np.float32))


def test_a_slow_save_is_not_repeated_until_it_is_a_twentieth_of_the_time(tmp_path, monkeypatch):
    now, takes = [100.0], [0.2]
    monkeypatch.setattr(checkpoint_lib.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(checkpoint_lib.os, "fsync", lambda _: now.__setitem__(0, now[0] + takes[0]))
    checkpoint = checkpoint_lib.Checkpoint(tmp_path, "a", {"step": [tf.Variable(1)]})
    assert checkpoint.is_due()
    checkpoint.save(1)
    assert checkpoint.is_due()  # a quick one may follow at once
    takes[0] = 2.0  # of the file and of its folder: 4 s in all
    checkpoint.save(2)
    now[0] += 75.9
    assert not checkpoint.is_due()
    now[0] += 0.2
    assert checkpoint.is_due()
