"""AUC: exact against scikit-learn with ties and weights, against all pairs, and its errors."""

import hypothesis
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st

from tfmm.metrics import AUC, auc

SCORES = {
    "ties": st.sampled_from([0.0, -0.0, 0.1, 0.25, 1.0]),
    "float32": st.floats(-3, 3, width=32),
    "float64": st.floats(-1e-3, 1e-3),
    "neighbors": st.sampled_from([0.5, np.nextafter(0.5, 1), np.nextafter(0.5, 0)]),  # one in float32
}


def rows(scores):
    return st.lists(st.tuples(st.integers(0, 1), scores, st.integers(0, 3)), min_size=2, max_size=40)


@pytest.mark.parametrize("kind", SCORES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_scikit_learn(kind, dtype):
    @hypothesis.given(rows(SCORES[kind]))
    def check(sample):
        labels, scores, weights = (np.array(column) for column in zip(*sample))
        scores = scores.astype(dtype)
        hypothesis.assume(0 < labels.sum() < labels.size)
        assert auc(labels, scores) == pytest.approx(sklearn.metrics.roc_auc_score(labels, scores), abs=1e-12)
        used = weights > 0
        if 0 < labels[used].sum() < used.sum():
            expected = sklearn.metrics.roc_auc_score(labels[used], scores[used], sample_weight=weights[used])
            assert auc(labels, scores, weights) == pytest.approx(expected, abs=1e-12)

    check()


def test_counts_pairs_with_a_tie_as_one_half():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 60), rng.integers(-4, 4, 60) / 4
    won = [float(p > n) + 0.5 * (p == n) for p in scores[labels == 1] for n in scores[labels == 0]]
    assert auc(labels, scores) == pytest.approx(np.mean(won), abs=1e-15)


def test_all_ties_are_worth_one_half():
    assert auc([0, 1, 0, 1, 1], [0.3] * 5) == 0.5
    assert auc([0, 1], [0.0, -0.0]) == 0.5


@pytest.mark.parametrize("dtype", [bool, np.float32, np.float64, np.uint8])
def test_labels_of_any_type_and_extreme_scores(dtype):
    labels, smallest = np.array([0, 1, 0, 1, 1], dtype), np.nextafter(0.0, 1.0)
    scores = np.array([0.0, -0.0, -smallest, smallest, 1e300])  # pairs won: 0.5 and 1, 1 and 1, 1 and 1
    assert auc(labels, scores) == 5.5 / 6
    assert auc(labels, scores, np.ones(5)) == pytest.approx(5.5 / 6, abs=1e-15)
    single = np.array([0.0, -0.0, -1e-45, 1e-45, 3e38], np.float32)
    assert auc(labels, single) == 5.5 / 6


@pytest.mark.parametrize(
    "scores",
    [
        np.array([2**53, 2**53 + 1]),  # equal in float64
        np.array([2**64 - 2, 2**64 - 1], np.uint64),
        np.array([-(2**63), 2**63 - 1]),
        np.array([2**53, 2**53 + 1], object),
        np.array([False, True]),
        np.array([0.25, 0.5], np.float16),
    ],
)
def test_whole_numbers_rank_as_whole_numbers(scores):
    assert auc([0, 1], scores) == 1.0
    assert auc([1, 0], scores) == 0.0
    assert auc([0, 1], scores, [0.5, 2.0]) == 1.0
    metric = AUC()
    metric.update_state([0, 1], scores)
    assert metric.result() == 1.0


@pytest.mark.parametrize("scale", [5e-324, 1e-300, 1e300])
def test_only_the_ratio_of_weights_counts(scale):
    labels, scores = [0, 1, 0, 1], [0.1, 0.4, 0.5, 0.8]
    assert auc(labels, scores, np.full(4, scale)) == pytest.approx(0.75, abs=1e-15)
    assert auc(labels, scores, [scale, 1.0, scale, 1.0]) == pytest.approx(0.75, abs=1e-15)


def test_row_order_does_not_matter():
    rng = np.random.default_rng(0)
    labels, scores = rng.integers(0, 2, 500), rng.integers(0, 50, 500) / 50
    order = rng.permutation(500)
    assert auc(labels, scores) == auc(labels[order], scores[order])


def test_inputs_are_left_as_they_were():
    labels, scores = np.array([0, 1, 1]), np.array([0.3, 0.1, 0.9], np.float32)
    auc(labels, scores)
    assert scores.tolist() == np.array([0.3, 0.1, 0.9], np.float32).tolist()


def test_column_vectors_are_accepted():
    assert auc([[0], [1]], [[0.1], [0.2]]) == 1.0


@pytest.mark.parametrize(
    ("labels", "scores", "weights", "match"),
    [
        ([0, 2], [0.1, 0.2], None, "`labels` must be 0 or 1. Received: 2. Turn graded"),
        ([0, np.nan], [0.1, 0.2], None, "`labels` must be 0 or 1. Received: nan"),
        ([0, 1], [0.1, np.nan], None, "`scores` must be finite. Received: nan in row 1"),
        ([0, 1], [0.1, np.inf], None, "`scores` must be finite. Received: inf in row 1"),
        ([0, 1], [0.1], None, "one value per row, 2. Received: 1"),
        ([[0, 1]], [0.1], None, r"`labels` must be one-dimensional.*Received: shape \(1, 2\)"),
        ([1, 1], [0.1, 0.2], None, "AUC needs both classes. Received: 2 positives in 2 rows"),
        ([], [], None, "AUC needs both classes. Received: 0 positives in 0 rows"),
        ([0, 1], [0.1, 0.2], [1, 0], "AUC needs both classes. Received: 0 positives in 1 rows"),
        ([0, 1], [0.1, 0.2], [1, -1], "`weights` must not be negative. Received: -1"),
        ([0, 1], ["0.1", "0.2"], None, "`scores` must be numbers. Received: <U3. Convert them"),
        ([0, 1], np.array([0.1, None]), None, "`scores` must be numbers. Received: object. Convert them"),
        (np.array(["0", "1"]), [0.1, 0.2], None, "`labels` must be numbers. Received: <U1"),
    ],
)
def test_refuses(labels, scores, weights, match):
    with pytest.raises(ValueError, match=match):
        auc(labels, scores, weights)
