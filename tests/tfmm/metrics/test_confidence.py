"""User bootstrap: against resampled rows, its width, its pairing, and its errors."""

import numpy as np
import pytest

from tfmm.metrics import auc, calibration, confidence, gauc, log_loss, mean_interval, user_bootstrap

FUNCTIONS = {
    "auc": auc,
    "gauc": lambda *columns: gauc(*columns).value,
    "log_loss": log_loss,
    "calibration_error": lambda labels, scores: abs(calibration(labels, scores) - 1.0),
}


def impressions(seed, users=60):
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rng.integers(2, 15, users))
    taste = rng.normal(size=users)[user]
    scores = 1 / (1 + np.exp(-np.round(rng.normal(size=user.size) + taste, 1)))
    return (rng.random(user.size) < scores).astype(int), scores, user


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_weights_count_rows_as_often(metric):
    labels, scores, users = impressions(0)
    weights = np.random.default_rng(1).integers(0, 3, users.size)
    weights[np.unique(users, return_index=True)[1]] = 1
    repeated = [np.repeat(column, weights) for column in (labels, scores, users)]
    expected = user_bootstrap(metric, *repeated, baseline_scores=1 - repeated[1], replicates=30)
    found = user_bootstrap(metric, labels, scores, users, baseline_scores=1 - scores, weights=weights, replicates=30)
    assert set(repeated[2]) == set(users)  # the same users are drawn
    for name in ("value", "low", "high", "standard_error"):
        assert getattr(found, name) == pytest.approx(getattr(expected, name), abs=1e-12)


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_replicates_equal_the_metric_on_copied_users(metric):
    labels, scores, users = impressions(0)
    interval = user_bootstrap(metric, labels, scores, users, replicates=30, seed=4)
    generator = np.random.default_rng(4)
    drawn = []
    for _ in range(30):
        chosen = generator.integers(0, 60, 60)
        rows = [np.flatnonzero(users == user) for user in chosen]
        copies = np.repeat(np.arange(60), [len(each) for each in rows])  # each copy is a user of its own
        rows = np.concatenate(rows)
        columns = (labels[rows], scores[rows], copies)[: 3 if metric == "gauc" else 2]
        drawn.append(FUNCTIONS[metric](*columns))
    columns = (labels, scores, users)[: 3 if metric == "gauc" else 2]
    assert interval.value == pytest.approx(FUNCTIONS[metric](*columns), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx(
        tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-12
    )
    assert interval.standard_error == pytest.approx(np.std(drawn, ddof=1), abs=1e-12)
    assert interval.replicates == 30


def test_paired_difference_is_narrower_than_the_two_apart():
    labels, scores, users = impressions(1, users=200)
    noisy = np.clip(scores + np.random.default_rng(0).normal(0, 0.02, scores.size), 0, 1)
    alone = user_bootstrap("gauc", labels, scores, users, replicates=200)
    paired = user_bootstrap("gauc", labels, scores, users, baseline_scores=noisy, replicates=200)
    expected = gauc(labels, scores, users).value - gauc(labels, noisy, users).value
    assert paired.value == pytest.approx(expected, abs=1e-12)
    assert paired.standard_error < 0.5 * alone.standard_error


def test_same_seed_gives_the_same_interval():
    columns = impressions(2)
    first, second, other = (user_bootstrap("auc", *columns, replicates=20, seed=seed) for seed in (1, 1, 2))
    assert first == second
    assert first != other


@pytest.mark.slow
def test_interval_covers_the_truth_about_as_often_as_it_says():
    """Log loss of a known process, its expectation from many users; 95 % intervals from 100 users."""
    truth = log_loss(*impressions(10**6, users=100_000)[:2])
    covered = [
        interval.low <= truth <= interval.high
        for seed in range(200)
        for interval in [user_bootstrap("log_loss", *impressions(seed, users=100), replicates=200)]
    ]
    assert (
        0.88 <= np.mean(covered) <= 0.99
    )  # 200 trials: two standard errors are 3 points; percentile runs low


def test_mean_draws_groups_together():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(50), rng.integers(1, 9, 50))
    values = rng.random(groups.size)
    interval = mean_interval(values, groups, replicates=40, seed=3)
    generator, drawn = np.random.default_rng(3), []
    for _ in range(40):
        rows = np.concatenate([np.flatnonzero(groups == group) for group in generator.integers(0, 50, 50)])
        drawn.append(values[rows].mean())
    assert interval.value == pytest.approx(values.mean(), abs=1e-12)
    assert (interval.low, interval.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=1e-12)
    with pytest.raises(ValueError, match="A mean needs at least one row"):
        mean_interval([], [])


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"metric": "ndcg"}, "`metric` must be one of auc, calibration_error, gauc, log_loss. Received: 'ndcg'"),
        ({"replicates": 1}, "`replicates` must be at least 2. Received: 1"),
        ({"level": 95}, "`level` must lie between 0 and 1. Received: 95. Write 95 % as 0.95"),
        ({"user_ids": [1, 2]}, "one value per row, 4. Received: 2"),
        ({"metric": "log_loss", "labels": [], "scores": [], "user_ids": []}, "one row with a weight above 0"),
        ({"metric": "auc", "labels": [], "scores": [], "user_ids": []}, "AUC needs both classes"),
        ({"labels": [], "scores": [], "user_ids": []}, "GAUC needs at least one row"),
        ({"labels": [1, 1, 1, 1]}, "GAUC needs at least one user with both"),
        ({"metric": "auc", "labels": [1, 1, 1, 1]}, "AUC needs both classes"),
        ({"metric": "log_loss", "scores": [0.1, 0.2, 3.0, 0.1]}, "Received: 3.0. Apply the sigmoid"),
    ],
)
def test_refuses(changes, match):
    arguments = {
        "metric": "gauc",
        "labels": [1, 0, 1, 0],
        "scores": [0.1, 0.2, 0.3, 0.4],
        "user_ids": [1, 1, 2, 2],
    }
    with pytest.raises(ValueError, match=match):
        user_bootstrap(**{**arguments, **changes})


@pytest.mark.parametrize("metric", FUNCTIONS)
def test_many_users_are_drawn_in_bundles_with_an_interval_as_wide(metric, monkeypatch):
    labels, scores, users = impressions(0, users=3000)
    other = 1 - scores
    each = user_bootstrap(metric, labels, scores, users, baseline_scores=other, replicates=400)
    monkeypatch.setattr(confidence, "MAX_DRAWN", 700)
    bundled = user_bootstrap(metric, labels, scores, users, baseline_scores=other, replicates=400)
    assert bundled.value == pytest.approx(each.value, abs=1e-12)
    assert bundled.standard_error == pytest.approx(each.standard_error, rel=0.2)
    assert bundled != each and bundled.low < each.value < bundled.high


def test_a_gain_is_that_of_copied_users_drawn_for_both_alike():
    rng = np.random.default_rng(0)
    shown, clicks = rng.integers(1, 30, 80), rng.integers(0, 8, 80)
    base_shown, base_clicks = shown + rng.integers(0, 3, 80), np.maximum(clicks - rng.integers(0, 2, 80), 0)
    columns = clicks, shown, base_clicks, base_shown
    interval = confidence.gain_interval(*columns, replicates=40, seed=4)
    assert interval.value == pytest.approx(clicks.sum() / shown.sum() / (base_clicks.sum() / base_shown.sum()) - 1)
    generator, drawn = np.random.default_rng(4), []
    for _ in range(40):
        chosen = generator.integers(0, 80, 80)
        a, b, c, d = (column[chosen].sum() for column in columns)
        drawn.append((a / b) / (c / d) - 1)
    assert [interval.low, interval.high] == pytest.approx(np.quantile(drawn, [0.025, 0.975]).tolist())
    apart = confidence.gain_interval(clicks, shown, *(np.roll(column, 7) for column in columns[2:]), seed=4)
    paired = confidence.gain_interval(*columns, seed=4)
    assert paired.high - paired.low < 0.6 * (apart.high - apart.low)  # users that click much do so in both


def test_a_gain_over_nothing_has_no_value():
    nothing = confidence.gain_interval(np.ones(3), np.ones(3), np.zeros(3), np.ones(3), replicates=10)
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()
