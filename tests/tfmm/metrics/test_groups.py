"""Item groups by frequency: equal sizes in order, the paper's relative improvement, and the errors."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tfmm.metrics import auc, compare_groups, item_frequencies, item_frequency_groups, log_loss


@hypothesis.given(st.lists(st.integers(0, 9), min_size=8, max_size=60))
def test_groups_have_equal_sizes_and_ascend_in_frequency(frequencies):
    groups = item_frequency_groups(frequencies)
    sizes = np.bincount(groups, minlength=9)[1:]
    assert sizes.min() >= 1
    assert sizes.max() - sizes.min() <= 1
    for lower in range(1, 8):
        below, above = (np.array(frequencies)[groups == group] for group in (lower, lower + 1))
        assert below.max() <= above.min()


def test_frequencies_count_training_rows_and_unseen_items():
    assert item_frequencies(["a", "c", "a"], ["a", "b", "c", "d"]).tolist() == [2, 0, 1, 0]
    assert item_frequencies(np.zeros(0, int), [1, 2]).tolist() == [0, 0]


def test_weights_count_rows_as_often():
    rng = np.random.default_rng(0)
    labels, groups, scores, weights = (rng.integers(low, high, 400) for low, high in ((0, 2), (1, 9), (1, 9), (0, 3)))
    columns = (labels, scores / 10, 1 - scores / 20, groups)
    expected = compare_groups(*(np.repeat(column, weights) for column in columns))
    for one, other in zip(compare_groups(*columns, weights=weights), expected):
        assert (one.auc, one.log_loss) == pytest.approx((other.auc, other.log_loss), abs=1e-12)
        assert one.log_loss_improvement == pytest.approx(other.log_loss_improvement, abs=1e-12)
    assert np.isnan(compare_groups([1, 0], [0.5, 0.2], [0.5, 0.2], [1, 1], 1, [1, 0])[0].auc)


def test_improvement_is_relative_and_positive_for_better():
    rng = np.random.default_rng(0)
    labels, groups = rng.integers(0, 2, 400), rng.integers(1, 9, 400)
    baseline = rng.uniform(0.2, 0.8, 400)
    better = np.clip(baseline + 0.3 * (labels - 0.5), 0.01, 0.99)
    compared = compare_groups(labels, better, baseline, groups)
    assert [each.group for each in compared] == list(range(1, 9))
    assert sum(each.impressions for each in compared) == 400
    third = compared[2]
    rows = groups == 3
    values = auc(labels[rows], better[rows]), auc(labels[rows], baseline[rows])
    assert (third.auc, third.baseline_auc) == values
    assert third.auc_improvement == pytest.approx(abs(values[0] - values[1]) / values[1])
    losses = log_loss(labels[rows], better[rows]), log_loss(labels[rows], baseline[rows])
    assert third.log_loss_improvement == pytest.approx(abs(losses[0] - losses[1]) / losses[1])
    worse = compare_groups(labels, baseline, better, groups)[2]
    assert worse.auc_improvement < 0
    assert worse.log_loss_improvement < 0


def test_group_of_one_class_or_no_rows_is_nan():
    empty, one_class = compare_groups([1, 1], [0.5, 0.6], [0.5, 0.4], [2, 2], num_groups=2)
    assert empty.impressions == 0
    assert np.isnan([empty.auc, empty.log_loss, empty.auc_improvement, one_class.auc]).all()
    assert one_class.clicks == 2
    assert np.isfinite(one_class.log_loss_improvement)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: item_frequency_groups([1, 2, 3]), "between 1 and the number of items, 3. Received: 8"),
        (
            lambda: compare_groups([0, 1], [0.1, 0.2], [0.1, 0.2], [1]),
            "one group per label, 2. Received: shape",
        ),
        (lambda: compare_groups([0, 1], [0.1, 0.2], [0.1, 0.2], [0, 1]), r"must lie in 1..8. Received: 0"),
        (lambda: compare_groups([0, 1], [0.1, 2.0], [0.1, 0.2], [1, 1]), "Received: 2.0. Apply the sigmoid"),
    ],
)
def test_refuses(make, match):
    with pytest.raises(ValueError, match=match):
        make()
