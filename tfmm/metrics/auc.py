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

    Exact: sorted, no thresholds; without weights the pairs are counted in whole numbers.

    Args:
        labels: 0 or 1, [n].
        scores: finite numbers [n]; probabilities, logits or whole numbers.
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
    if row_weights is not None:
        return _weighted_auc(clicked, values, row_weights)
    check_both_classes(clicked)
    positives, negatives = values[clicked], values[~clicked]
    positives.sort()
    negatives.sort()
    few, many = sorted((positives, negatives), key=len)  # the rarer class looks its rows up in the other
    below = np.searchsorted(many, few)
    tied = many[np.minimum(below, many.size - 1)] == few  # most scores of a model are not: one search less
    up_to_ties = np.searchsorted(many, few[tied], side="right")
    beaten_twice = 2 * int(below.sum()) + int((up_to_ties - below[tied]).sum())
    pairs = positives.size * negatives.size
    return (beaten_twice if few is positives else 2 * pairs - beaten_twice) / (2 * pairs)


def _weighted_auc(clicked: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    order = np.flatnonzero(weights)
    order = order[np.argsort(scores[order])]
    scores, clicked, weights = scores[order], clicked[order], weights[order]
    check_both_classes(clicked)
    # the scale of a class cancels; without it the products of large or small weights leave the range of floats
    weights = weights / np.where(clicked, weights[clicked].max(), weights[~clicked].max())
    starts = np.flatnonzero(np.concatenate(([True], scores[1:] != scores[:-1])))
    positives = np.add.reduceat(weights * clicked, starts)
    negatives = np.add.reduceat(weights * ~clicked, starts)
    below = np.cumsum(negatives) - negatives
    won = float(np.dot(positives, below + 0.5 * negatives) / (positives.sum() * negatives.sum()))
    return min(won, 1.0)  # rounding may pass it


def check_both_classes(clicked: np.ndarray) -> None:
    """Refuses rows of one class only, where AUC has no value."""
    positives = int(np.count_nonzero(clicked))
    if positives in (0, clicked.size):
        raise ValueError(
            f"AUC needs both classes. Received: {positives} positives in {clicked.size} rows. "
            "Widen the sample, or leave this group out and count it."
        )


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
        """Adds a batch: labels 0 or 1, scores, each float [n] or [n, 1]; weights float [n]."""
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
