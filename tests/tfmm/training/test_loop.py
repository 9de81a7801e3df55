"""The loop: resuming equals never stopping, whatever stops it; several replicas equal one."""

import pathlib
import subprocess
import sys
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.training import loop
from tfmm.training.checkpoint import Checkpoint

ROWS = 24


def make_run(folder=None, key="k", seed=0, stop_in_epoch=None):
    """A regression with dropout and Adam; returns (run(epochs), model)."""
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(7)
    x, y = rng.normal(size=(ROWS, 3)).astype("float32"), rng.normal(size=(ROWS, 1)).astype("float32")
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, "relu"),
            keras.layers.Dropout(0.3, seed=1),
            keras.layers.Dense(1),
        ]
    )
    optimizer = keras.optimizers.Adam(0.05)
    optimizer.build(model.trainable_variables)

    def dataset(epoch):
        if epoch == stop_in_epoch:
            raise KeyboardInterrupt
        data = tf.data.Dataset.from_tensor_slices((x, y))
        return data.shuffle(ROWS, seed=1000 * seed + epoch).batch(8, drop_remainder=True)

    def step(batch):
        inputs, labels = batch
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(inputs, training=True) - labels))
            loop.apply_gradients(tape, loss, model.trainable_variables, optimizer)
        return {"loss": loss}

    checkpoint = None
    if folder is not None:
        checkpoint = Checkpoint(folder, key, {"model": model.variables, "optimizer": optimizer.variables})
    return (lambda epochs, **kw: loop.run(step, dataset, epochs, checkpoint=checkpoint, **kw)), model


def without_times(history):
    return [{name: value for name, value in entry.items() if name != "seconds"} for entry in history]


def test_resumed_run_equals_uninterrupted_run(tmp_path):
    straight, model = make_run()
    history = straight(5)
    stopped, _ = make_run(tmp_path, stop_in_epoch=3)
    with pytest.raises(KeyboardInterrupt):
        stopped(5)
    resumed, again = make_run(tmp_path, seed=0)
    assert without_times(resumed(5)) == without_times(history)
    for a, b in zip(model.get_weights(), again.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_finished_run_restores_and_does_no_step(tmp_path):
    first, model = make_run(tmp_path)
    history = first(2)
    second, again = make_run(tmp_path, stop_in_epoch=0)
    assert second(2) == history
    np.testing.assert_array_equal(model.get_weights()[0], again.get_weights()[0])


def test_another_key_starts_afresh(tmp_path):
    first, _ = make_run(tmp_path, key="one")
    first(1)
    second, _ = make_run(tmp_path, key="other", stop_in_epoch=0)
    with pytest.raises(KeyboardInterrupt):
        second(1)


def test_progress_counts_steps_and_knows_the_total(monkeypatch):
    monkeypatch.setattr(loop, "REPORT_INTERVAL_S", 0.0)
    reports = []
    run, _ = make_run()
    run(
        2,
        progress=lambda stage, done, total, **metrics: reports.append((stage, done, total, set(metrics))),
        stage="x",
    )
    assert [report[:3] for report in reports] == [
        ("x", 1, 6),
        ("x", 2, 6),
        ("x", 3, 6),
        ("x", 3, 6),
        ("x", 4, 6),
        ("x", 5, 6),
        ("x", 6, 6),
        ("x", 6, 6),
    ]
    assert all({"epoch", "loss", "steps_per_s"} <= report[3] for report in reports)


def test_parts_of_several_sizes_never_leave_more_done_than_the_total(monkeypatch):
    """As those of a click model's epoch, whose last part is what is left."""
    monkeypatch.setattr(loop, "REPORT_INTERVAL_S", 0.0)
    reports = []
    loop.run(
        lambda batch: {"loss": tf.constant(0.0)}, lambda epoch: tf.data.Dataset.range(3 - epoch), 2, stage="x",
        progress=lambda stage, done, total, **metrics: reports.append((done, total)),
    )  # fmt: skip
    assert reports == [(1, 6), (2, 6), (3, 6), (3, 6), (4, 5), (5, 5), (5, 5)]


def test_evaluation_joins_the_history():
    run, _ = make_run()
    assert [entry["auc"] for entry in run(2, evaluate=lambda epoch: {"auc": epoch / 2})] == [0.0, 0.5]


def test_not_finite_loss_stops_before_the_checkpoint(tmp_path):
    checkpoint = Checkpoint(tmp_path, "k", {"x": [tf.Variable(1.0)]})
    with pytest.raises(FloatingPointError, match="`loss` must stay finite"):
        loop.run(
            lambda batch: {"loss": batch * np.nan},
            lambda epoch: tf.data.Dataset.from_tensors(1.0),
            1,
            checkpoint=checkpoint,
        )
    assert not checkpoint.path.exists()


def test_empty_epoch_is_refused():
    with pytest.raises(ValueError, match="must have at least one batch"):
        loop.run(lambda batch: {"loss": batch}, lambda epoch: tf.data.Dataset.from_tensors(1.0).take(0), 1)


TWO_REPLICAS = textwrap.dedent("""
    import keras, numpy as np, tensorflow as tf
    from tfmm.training import loop
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    def train(strategy):
        keras.utils.set_random_seed(0)
        with strategy.scope():
            model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
            optimizer = keras.optimizers.SGD(0.1)
            optimizer.build(model.trainable_variables)
            x = np.random.default_rng(0).normal(size=(16, 3)).astype("float32")
            def step(batch):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(model(batch) - 1.0))
                    loop.apply_gradients(tape, loss, model.trainable_variables, optimizer)
                return {"loss": loss}
            history = loop.run(step, lambda epoch: tf.data.Dataset.from_tensor_slices(x).batch(8), 3)
        return model.get_weights(), [h["loss"] for h in history]
    one, one_loss = train(tf.distribute.get_strategy())
    two, two_loss = train(tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]))
    for a, b in zip(one, two):
        np.testing.assert_allclose(a, b, rtol=1e-5)  # sums in another order
    np.testing.assert_allclose(one_loss, two_loss, rtol=1e-5)
    print("EQUAL")
""")


@pytest.mark.slow
def test_two_replicas_train_like_one():
    result = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS],
        capture_output=True,
        text=True,
        check=False,
        cwd=pathlib.Path(loop.__file__).parents[2],
    )
    assert "EQUAL" in result.stdout, result.stderr[-2000:]
