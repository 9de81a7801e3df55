"""Alignment and uniformity against a slow loop in float64, transcribed from Wang and Isola (2020)."""

import math

import numpy as np
import pytest

from tfmm.metrics import alignment, uniformity
from tfmm.metrics import alignment as module_function


def by_loops(queries, positives, items, t):
    unit = [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in queries.tolist()]
    other = [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in positives.tolist()]
    aligned = sum(sum((a - b) ** 2 for a, b in zip(u, v)) for u, v in zip(unit, other)) / len(unit)
    rows = [[x / math.sqrt(sum(v * v for v in row)) for x in row] for row in items.tolist()]
    terms = [
        math.exp(-t * sum((a - b) ** 2 for a, b in zip(u, v)))
        for i, u in enumerate(rows)
        for j, v in enumerate(rows)
        if i != j
    ]
    return aligned, math.log(sum(terms) / len(terms))


def test_values_are_those_of_the_loops_to_float64(monkeypatch):
    rng = np.random.default_rng(0)
    queries, positives, items = (rng.normal(size=(n, 8)) for n in (40, 40, 37))
    import importlib

    monkeypatch.setattr(importlib.import_module("tfmm.metrics.alignment"), "CHUNK", 7)  # chunks that do not divide
    wanted = by_loops(queries, positives, items, 3.0)
    found = alignment(queries, positives), uniformity(items, temperature=3.0)
    np.testing.assert_allclose(found, wanted, rtol=1e-12)  # one order of sums in place of another
    scaled = alignment(1e30 * queries, 1e-30 * positives)
    np.testing.assert_allclose(scaled, wanted[0], rtol=1e-12)


def test_a_collapse_is_told():
    same = np.ones((5, 3))
    assert alignment(same, same) == pytest.approx(0.0, abs=1e-15) and uniformity(same) == pytest.approx(0.0, abs=1e-15)
    spread = np.random.default_rng(0).normal(size=(500, 64))
    assert -4.2 < uniformity(spread) < -3.7  # about -2 t


def test_rows_of_zeros_have_no_direction():
    rows = np.array([[1.0, 0.0], [0.0, 0.0], [-1.0, 0.0]])
    assert uniformity(rows) == -8.0
    assert alignment(rows, rows[::-1]) == 4.0
    assert math.isnan(uniformity(rows[:2])) and math.isnan(alignment(rows[1:2], rows[:1]))


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"must both be \[n, D\].*Received: \(2, 3\) and \(2, 4\)"):
        module_function(np.ones((2, 3)), np.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`vectors` must be \[n, D\]"):
        uniformity(np.ones(3))


@pytest.mark.parametrize("chunk", [2, 1024])
def test_a_large_temperature_underflows_to_no_infinity(monkeypatch, chunk):
    import importlib

    monkeypatch.setattr(importlib.import_module("tfmm.metrics.alignment"), "CHUNK", chunk)
    rows = np.eye(5)  # all pairs are a squared distance of 2 apart
    assert uniformity(rows, temperature=1000.0) == pytest.approx(-2000.0, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_that_is_none_is_refused(temperature):
    with pytest.raises(ValueError, match="`temperature` must be a number above 0; the paper"):
        uniformity(np.eye(3), temperature)
