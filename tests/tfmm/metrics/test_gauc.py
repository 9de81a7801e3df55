"""GAUC: against a loop over users with scikit-learn, its three weightings, what it leaves out, its errors."""

import pickle

import hypothesis
import numpy as np
import pytest
import sklearn.metrics
from hypothesis import strategies as st

from tfmm.metrics import GAUC, gauc, user_aucs


def loop(labels, scores, users, weighting):
    aucs, weights, left_out = [], [], 0
    for user in sorted(set(users.tolist())):
        mine = users == user
        clicks = labels[mine].sum()
        if clicks in (0, mine.sum()):
            left_out += 1
            continue
        aucs.append(sklearn.metrics.roc_auc_score(labels[mine], scores[mine]))
        weights.append({"impressions": mine.sum(), "users": 1, "clicks": clicks}[weighting])
    return (np.average(aucs, weights=weights) if aucs else None), len(aucs), left_out


@pytest.mark.parametrize("weighting", ["impressions", "users", "clicks"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_agrees_with_a_loop_over_users(weighting, dtype):
    score = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(-2, 2))
    row = st.tuples(st.integers(0, 1), score, st.sampled_from([-5, 0, 3, 2**62, 2**62 + 1]))

    @hypothesis.given(st.lists(row, min_size=1, max_size=60))
    def check(sample):
        labels, scores, users = (np.array(column) for column in zip(*sample))
        scores = scores.astype(dtype)
        value, counted, left_out = loop(labels, scores, users, weighting)
        hypothesis.assume(value is not None)
        result = gauc(labels, scores, users, weighting)
        assert result.value == pytest.approx(value, abs=1e-12)
        assert (result.users, result.users_left_out) == (counted, left_out)
        assert result.impressions + result.impressions_left_out == labels.size

    check()


@pytest.mark.parametrize("decimals", [3, 17])
def test_scores_that_meet_in_float32_are_told_apart(decimals):
    rng = np.random.default_rng(0)
    users, labels = rng.integers(0, 60, 2000), rng.integers(0, 2, 2000)
    scores = rng.normal(size=2000).round(decimals)  # three decimals: equal ones, which stay ties
    near = np.flatnonzero(users < 20)  # of 17 decimals, only these meet
    scores[near] = 0.3 + rng.integers(-2, 3, near.size) * 1e-12
    expected, counted, _ = loop(labels, scores, users, "impressions")
    result = gauc(labels, scores, users)
    assert result.users == counted
    assert result.value == pytest.approx(expected, abs=1e-12)


def test_string_ids_and_shuffled_rows_give_the_same():
    rng = np.random.default_rng(0)
    users, labels, scores = rng.integers(0, 40, 900), rng.integers(0, 2, 900), rng.random(900)
    expected = gauc(labels, scores, users)
    order = rng.permutation(900)
    assert gauc(labels[order], scores[order], np.char.add("u", users[order].astype(str))) == expected


def test_gauc_does_not_see_what_tells_users_apart():
    labels, users = np.array([1, 0, 1, 0]), np.array([1, 1, 2, 2])
    scores = np.array([0.2, 0.1, 0.9, 0.8])  # user 2 scores higher throughout
    assert gauc(labels, scores, users) == gauc(labels, scores - 0.7 * (users == 2), users)


@hypothesis.given(
    st.lists(
        st.tuples(
            st.integers(0, 1), st.sampled_from([-0.0, 0.0, 0.3, 0.5, 1e-9]), st.integers(0, 4), st.integers(0, 3)
        ),
        min_size=1,
        max_size=60,
    ),
    st.sampled_from(["impressions", "users", "clicks"]),
)
def test_weights_count_rows_as_often(sample, weighting):
    labels, scores, users, weights = (np.array(column) for column in zip(*sample))
    repeated = [np.repeat(column, weights) for column in (labels, scores, users)]
    hypothesis.assume(repeated[0].size and not np.isnan(user_aucs(*repeated).auc).all())
    expected = gauc(*repeated, weighting)
    found = gauc(labels, scores, users, weighting, weights)
    assert found.value == pytest.approx(expected.value, abs=1e-12)
    assert found.users == expected.users
    scaled = gauc(labels, scores, users, weighting, weights * 1e-200)
    assert scaled.value == pytest.approx(expected.value, abs=1e-12)


def test_weights_of_many_users_are_exact_however_they_differ():
    rng = np.random.default_rng(0)
    users, labels, scores = rng.integers(0, 2000, 40_000), rng.integers(0, 2, 40_000), rng.random(40_000).round(2)
    weights = 10.0 ** rng.integers(-6, 7, 2000)[users]  # one within a user: no AUC moves, what users weigh does
    plain, found = user_aucs(labels, scores, users), user_aucs(labels, scores, users, weights)
    np.testing.assert_allclose(found.auc, plain.auc, atol=1e-12)
    assert (found.impressions == plain.impressions).all() and (found.clicks == plain.clicks).all()
    by_weight = 10.0 ** np.log10(np.bincount(users, weights))
    np.testing.assert_allclose(found.weights("impressions"), by_weight, rtol=1e-9)


def test_metric_takes_weights():
    metric = GAUC()
    metric.update_state([1, 0], [0.2, 0.5], [7, 7], sample_weight=[1.0, 2.0])
    metric.update_state([0, 1, 0], [0.1, 0.9, 0.5], [7, 8, 8], sample_weight=[6.0, 1.0, 1.0])
    assert metric.result() == pytest.approx((9 * 6 / 8 + 2 * 1.0) / 11)
    with pytest.raises(ValueError, match="`weights` must not be negative"):
        metric.update_state([1, 0], [0.2, 0.5], [7, 7], sample_weight=[1.0, -2.0])


def test_user_aucs_come_in_order_of_id():
    users = user_aucs([1, 0, 0, 1, 1], [0.9, 0.1, 0.5, 0.2, 0.7], [8, 8, 3, 3, 5])
    assert users.user_ids.tolist() == [3, 5, 8]
    np.testing.assert_array_equal(users.auc, [0.0, np.nan, 1.0])
    assert users.impressions.tolist() == [2, 1, 2]
    assert users.clicks.tolist() == [1, 1, 1]


def test_users_without_a_click_have_no_auc():
    users = user_aucs([0, 0, 0], [0.1, 0.1, 0.2], [-4, 9, -4])
    assert users.user_ids.tolist() == [-4, 9]
    assert np.isnan(users.auc).all()
    assert users.impressions.tolist() == [2, 1]


@pytest.mark.parametrize("dtype", [np.int8, np.uint64, np.int64])
def test_ids_keep_their_type_and_value(dtype):
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    for ids in ([high, high - 1, high], [low, low + 1, high] * 30):
        size = len(ids)
        users = user_aucs(np.arange(size) % 3 > 0, np.arange(size), np.array(ids, dtype))
        assert users.user_ids.dtype == dtype
        assert users.user_ids.tolist() == sorted(set(ids))
        assert users.impressions.sum() == size


@pytest.mark.parametrize("score", [np.array([2**53, 2**53 + 1]), np.array([1.0, 1e300])])
def test_scores_that_float32_does_not_hold_are_not_rounded(score):
    assert gauc([0, 1], score, [3, 3]).value == 1.0


@pytest.mark.parametrize(
    "ids",
    [
        np.array([2**64 - 1, 2**64 - 2, 0], np.uint64),
        np.array([-(2**63), -1, 5]),
        np.array(["u1", "user 22", "u"]),
        np.array(["u1", "user 22", "u"], object),
        np.array([b"a", b"b", b"c"]),
        np.array([2**70, -1, 5], object),
    ],
)
def test_ids_of_any_kind_merge_over_workers(ids):
    rng = np.random.default_rng(1)
    labels, scores, users = rng.integers(0, 2, 90), rng.integers(0, 9, 90), rng.integers(0, 3, 90)
    workers = [GAUC(), GAUC(), GAUC()]
    for worker, rows in zip(workers, np.split(np.arange(90), [20, 50])):
        worker.update_state(labels[rows], scores[rows], ids[users[rows]])
    whole = GAUC()
    whole.merge_state(pickle.loads(pickle.dumps(workers)))
    expected = gauc(labels, scores, users).value
    assert whole.result() == pytest.approx(expected, abs=1e-15)  # the users are added in another order
    assert whole.details().users == 3


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [
        (np.array([1, 2]), np.array(["1", "2"]), "one type in all batches. Received: int64, which becomes <U21"),
        (np.array([1, 2]), np.array([1, 2], np.uint64), "Received: int64, which becomes float64 beside"),
        (np.array([1, 2], object), np.array(["1", "2"]), "all integers or all strings. Received: 1, '1'|2, '2'"),
    ],
)
def test_ids_of_two_kinds_do_not_merge(first, second, match):
    metric = GAUC()
    metric.update_state([0, 1], [0.1, 0.2], first)
    metric.update_state([0, 1], [0.1, 0.2], second)
    with pytest.raises(ValueError, match=match):
        metric.result()


@pytest.mark.parametrize(
    ("labels", "users", "weighting", "match"),
    [
        ([0, 1], [1, 2], "impressions", "both a click and a non-click. Received: 2 users with one class"),
        ([0, 1], [1, 1], "sessions", "one of impressions, users, clicks. Received: 'sessions'"),
        ([0, 1], [1], "users", "one value per row, 2. Received: 1"),
        ([0, 1], [1.0, 1.0], "users", "integers or strings. Received: float64"),
        ([0, 1], np.array([1.0, 1.0], object), "users", "all integers or all strings. Received: 1.0. Give"),
        ([0, 1], [None, "a"], "users", "all integers or all strings. Received: None, 'a'. Give rows without an id"),
        ([0, 1], [1, "1"], "users", "all integers or all strings. Received: 1, '1'"),
        ([0, 1], [True, False], "users", "integers or strings. Received: bool"),
        ([0, 1], np.array([True, 2], object), "users", "Received: True, 2"),
        ([0, 3], [1, 1], "users", "`labels` must be 0 or 1. Received: 3"),
        ([], np.zeros(0, int), "users", "at least one row. Received: 0 rows"),
    ],
)
def test_refuses(labels, users, weighting, match):
    with pytest.raises(ValueError, match=match):
        gauc(labels, np.linspace(0, 1, len(labels)), users, weighting)
