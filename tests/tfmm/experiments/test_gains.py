import numpy as np
import pytest

from tfmm.experiments import gains
from tfmm.experiments.encoder_runs import correlation


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(200), 10)
    return gains.Rows(rng.integers(0, 2, 2000), users, rng.integers(0, 50, 2000), None)


def reference_gauc(rows, scores, counts):
    """GAUC by its definition: pairs won inside each user, weighed by impressions; users of one class left out."""
    won = total = 0.0
    for user in np.unique(rows.users):
        of = rows.users == user
        positive, negative = scores[of & (rows.labels == 1)], scores[of & (rows.labels == 0)]
        if len(positive) and len(negative):
            pairs = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
            won += counts[user] * of.sum() * pairs.mean()
            total += counts[user] * of.sum()
    return won / total


def test_the_gain_is_the_mean_over_seeds_of_what_the_definition_says(rows):
    rng = np.random.default_rng(1)
    scores, baseline = rng.random((3, 2000)), rng.random((3, 2000))
    found = gains.gain(rows, scores, baseline, replicates=50)
    ones = np.ones(200)
    wanted = [reference_gauc(rows, a, ones) - reference_gauc(rows, b, ones) for a, b in zip(scores, baseline)]
    np.testing.assert_allclose(found["gauc"]["by_seed"], wanted, atol=1e-12)
    assert found["gauc"]["value"] == pytest.approx(np.mean(wanted))
    losses = [-np.log(np.where(rows.labels == 1, one, 1 - one)).mean() for one in (*scores, *baseline)]
    assert found["logloss"]["value"] == pytest.approx(np.mean(losses[:3]) - np.mean(losses[3:]))


def test_the_interval_holds_what_drawing_users_by_hand_gives(rows):
    rng = np.random.default_rng(2)
    baseline = rng.random(2000)
    scores = np.clip(baseline + 0.1 * (rows.labels - 0.5), 0.0, 1.0)
    found = gains.gain(rows, [scores], [baseline])["gauc"]
    draws = []
    for _ in range(100):
        counts = np.bincount(rng.integers(0, 200, 200), minlength=200)
        draws.append(reference_gauc(rows, scores, counts) - reference_gauc(rows, baseline, counts))
    low, high = np.quantile(draws, [0.025, 0.975])
    assert 0.0 < found["low"] < found["value"] < found["high"]
    assert found["low"] == pytest.approx(low, abs=0.3 * (high - low))
    assert found["high"] == pytest.approx(high, abs=0.3 * (high - low))


def test_a_method_against_itself_has_no_gain(rows):
    scores = [np.random.default_rng(3).random(2000)]
    found = gains.gain(rows, scores, scores, replicates=20)
    assert found["gauc"]["value"] == found["gauc"]["low"] == found["gauc"]["high"] == 0.0


def test_weights_count_rows_as_often_as_they_say(rows):
    rng = np.random.default_rng(4)
    weights = rng.integers(1, 4, 2000)
    repeated = np.repeat(np.arange(2000), weights)
    twice = gains.Rows(rows.labels[repeated], rows.users[repeated], rows.items[repeated], None)
    weighed = gains.Rows(rows.labels, rows.users, rows.items, weights.astype(float))
    scores, baseline = rng.random(2000), rng.random(2000)
    found = gains.gain(weighed, [scores], [baseline], replicates=20)
    wanted = gains.gain(twice, [scores[repeated]], [baseline[repeated]], replicates=20)
    for metric in ("gauc", "auc", "logloss"):
        assert found[metric]["value"] == pytest.approx(wanted[metric]["value"])


def test_the_correlation_is_pearsons_with_fishers_interval():
    points = [(0.1, 1.0), (0.2, 1.4), (0.3, 1.9), (0.4, 1.8), (0.5, 2.6)]
    value, low, high, slope = correlation(points, 0.1)
    assert value == pytest.approx(np.corrcoef(*np.array(points).T)[0, 1])
    assert low < value < high and slope == pytest.approx(0.36)
    assert np.isnan(correlation(points[:3], 0.1)).all()
    assert np.isnan(correlation([(0.1, 1.0)] * 5, 0.1)).all()
