"""Exact area under the ROC curve, ties averaged."""

from __future__ import annotations

import typing

import keras
import numpy as np
import numpy.typing as npt

from tfmm.metrics.inputs import binary_labels, finite_scores, sample_weights
from tfmm.metrics.state import RowsMetric, host_array


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Computes the probability that a click scores above a non-click, a tie counting one half.

    Exact: one sort, no thresholds; without weights the pairs are counted in whole numbers.

    Args:
        labels: 0 or 1, [n].
        scores: finite floats [n]; probabilities or logits.
        weights: optional floats [n] >= 0, how often each row counts.
    Returns:
        float in [0, 1].
    Raises:
        ValueError: labels other than 0 and 1, a score that is not finite, or rows of one class only.

    >>> auc([0, 1, 0, 1], [0.1, 0.4, 0.4, 0.8])     # pairs won: 1, 0.5, 1, 1 of 4
    0.875
    """
    clicked = binary_labels(labels)
    values = finite_scores("scores", scores, clicked.size)
    row_weights = sample_weights(weights, clicked.size)
    check_both_classes(clicked if row_weights is None else clicked[row_weights > 0])
    if row_weights is not None:
        return _weighted_auc(clicked, values, row_weights)
    positives = int(np.count_nonzero(clicked))
    pairs = positives * (clicked.size - positives)
    marks = clicked if 2 * positives <= clicked.size else ~clicked  # the rarer class: less to count
    keys = score_keys(values)
    keys <<= 1
    keys |= marks
    keys.sort()
    won = int(pairs_won(keys)[1].sum())
    return (won if marks is clicked else 2 * pairs - won) / (2 * pairs)


def _weighted_auc(clicked: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(scores)
    scores, clicked, weights = scores[order], clicked[order], weights[order]
    starts = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
    positives = np.add.reduceat(weights * clicked, starts)
    negatives = np.add.reduceat(weights * ~clicked, starts)
    below = np.cumsum(negatives) - negatives
    return float(np.dot(positives, below + 0.5 * negatives) / (positives.sum() * negatives.sum()))


def score_keys(scores: np.ndarray) -> np.ndarray:
    """Maps scores to whole numbers in the same order, equal where the scores are equal.

    Args:
        scores: float32 or float64 [n], finite.
    Returns:
        A new array, uint32 [n] of at most 31 bits, or uint64 [n] of at most 32. Scores that float32 holds are
        keyed by their bits; other float64 scores are ranked first, so that nothing is rounded.
    """
    single = scores.astype(np.float32) + np.float32(0.0)  # + 0.0 turns -0.0 into 0.0
    if scores.dtype != np.float32 and not np.array_equal(single, scores):
        order = np.argsort(scores)
        ordered = scores[order]
        ranks = np.empty(scores.size, np.uint64)
        ranks[order] = np.cumsum(np.concatenate(([False], ordered[1:] != ordered[:-1])), dtype=np.uint64)
        return ranks
    bits = single.view(np.uint32)
    if bits.size == 0 or bits.max() < 2**31:  # no negative score: the bits are already in order
        return bits
    negative = bits >= 2**31
    return np.where(negative, ~bits, bits | np.uint32(2**31)).astype(np.uint64)


def check_both_classes(clicked: np.ndarray) -> None:
    """Refuses rows of one class only, where AUC has no value."""
    positives = int(np.count_nonzero(clicked))
    if positives in (0, clicked.size):
        raise ValueError(
            f"AUC needs both classes. Received: {positives} positives in {clicked.size} rows. "
            "Widen the sample, or leave this group out and count it."
        )


def pairs_won(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts, for each row of the marked class, the rows of the other class that it beats.

    Args:
        keys: uint32 or uint64 [n], ascending, score << 1 | mark: unmarked rows stand first in a tie.
    Returns:
        int64 [marked], places of the marked rows; int64 [marked], twice the unmarked rows before each, one
        in a tie counting once.
    """
    places = np.flatnonzero((keys & keys.dtype.type(1)).astype(bool))
    marked = keys[places]
    before = places - np.arange(places.size)  # unmarked rows before, those in the tie included
    first = np.flatnonzero(np.concatenate(([places.size > 0], marked[1:] != marked[:-1])))  # of each score
    ties = first[
        keys[places[first] - 1] == marked[first] - 1
    ]  # an unmarked row of this score stands before it
    tied = np.zeros(first.size, np.int64)
    tied[np.searchsorted(first, ties)] = places[ties] - np.searchsorted(keys, marked[ties] - 1)
    return places, 2 * before - np.repeat(tied, np.diff(first, append=places.size))


@keras.saving.register_keras_serializable("tfmm")
class AUC(RowsMetric):
    """Exact AUC over all batches, ties averaged; keeps label and score of every row in host memory.

    Call `update_state(labels, scores, sample_weight=None)` eagerly, or read the predictions and call `auc`.
    `BinnedAUC` is the one for `compile(metrics=[...])`. `result()` is NaN while one class is missing.

    >>> metric = AUC()
    >>> metric.update_state([0, 1], [0.1, 0.4])
    >>> metric.update_state([0, 1], [0.4, 0.8])
    >>> metric.result()
    0.875
    """

    def __init__(self, name: str = "auc", dtype: typing.Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def update_state(self, labels, scores, sample_weight=None) -> None:
        """Adds a batch: labels 0 or 1, [n] or [n, 1]; scores [n] or [n, 1]; weights [n]."""
        way_out = "Use BinnedAUC in `compile`, or `compile(run_eagerly=True)`."
        labels, scores = (host_array(self, values, way_out) for values in (labels, scores))
        clicked = binary_labels(labels)
        batch = {"labels": clicked, "scores": finite_scores("scores", scores, clicked.size)}
        if sample_weight is not None:
            weights = host_array(self, sample_weight, way_out)
            batch["weights"] = typing.cast(np.ndarray, sample_weights(weights, clicked.size))
        self.add_state(batch)

    def result(self) -> float:
        state = self.state()
        if not state:
            return float("nan")
        clicked, weights = state["labels"], state.get("weights")
        counted = clicked if weights is None else clicked[weights > 0]
        return auc(clicked, state["scores"], weights) if counted.any() and not counted.all() else float("nan")
