"""Acc@N: against a loop over equation 6, ties that cannot flatter, the set of positives, and its errors."""

import numpy as np
import pytest

from tfmm.metrics import positive_ranks, top_n_accuracy


def equation_6(queries, positives, n):
    hits = 0
    for i, query in enumerate(queries):
        similarity = [float(query @ p / np.linalg.norm(query) / np.linalg.norm(p)) for p in positives]
        hits += i in sorted(range(len(positives)), key=lambda j: -similarity[j])[:n]
    return hits / len(queries)


@pytest.fixture
def pairs():
    rng = np.random.default_rng(5)
    queries = rng.normal(size=(120, 6))
    return queries, queries + rng.normal(size=(120, 6))


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_agrees_with_equation_6(pairs, chunk):
    expected = {n: equation_6(*pairs, n) for n in (1, 5, 20)}
    assert top_n_accuracy(*pairs, ns=(1, 5, 20), chunk=chunk) == expected
    assert 0 < expected[1] < expected[5] < expected[20] < 1


def test_collapsed_encoder_scores_zero_whatever_the_chunk():
    rng = np.random.default_rng(0)
    collapsed = np.repeat(rng.normal(size=(1, 67)), 501, axis=0)
    for chunk in (3, 64, 501):
        assert top_n_accuracy(collapsed, collapsed, ns=(1, 5, 500), chunk=chunk) == {1: 0.0, 5: 0.0, 500: 0.0}


def test_zero_vector_of_an_unreadable_image_misses(pairs):
    queries, positives = pairs
    queries[3] = 0.0
    assert positive_ranks(queries, positives)[3] == 120


def test_zero_positive_of_an_unreadable_image_ranks_last():
    queries, positives = [[1.0, 0.0], [-1.0, 0.1]], [[0.0, 0.0], [-1.0, 0.0]]
    assert positive_ranks(queries, positives).tolist() == [2, 1]  # cosine 0 would beat the other's -1
    assert positive_ranks(queries, positives, positive_ids=["a", "b"]).tolist() == [2, 1]


@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1e30, 3e38])
def test_length_of_vectors_does_not_matter(scale):
    queries, positives = np.eye(2, dtype=np.float32) * np.float32(scale), np.eye(2)
    assert positive_ranks(queries, positives).tolist() == [1, 1]
    assert positive_ranks(positives, queries).tolist() == [1, 1]


def test_item_bought_by_several_queries_counts_once():
    positives = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    queries = np.array([[0.9, 0.1], [0.8, 0.3], [0.1, 0.9]])
    assert top_n_accuracy(queries, positives, ns=(1,)) == {1: pytest.approx(1 / 3)}
    assert top_n_accuracy(queries, positives, ns=(1,), positive_ids=["a", "a", "b"]) == {1: 1.0}


def test_n_beyond_the_set_is_always_right(pairs):
    assert top_n_accuracy(*pairs, ns=(120,)) == {120: 1.0}


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"positives": np.ones((3, 2))}, r"must both be \[D, dim\].*\(2, 2\) and \(3, 2\)"),
        ({"queries": np.ones((0, 2)), "positives": np.ones((0, 2))}, "at least one query. Received: 0 rows"),
        ({"queries": np.ones(2)}, r"`queries` must be \[D, dim\]. Received: shape \(2,\)"),
        ({"queries": [[1, 0], [np.nan, 1]]}, "`queries` must be finite. Received: NaN or infinity in row 1"),
        ({"ns": (0,)}, "`ns` must be an int of at least 1. Received: 0"),
        ({"ns": (1.5,)}, "`ns` must be an int of at least 1. Received: 1.5"),
        ({"chunk": 0}, "`chunk` must be an int of at least 1. Received: 0"),
        ({"positive_ids": [1]}, "one value per row, 2. Received: 1"),
        ({"positive_ids": ["a", "a"]}, r"One id must have one vector.*id 'a' \(row 1\)"),
        ({"positive_ids": [1.5, 2.5]}, "`positive_ids` must be integers or strings. Received: float64"),
        ({"positive_ids": [1, 1]}, r"One id must have one vector.*id 1 \(row 1\). Embed each item once"),
    ],
)
def test_refuses(changes, match):
    with pytest.raises(ValueError, match=match):
        top_n_accuracy(**{"queries": np.eye(2), "positives": np.eye(2), **changes})
