"""Log loss, normalized entropy, calibration: against scikit-learn and by hand, and their errors."""

import hypothesis
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st

from tfmm.metrics import calibration, log_loss, normalized_entropy


@hypothesis.given(
    st.lists(st.tuples(st.integers(0, 1), st.floats(1e-5, 1 - 1e-5), st.integers(0, 4)), min_size=1)
)
def test_log_loss_agrees_with_scikit_learn(sample):
    labels, scores, weights = (np.array(column) for column in zip(*sample))
    expected = sklearn.metrics.log_loss(labels, scores, labels=[0, 1])
    assert log_loss(labels, scores) == pytest.approx(expected, rel=1e-12)
    if weights.sum():
        expected = sklearn.metrics.log_loss(labels, scores, labels=[0, 1], sample_weight=weights)
        assert log_loss(labels, scores, weights) == pytest.approx(expected, rel=1e-12)


def test_certain_error_is_large_but_finite():
    assert log_loss([1], [0.0]) == pytest.approx(23 * np.log(2))
    assert log_loss([0], [1.0]) == pytest.approx(23 * np.log(2))


def test_normalized_entropy_of_the_click_rate_is_one():
    labels = np.arange(100) < 3
    assert normalized_entropy(labels, np.full(100, 0.03)) == pytest.approx(1.0, rel=1e-12)
    assert normalized_entropy(labels, np.where(labels, 0.5, 0.02)) < 1.0
    weights = np.where(labels, 2.0, 1.0)
    assert normalized_entropy(labels, np.full(100, 6 / 103), weights) == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("metric", [log_loss, normalized_entropy, calibration])
@pytest.mark.parametrize("scale", [1e-300, 1e300, 1e308])
def test_only_the_ratio_of_weights_counts(metric, scale):
    labels, scores = np.arange(9) % 2, np.linspace(0.1, 0.9, 9)
    assert metric(labels, scores, np.full(9, scale)) == pytest.approx(metric(labels, scores), rel=1e-14)


def test_calibration_is_predicted_over_observed():
    assert calibration([1, 0, 1, 0], [0.5, 0.5, 0.25, 0.25]) == 0.75
    assert calibration([1, 0], [0.5, 0.5], [3, 1]) == pytest.approx(0.5 / 0.75)


@pytest.mark.parametrize("metric", [log_loss, normalized_entropy, calibration])
@pytest.mark.parametrize(
    ("labels", "scores", "weights", "match"),
    [
        ([0, 1], [0.1, 1.2], None, r"probabilities in \[0, 1\]. Received: 1.2. Apply the sigmoid"),
        ([0, 1], [0.1, np.nan], None, "`scores` must be finite. Received: nan"),
        ([0, -1], [0.1, 0.2], None, "`labels` must be 0 or 1. Received: -1"),
        ([], [], None, "At least one row with a weight above 0 is needed. Received: 0 rows"),
        ([0, 1], [0.1, 0.2], [0, 0], "At least one row with a weight above 0"),
    ],
)
def test_refuses(metric, labels, scores, weights, match):
    with pytest.raises(ValueError, match=match):
        metric(labels, scores, weights)


def test_one_class_is_refused_where_it_has_no_value():
    with pytest.raises(
        ValueError, match=r"Normalized entropy needs both classes. Received: a click rate of 1.0"
    ):
        normalized_entropy([1, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match=r"Calibration needs at least one click. Received: none in 2 rows"):
        calibration([0, 0], [0.5, 0.5])
