"""The metric classes in `fit` on the backend at hand (KERAS_BACKEND)."""

import importlib
import pickle

import keras
import numpy as np
import pytest
from keras import ops

from tfmm import metrics

CLASSES = (metrics.BinnedAUC, metrics.LogLoss, metrics.NormalizedEntropy, metrics.Calibration)


@pytest.mark.parametrize("classes", [CLASSES, CLASSES[::-1]])
def test_fit_and_evaluate_report_them(classes):
    keras.utils.set_random_seed(0)  # of other weights more scores may share a bin
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(64, 3)).astype(np.float32)
    labels = (inputs[:, :1] > 0).astype(np.float32)
    model = keras.Sequential([keras.layers.Dense(1, activation="sigmoid")])
    model.compile(loss="binary_crossentropy", metrics=[each() for each in classes])
    model.fit(inputs, labels, batch_size=16, verbose=0)
    reported = model.evaluate(inputs, labels, batch_size=16, verbose=0, return_dict=True)
    scores = model.predict(inputs, verbose=0)
    # scores of two compiled batches differ in float32, and the JAX backend sums in it
    assert reported["binned_auc"] == pytest.approx(metrics.auc(labels, scores), abs=1e-3)
    assert reported["log_loss"] == pytest.approx(metrics.log_loss(labels, scores), rel=1e-5)
    expected = metrics.normalized_entropy(labels, scores)
    assert reported["normalized_entropy"] == pytest.approx(expected, rel=1e-5)
    assert reported["calibration"] == pytest.approx(metrics.calibration(labels, scores), rel=1e-5)


@pytest.mark.parametrize("metric_class", [metrics.AUC, metrics.BinnedAUC, metrics.LogLoss])
def test_tensors_and_pickles(metric_class):
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 100), rng.random(100).astype(np.float32)
    metric = metric_class()
    metric.update_state(ops.convert_to_tensor(labels), ops.convert_to_tensor(scores))
    expected = (metrics.log_loss if metric_class is metrics.LogLoss else metrics.auc)(labels, scores)
    assert float(metric.result()) == pytest.approx(expected, abs=1e-5)
    assert float(pickle.loads(pickle.dumps(metric)).result()) == float(metric.result())


def test_float32_sums_count_beyond_two_to_the_24(monkeypatch):
    monkeypatch.setattr("tfmm.metrics.state.sum_dtype", lambda: "float32")  # as on the JAX backend
    metric = metrics.LogLoss()
    before = np.array([2.0**24, 2.0**23, 2.0**23, 2.0**23])
    metric.add_state({"sums": before})
    step, variables = compiled(metric.stateless_update_state), [variable.value for variable in metric.variables]
    for _ in range(1000):
        variables = step(variables, np.ones(1, np.float32), np.full(1, 0.5, np.float32))
    for variable, value in zip(metric.variables, variables):
        variable.assign(value)
    added = metric.state()["sums"] - before
    # the loss of one row is rounded to float32; its sum stands at 8e6, where float32 has steps of 1
    assert added == pytest.approx([1000.0, 1000 * np.log(2), 1000.0, 500.0], rel=1e-6)


def compiled(function):
    if keras.backend.backend() == "jax":
        return importlib.import_module("jax").jit(function)
    if keras.backend.backend() == "tensorflow":
        return importlib.import_module("tensorflow").function(function, autograph=False, jit_compile=True)
    return function
