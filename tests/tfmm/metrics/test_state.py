"""The metric classes: they equal the functions over any split into batches and workers, and merge exactly."""

import copy
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import metrics

FUNCTIONS = {
    metrics.AUC: metrics.auc,
    metrics.LogLoss: metrics.log_loss,
    metrics.NormalizedEntropy: metrics.normalized_entropy,
    metrics.Calibration: metrics.calibration,
}
CLASSES = [*FUNCTIONS, metrics.BinnedAUC]


@pytest.fixture
def sample():
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.uniform(0.01, 0.99, 300), 2).astype(np.float32)
    return labels, scores, rng.integers(0, 3, 300).astype(float), rng.integers(0, 20, 300)


def parts(*columns):
    return zip(*(np.split(column, [1, 40, 41, 200]) for column in columns))


@pytest.mark.parametrize("metric_class", FUNCTIONS)
@pytest.mark.parametrize("weighted", [False, True])
def test_batches_add_up_to_the_function(metric_class, weighted, sample):
    columns = sample[: 3 if weighted else 2]
    metric = metric_class()
    for batch in parts(*columns):
        metric.update_state(*batch)
    # sums in float64; the order of addition differs
    assert float(metric.result()) == pytest.approx(FUNCTIONS[metric_class](*columns), rel=1e-12)


@pytest.mark.parametrize("metric_class", CLASSES)
def test_workers_merge_to_one_in_any_order(metric_class, sample):
    whole = metric_class(name="whole")
    whole.update_state(*sample[:3])
    workers = []
    for batch in parts(*sample[:3]):
        worker = metric_class.from_config(whole.get_config())
        worker.update_state(*batch)
        workers.append(pickle.loads(pickle.dumps(worker)))
    for order in (workers, workers[::-1]):
        merged = metric_class()
        merged.merge_state(order)
        assert float(merged.result()) == pytest.approx(float(whole.result()), rel=1e-12)


@pytest.mark.parametrize("metric_class", [*CLASSES, metrics.GAUC])
def test_reset_forgets_and_no_rows_are_nan(metric_class, sample):
    metric = metric_class()
    assert np.isnan(float(metric.result()))
    metric.update_state(*sample[:2], *([sample[3]] if metric_class is metrics.GAUC else []))
    assert np.isfinite(float(metric.result()))
    metric.reset_state()
    assert np.isnan(float(metric.result()))
    assert metric.update_state([1], [0.5], *([[3]] if metric_class is metrics.GAUC else [])) is None
    assert np.isnan(float(metric.result())) == (
        metric_class not in (metrics.LogLoss, metrics.Calibration)
    )  # one class


def test_gauc_joins_the_rows_of_a_user_across_batches(sample):
    labels, scores, _, users = sample
    metric = metrics.GAUC(weighting="clicks")
    halves = metrics.GAUC(weighting="clicks"), metrics.GAUC(weighting="clicks")
    for i, batch in enumerate(parts(labels, scores, users)):
        halves[i % 2].update_state(*batch)
    metric.merge_state(copy.deepcopy(halves))
    expected = metrics.gauc(labels, scores, users, "clicks")
    assert metric.details() == expected
    assert metric.result() == expected.value


def test_top_n_accuracy_ranks_over_every_batch():
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(90, 4)).astype(np.float32)
    positives = (queries + rng.normal(size=(90, 4))).astype(np.float32)
    metric = metrics.TopNAccuracy(ns=(1, 10), chunk=8)
    for batch in zip(np.split(queries, 3), np.split(positives, 3)):
        metric.update_state(*(tf.constant(vectors) for vectors in batch))
    assert metric.result() == {
        f"acc_at_{n}": value for n, value in metrics.top_n_accuracy(queries, positives, (1, 10)).items()
    }
    assert metrics.TopNAccuracy.from_config(metric.get_config()).get_config() == metric.get_config()


def test_top_n_accuracy_merges_pickled_workers():
    rng = np.random.default_rng(0)
    queries, positives, ids = rng.normal(size=(60, 4)), rng.normal(size=(9, 4)), rng.integers(0, 9, 60)
    workers = [metrics.TopNAccuracy(ns=(1, 3), name=f"worker_{rank}") for rank in range(3)]
    for worker, rows in zip(workers, np.split(np.arange(60), [20, 50])):
        worker.update_state(queries[rows], positives[ids[rows]], ids[rows])
    whole = metrics.TopNAccuracy(ns=(1, 3))
    whole.merge_state(pickle.loads(pickle.dumps(workers)))
    expected = metrics.top_n_accuracy(queries, positives[ids], (1, 3), positive_ids=ids)
    assert whole.result() == {f"acc_at_{n}": value for n, value in expected.items()}
    assert 0 < expected[1] < expected[3] < 1


def test_top_n_accuracy_refuses_vectors_of_another_encoder():
    metric = metrics.TopNAccuracy()
    metric.update_state(np.ones((2, 3)), np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"must have rows of shape \(3,\), as in the batches before.*\(4,\)"):
        metric.update_state(np.ones((2, 4)), np.ones((2, 4)))


def test_empty_batches_are_no_rows(sample):
    gauc, top_n = metrics.GAUC(), metrics.TopNAccuracy(ns=(1,))
    gauc.update_state([], [], [])
    top_n.update_state(np.ones((0, 3)), np.ones((0, 3)))
    assert np.isnan(gauc.result())
    assert gauc.details() is None
    assert np.isnan(top_n.result()["acc_at_1"])
    labels, scores, _, users = sample
    gauc.update_state(labels, scores, users)
    gauc.update_state([], [], [])
    assert gauc.result() == metrics.gauc(labels, scores, users).value


def test_top_n_accuracy_takes_ids_and_is_nan_without_rows():
    metric = metrics.TopNAccuracy(ns=(1,))
    assert np.isnan(metric.result()["acc_at_1"])
    metric.update_state([[1.0, 0.1]], [[1.0, 0.0]], [5])
    metric.update_state([[1.0, 0.2]], [[1.0, 0.0]], [5])
    assert metric.result() == {"acc_at_1": 1.0}


@pytest.mark.parametrize("metric_class", [metrics.LogLoss, metrics.BinnedAUC, metrics.Calibration])
def test_compiled_steps_agree_with_eager_ones(metric_class, sample):
    eager, compiled = metric_class(), metric_class()
    step = tf.function(lambda *batch: compiled.update_state(*batch), reduce_retracing=True)
    for batch in parts(*sample[:3]):
        eager.update_state(*batch)
        step(*(tf.constant(column)[:, None] for column in batch))
    assert float(compiled.result()) == pytest.approx(float(eager.result()), rel=1e-12)


@pytest.mark.parametrize("metric_class", [metrics.LogLoss, metrics.BinnedAUC])
@pytest.mark.parametrize(
    ("shapes", "match"),
    [
        (([3, 2], [3, 2]), r"`labels` must be one-dimensional.*Received: shape \(3, 2\). Give each output"),
        (([3], [3, 1, 1]), r"`scores` must be one-dimensional.*Received: shape \(3, 1, 1\)"),
        (([], []), r"`labels` must be one-dimensional.*Received: shape \(\)"),
        (([3, 1], [1, 3]), r"`scores` must be one-dimensional.*Received: shape \(1, 3\)"),
        (([3], [1]), "`scores` must have one value per row, 3. Received: 1"),
        (([3], [3], [1]), "`weights` must have one value per row, 3. Received: 1"),
    ],
)
def test_compiled_steps_refuse_other_shapes(metric_class, shapes, match):
    columns = [tf.fill(shape, 1.0) for shape in shapes]
    metric = metric_class()
    with pytest.raises(ValueError, match=match):
        metric.update_state(*columns)
    with pytest.raises(ValueError, match=match):
        tf.function(metric.update_state, autograph=False)(*columns)
    assert np.isnan(float(metric.result()))


@pytest.mark.parametrize("shapes", [([3, 2], [3, 2]), ([3, 1], [3, 1], [1, 1]), ([1, 1], [1, 1], [3, 1])])
def test_shapes_that_the_trace_does_not_know_give_nan(shapes):
    metric = metrics.LogLoss()
    signature = [tf.TensorSpec([None, None])] * len(shapes)
    step = tf.function(metric.update_state, input_signature=signature, autograph=False)
    step(*(tf.fill([4, 1], 1.0) for _ in shapes))
    assert float(metric.result()) == pytest.approx(metrics.log_loss([1], [1.0]), rel=1e-6)  # 1 - 2^-23 in float64
    step(*(tf.fill(shape, 1.0) for shape in shapes))
    assert np.isnan(float(metric.result()))


def test_gauc_in_a_compiled_step_points_to_what_works():
    step = tf.function(lambda *batch: metrics.GAUC().update_state(*batch), autograph=False)
    with pytest.raises(TypeError, match="Keras gives a metric no user ids: call `gauc` on the predictions"):
        step(tf.constant([0, 1]), tf.constant([0.1, 0.2]), tf.constant([3, 3]))


MIRRORED = """
import keras, numpy as np, tensorflow as tf
from tfmm import metrics

device = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * 2)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
assert strategy.num_replicas_in_sync == 2
rng = np.random.default_rng(0)
inputs = rng.normal(size=(72, 3)).astype(np.float32)
labels = (inputs[:, 0] > 0).astype(np.float32)
functions = {"log_loss": metrics.log_loss, "normalized_entropy": metrics.normalized_entropy,
             "calibration": metrics.calibration, "binned_auc": metrics.auc}
with strategy.scope():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", metrics=[
        metrics.LogLoss(), metrics.NormalizedEntropy(), metrics.Calibration(), metrics.BinnedAUC()])
for _ in range(2):  # the second starts from a reset
    reported = model.evaluate(inputs, labels, batch_size=16, verbose=0, return_dict=True)
scores = model.predict(inputs, verbose=0)
for name, function in functions.items():
    np.testing.assert_allclose(reported[name], function(labels, scores), rtol=1e-6)
"""


@pytest.mark.slow
def test_replicas_of_a_mirrored_strategy_add_up():
    """In a process of its own: the devices are divided before TensorFlow starts."""
    done = subprocess.run([sys.executable, "-c", MIRRORED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_model_fit_reports_them():
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 3)).astype(np.float32)
    labels = (inputs[:, 0] > 0).astype(np.float32)
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.layers.Dense(1, activation="sigmoid")])
    model.compile(
        loss="binary_crossentropy", metrics=[metrics.BinnedAUC(), metrics.LogLoss(), metrics.Calibration()]
    )
    reported = model.evaluate(inputs, labels, batch_size=16, verbose=0, return_dict=True)
    scores = model.predict(inputs, verbose=0)[:, 0]
    assert reported["log_loss"] == pytest.approx(metrics.log_loss(labels, scores), rel=1e-6)
    assert reported["binned_auc"] == pytest.approx(metrics.auc(labels, scores), abs=1e-3)
    model.compile(loss="binary_crossentropy", metrics=[metrics.AUC()])
    with pytest.raises(TypeError, match=r"AUC keeps every row on the host.*Use BinnedAUC in `compile`"):
        model.evaluate(inputs, labels, verbose=0)
    model.compile(loss="binary_crossentropy", metrics=[metrics.AUC()], run_eagerly=True)
    reported = model.evaluate(inputs, labels, batch_size=16, verbose=0, return_dict=True)
    assert reported["auc"] == pytest.approx(metrics.auc(labels, scores), abs=1e-12)


def test_twenty_thousand_bins_are_close_at_low_click_rates():
    rng = np.random.default_rng(0)
    logits = rng.normal(-4, 1, 50_000)
    scores = 1 / (1 + np.exp(-logits))
    labels = rng.random(50_000) < scores
    exact = metrics.auc(labels, scores)
    errors = {}
    for name, metric in (("binned", metrics.BinnedAUC()), ("keras", keras.metrics.AUC())):
        metric.update_state(labels, scores)
        errors[name] = abs(float(metric.result()) - exact)
    assert errors["binned"] < 2e-5 < 1e-4 < errors["keras"]


@pytest.mark.parametrize("metric_class", [metrics.LogLoss, metrics.NormalizedEntropy, metrics.BinnedAUC])
@pytest.mark.parametrize(("label", "score"), [(2.0, 0.5), (1.0, 1.5), (1.0, float("nan"))])
def test_wrong_rows_raise_in_eager_steps_and_give_nan_in_compiled_ones(metric_class, label, score):
    metric = metric_class()
    with pytest.raises(ValueError, match=r"`labels` must be 0 or 1|`scores` must be"):
        metric.update_state([0.0, label], [0.5, score])
    tf.function(metric.update_state)(tf.constant([0.0, label, 1.0]), tf.constant([0.5, score, 0.5]))
    assert np.isnan(float(metric.result()))


@pytest.mark.parametrize(
    "metric", [*(each() for each in CLASSES), metrics.GAUC("users"), metrics.BinnedAUC(7)]
)
def test_config_round_trips_and_classes_are_registered(metric):
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(metric))
    assert again.get_config() == metric.get_config()
    assert keras.saving.get_registered_name(type(metric)) == f"tfmm>{type(metric).__name__}"


def test_refuses_to_merge_what_does_not_fit(sample):
    with pytest.raises(ValueError, match=r"Only metrics of one class and one configuration merge"):
        metrics.BinnedAUC(10).merge_state([metrics.BinnedAUC(20)])
    with pytest.raises(ValueError, match=r"Only metrics of one class and one configuration merge"):
        metrics.AUC().merge_state([metrics.GAUC()])
    mixed = metrics.AUC()
    mixed.update_state([0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="`weights` must be given with every batch or with none"):
        mixed.update_state([0, 1], [0.1, 0.2], [1.0, 2.0])


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: metrics.BinnedAUC(1), "`num_bins` must be an int of at least 2. Received: 1"),
        (lambda: metrics.BinnedAUC(100.5), "`num_bins` must be an int of at least 2. Received: 100.5"),
        (lambda: metrics.BinnedAUC(True), "`num_bins` must be an int of at least 2. Received: True"),
        (lambda: metrics.GAUC("rows"), "one of impressions, users, clicks. Received: 'rows'"),
        (lambda: metrics.GAUC().update_state([0, 1], [0.1, 0.2], [1, "1"]), "Received: 1, '1'. Give rows"),
        (lambda: metrics.TopNAccuracy(ns=(0,)), "`ns` must be an int of at least 1. Received: 0"),
        (lambda: metrics.TopNAccuracy(ns=(1, True)), "`ns` must be an int of at least 1. Received: True"),
        (lambda: metrics.TopNAccuracy(ns=5), "`ns` must be a sequence of ints. Received: 5"),
        (lambda: metrics.TopNAccuracy(chunk=0), "`chunk` must be an int of at least 1. Received: 0"),
        (lambda: metrics.TopNAccuracy(chunk=True), "`chunk` must be an int of at least 1. Received: True"),
        (lambda: metrics.TopNAccuracy().update_state(np.ones((2, 3)), np.ones((2, 4))), "one positive per query"),
        (lambda: metrics.TopNAccuracy().update_state([[np.nan]], [[1.0]]), "`queries` must be finite.*in row 0"),
        (lambda: metrics.TopNAccuracy().update_state([[1.0]], [[1.0]], [1, 2]), "one value per row, 1. Received: 2"),
    ],
)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
