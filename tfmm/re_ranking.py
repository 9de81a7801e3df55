"""Re-ranking: the order in which ranked items are shown, so that near-copies do not stand side by side.

The paper names the stage (section 6.4) and gives no design. This is maximal marginal relevance (Carbonell and
Goldstein, SIGIR 1998) over the scores of `rank` and the vectors of the item index: a function for the caller's own
service, and the place for rules of its own.
"""

from __future__ import annotations

import typing

import numpy as np

from tfmm.vectors import Vectors


def diverse(
    scores: typing.Any, vectors: typing.Mapping[str, Vectors], count: int, relevance: float = 0.7
) -> np.ndarray:
    """Returns the places of the items to show, in their order, by maximal marginal relevance.

    The best item comes first. Each next one has the highest relevance * score / best score - (1 - relevance) * (largest
    similarity to an item that stands already), ties by score, then by place. A similarity is the mean cosine over the
    modalities in which both items have a vector. Missing is not zero: where they share none, it counts as the mean of
    all that are known, so that an item without a vector is neither favored nor held back; where none is known, the
    order is that of the scores.

    Args:
        scores: float [C] >= 0, as `rank` gives them.
        vectors: by modality int8 rows [C, D], scales [C] and mask [C], as `IndexStore.look_up` gives them.
        count: how many to show; all, where there are fewer.
        relevance: in [0, 1]; 1 is the order of the scores.
    Returns:
        int64 [min(count, C)], places in `scores`.
    Raises:
        ValueError: a score that is negative or not finite, vectors of other items, a number out of its range.

    >>> rows, scales = np.array([[127, 0], [127, 0], [0, 127]], np.int8), np.full(3, 1 / 127, np.float32)
    >>> diverse([0.9, 0.8, 0.5], {"image": Vectors(rows, scales, np.ones(3, bool))}, count=2).tolist()
    [0, 2]
    """
    values = np.asarray(scores, np.float64)
    _require(values, vectors, count, relevance)
    gain = relevance * values / max(values.max(initial=0.0), np.finfo(np.float64).tiny)
    units = {name: _units(one) for name, one in vectors.items()}
    fallback = _mean_similarity(units)
    left = np.lexsort((np.arange(len(values)), -values))  # the best first: of equals it is taken
    nearest = np.full(len(values), -np.inf)
    chosen: list[int] = []
    while len(left) and len(chosen) < count:
        worth = gain[left] - ((1.0 - relevance) * nearest[left] if chosen else 0.0)
        place = int(left[np.argmax(worth)])
        chosen.append(place)
        left = left[left != place]
        nearest[left] = np.maximum(nearest[left], _similarities(units, place, left, fallback))
    return np.array(chosen, np.int64)


def _require(values: np.ndarray, vectors: typing.Mapping[str, Vectors], count: int, relevance: float) -> None:
    faults = []
    if values.ndim != 1 or not (np.isfinite(values) & (values >= 0.0)).all():
        faults.append(f"`scores` must be finite and at least 0, [C]. Received: {values.tolist()[:5]}.")
    for name, one in vectors.items():
        lengths = [len(part) for part in one]
        if lengths != [values.size] * 3:
            faults.append(f"`vectors[{name!r}]` must be those of the {values.size} items. Received: {lengths}.")
    if count < 1:
        faults.append(f"`count` must be at least 1. Received: {count}.")
    if not 0.0 <= relevance <= 1.0:
        faults.append(f"`relevance` must lie in 0..1. Received: {relevance}.")
    if faults:
        raise ValueError(" ".join(faults))


def _units(vectors: Vectors) -> tuple[np.ndarray, np.ndarray]:
    """Returns vectors of length 1, float64 [C, D], zeros where there is none, and bool [C]: which there are."""
    has = np.asarray(vectors.mask, bool) & (np.asarray(vectors.scales) > 0)
    rows = np.asarray(vectors.rows, np.float64) * np.asarray(vectors.scales, np.float64)[:, None]
    return np.where(has[:, None], rows, 0.0), has


def _mean_similarity(units: typing.Mapping[str, tuple[np.ndarray, np.ndarray]]) -> float:
    """Returns the mean cosine of two different items over modalities; 0 where no two have vectors."""
    total, pairs = 0.0, 0
    for vectors, has in units.values():
        total += float((vectors.sum(0) ** 2).sum() - (vectors**2).sum())  # of all pairs, in both orders
        pairs += int(has.sum()) * (int(has.sum()) - 1)
    return total / pairs if pairs else 0.0


def _similarities(
    units: typing.Mapping[str, tuple[np.ndarray, np.ndarray]], place: int, others: np.ndarray, fallback: float
) -> np.ndarray:
    total, known = np.zeros(len(others)), np.zeros(len(others))
    for vectors, has in units.values():
        total += vectors[others] @ vectors[place]
        known += has[others] & has[place]
    return np.where(known > 0, total / np.maximum(known, 1.0), fallback)
