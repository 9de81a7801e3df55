"""Re-ranking by maximal marginal relevance: by hand, against a slow loop, by property."""

import numpy as np
import pytest

from tfmm import re_ranking
from tfmm.index import encode
from tfmm.vectors import Vectors


def draw(rng, count, dims=(6, 4), missing=0.3):
    result = {}
    for modality, dim in zip(("image", "text"), dims):
        rows, scales = encode.quantize(rng.normal(size=(count, dim)))
        result[modality] = Vectors(rows, scales, rng.random(count) >= missing)
    return rng.random(count), result


def slow(scores, vectors, count, relevance):
    """The definition, in loops over all pairs."""
    num = len(scores)

    def cosines(i, j):
        found = []
        for one in vectors.values():
            if one.mask[i] and one.mask[j]:
                found.append(float(one.rows[i].astype(float) @ one.rows[j]) * float(one.scales[i]) * one.scales[j])
        return found

    known = [value for i in range(num) for j in range(num) if i != j for value in cosines(i, j)]
    fallback = np.mean(known) if known else 0.0
    chosen = []
    while len(chosen) < min(count, num):
        def worth(i):
            gain = relevance * scores[i] / max(scores)
            near = max((np.mean(cosines(i, j) or [fallback]) for j in chosen), default=0.0)
            return gain - (1 - relevance) * near

        left = [i for i in range(num) if i not in chosen]
        chosen.append(max(left, key=lambda i: (round(worth(i), 12), scores[i], -i)))
    return chosen


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("relevance", [0.0, 0.4, 0.7, 1.0])
def test_it_is_the_definition(seed, relevance):
    scores, vectors = draw(np.random.default_rng(seed), 15)
    found = re_ranking.diverse(scores, vectors, 9, relevance)
    assert found.tolist() == slow(scores, vectors, 9, relevance)


def test_relevance_alone_is_the_order_of_scores_and_ties_by_place():
    _, vectors = draw(np.random.default_rng(0), 5)
    assert re_ranking.diverse([0.1, 0.4, 0.4, 0.0, 0.2], vectors, 9, 1.0).tolist() == [1, 2, 4, 0, 3]


def test_a_copy_of_the_best_comes_last_though_it_scores_second():
    rows, scales = encode.quantize(np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]))
    vectors = {"image": Vectors(rows, scales, np.ones(4, bool))}
    assert re_ranking.diverse([0.9, 0.89, 0.6, 0.5], vectors, 4, 0.5).tolist() == [0, 3, 2, 1]


def test_an_item_without_a_vector_is_not_taken_for_one_that_is_unlike_all():
    # Two like items and one without a vector: taken for similarity 0, it would overtake the better one.
    rows, scales = encode.quantize(np.array([[1.0, 0.0], [0.8, 0.6], [1.0, 0.0]]))
    vectors = {"image": Vectors(rows, scales, np.array([True, True, False]))}
    assert re_ranking.diverse([0.9, 0.8, 0.6], vectors, 3, 0.5).tolist() == [0, 1, 2]


def test_without_vectors_the_order_is_that_of_the_scores():
    scores, vectors = draw(np.random.default_rng(0), 6, missing=1.1)
    order = np.argsort(-scores).tolist()
    assert re_ranking.diverse(scores, vectors, 6, 0.2).tolist() == order
    assert re_ranking.diverse(scores, {}, 6, 0.2).tolist() == order


def test_it_shows_more_unlike_items_than_the_scores_would():
    scores, vectors = draw(np.random.default_rng(5), 200, missing=0.0)

    def likeness(places):
        units = np.concatenate([one.rows[places] * one.scales[places][:, None] for one in vectors.values()], axis=1)
        return float((units @ units.T)[~np.eye(len(places), dtype=bool)].mean())

    plain, found = np.argsort(-scores)[:10], re_ranking.diverse(scores, vectors, 10, 0.7)
    assert likeness(found) < likeness(plain)
    assert len(set(found.tolist())) == 10


def test_no_item_is_no_order():
    assert re_ranking.diverse([], {}, 3).tolist() == []
    assert re_ranking.diverse([0.0, 0.0], {}, 3).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"scores": [0.1, float("nan")]}, "`scores` must be finite and at least 0"),
        ({"scores": [0.1, -0.2], "count": 0}, r"at least 0, .* `count` must be at least 1\. Received: 0"),
        ({"scores": [0.1]}, r"`vectors\['image'\]` must be those of the 1 items\. Received: \[2, 2, 2\]"),
        ({"relevance": 1.5}, r"`relevance` must lie in 0\.\.1\. Received: 1\.5"),
    ],
)
def test_what_cannot_be_is_refused_all_at_once(change, words):
    _, vectors = draw(np.random.default_rng(0), 2)
    with pytest.raises(ValueError, match=words):
        re_ranking.diverse(**{"scores": [0.1, 0.2], "vectors": vectors, "count": 1, **change})
