"""The probe: what vectors alone say about clicks."""

import json

import numpy as np
import pytest

from tfmm import metrics
from tfmm.evaluate import probe


@pytest.fixture
def rows():
    generator = np.random.default_rng(0)
    ids = np.sort(generator.choice(np.arange(1, 500), 60, replace=False)).astype(np.int64)
    vectors = generator.normal(size=(60, 7)).astype(np.float32)
    vectors[::9] = 0.0  # no embedding
    targets = generator.choice(np.append(ids, [501, 502]), 300)
    behaviors = np.where(generator.random((300, 5)) < 0.4, 0, generator.choice(np.append(ids, 600), (300, 5)))
    return ids, vectors, targets, behaviors


def slow(ids, vectors, targets, behaviors):
    held = {int(i): v.astype(np.float64) for i, v in zip(ids, vectors) if np.abs(v).max() > 0}
    cosines, known = [], []
    for target, history in zip(targets.tolist(), behaviors.tolist()):
        found = [
            held[target] @ held[item] / np.linalg.norm(held[target]) / np.linalg.norm(held[item])
            for item in history
            if target in held and item in held
        ]
        cosines.append(max(found) if found else 0.0)
        known.append(bool(found))
    return np.array(cosines), np.array(known)


@pytest.mark.parametrize("chunk_bytes", [1, 1_000, probe.CHUNK_BYTES])
def test_largest_cosines_equal_a_slow_loop(rows, chunk_bytes, monkeypatch):
    monkeypatch.setattr(probe, "CHUNK_BYTES", chunk_bytes)
    cosines, known = probe.largest_cosines(*rows)
    expected, has = slow(*rows)
    np.testing.assert_array_equal(known, has)
    np.testing.assert_allclose(cosines, expected, atol=1e-6)  # float32 dots
    assert 0 < known.sum() < len(known)


def test_int8_rows_give_the_cosines_of_their_values(rows):
    ids, _, targets, behaviors = rows
    int8 = np.random.default_rng(1).integers(-127, 128, (60, 7)).astype(np.int8)
    whole, _ = probe.largest_cosines(ids, int8, targets, behaviors)
    same, _ = probe.largest_cosines(ids, int8.astype(np.float32), targets, behaviors)
    np.testing.assert_array_equal(whole, same)


def test_a_negative_cosine_is_not_raised_by_padding_or_missing_items():
    ids, vectors = np.array([3, 5, 8]), np.array([[1.0, 0.0], [-1.0, 0.1], [0.0, 0.0]])
    cosines, known = probe.largest_cosines(ids, vectors, np.array([3]), np.array([[0, 5, 8, 77]]))
    assert known.all() and cosines[0] == pytest.approx(-1 / np.sqrt(1.01))


def test_nothing_known_where_nothing_is_embedded():
    empty = np.zeros(0, np.int64)
    cosines, known = probe.largest_cosines(empty, np.zeros((0, 4)), np.array([3]), np.array([[5, 0]]))
    assert not known.any() and not cosines.any()
    assert not probe.largest_cosines(np.array([3]), np.ones((1, 4)), np.array([3]), np.zeros((1, 0), np.int64))[1].any()


def test_judge_is_the_exact_gauc_with_its_gain_over_the_untrained():
    generator = np.random.default_rng(0)
    user, label = generator.integers(0, 40, 900), generator.integers(0, 2, 900)
    untrained = generator.random(900)
    trained = untrained + 0.3 * label
    found = probe.judge(label, user, trained, untrained)
    assert found["gauc"] == metrics.gauc(label, trained, user).value
    assert found["auc_untrained"] == metrics.auc(label, untrained)
    assert found["gauc_gain"] == found["gauc"] - found["gauc_untrained"] > 0
    assert found["gauc_gain_interval"]["low"] > 0.05
    assert (found["rows"], found["clicks"], found["users"]) == (900, int(label.sum()), 40)
    json.dumps(found, allow_nan=False)


def test_rows_of_one_class_have_no_value():
    found = probe.judge(np.zeros(3, int), np.arange(3), np.ones(3), np.ones(3))
    assert found["gauc"] is None and found["gauc_gain"] is None and found["rows"] == 3
    assert probe.judge(np.zeros(0, int), np.zeros(0, int), np.zeros(0))["auc"] is None
