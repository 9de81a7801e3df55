"""Item groups by frequency, and how much a model improves on another in each (section 6.3.3)."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from tfmm.metrics.auc import auc
from tfmm.metrics.inputs import binary_labels, probabilities, sample_weights
from tfmm.metrics.log_loss import log_loss


@dataclasses.dataclass(frozen=True)
class GroupComparison:
    """A model against its baseline on the impressions of one item group; NaN where a number has no value."""

    group: int  # 1: the items seen least in training
    impressions: int
    clicks: int
    auc: float
    baseline_auc: float
    auc_improvement: float  # (auc - baseline) / baseline
    log_loss: float
    baseline_log_loss: float
    log_loss_improvement: float  # (baseline - log loss) / baseline: positive is better


def item_frequencies(training_item_ids: npt.ArrayLike, item_ids: npt.ArrayLike) -> np.ndarray:
    """Counts how often each item occurs in the training impressions.

    Args:
        training_item_ids: ids [n], one per training impression.
        item_ids: ids [items], of the same type.
    Returns:
        int64 [items]; 0 for an item never seen.

    >>> item_frequencies([5, 7, 5], [7, 5, 9]).tolist()
    [1, 2, 0]
    """
    seen, counts = np.unique(np.asarray(training_item_ids), return_counts=True)
    wanted = np.asarray(item_ids)
    if seen.size == 0:
        return np.zeros(wanted.shape, np.int64)
    place = np.minimum(np.searchsorted(seen, wanted), seen.size - 1)
    return np.where(seen[place] == wanted, counts[place], 0)


def item_frequency_groups(frequencies: npt.ArrayLike, num_groups: int = 8) -> np.ndarray:
    """Divides items into groups of equal size, by frequency (section 6.3.3).

    Differs from the paper: it does not say whether groups have equal numbers of items or of impressions, nor
    where equal frequencies go. Here they have equal numbers of items (to one), and equal frequencies are
    divided in the order given, so give the items in an order that means nothing, such as that of their ids.

    Args:
        frequencies: int [items], occurrences in training.
        num_groups: int in [1, items].
    Returns:
        int64 [items], 1 for the least frequent to `num_groups`.
    Raises:
        ValueError: fewer items than groups.

    >>> item_frequency_groups([9, 0, 3, 5], num_groups=2).tolist()
    [2, 1, 1, 2]
    """
    counts = np.asarray(frequencies)
    if not 1 <= num_groups <= counts.size:
        raise ValueError(
            f"`num_groups` must lie between 1 and the number of items, {counts.size}. Received: {num_groups}."
        )
    groups = np.empty(counts.size, np.int64)
    groups[np.argsort(counts, kind="stable")] = np.arange(counts.size) * num_groups // counts.size + 1
    return groups


def compare_groups(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    baseline_scores: npt.ArrayLike,
    groups: npt.ArrayLike,
    num_groups: int = 8,
    weights: npt.ArrayLike | None = None,
) -> tuple[GroupComparison, ...]:
    """Compares a model with its baseline in each item group by AUC and log loss (section 6.3.3, figure 6b).

    Differs from the paper: it prints the absolute value of each relative change; here the sign stays,
    positive for better, so that a loss shows.

    Args:
        labels: 0 or 1, [n].
        scores: probabilities [n] of the model.
        baseline_scores: probabilities [n] of the baseline, the ID-only model in the paper.
        groups: int [n] in 1..num_groups, the group of each impression's item.
        num_groups: how many groups to report; one without impressions is reported with 0.
        weights: optional floats [n] >= 0, how often each row counts in AUC and log loss.
    Returns:
        One GroupComparison per group, in order.
    Raises:
        ValueError: labels other than 0 and 1, scores outside [0, 1], lengths that differ, a group out of
            range.
    """
    clicked = binary_labels(labels)
    model, baseline = probabilities(scores, clicked.size), probabilities(baseline_scores, clicked.size)
    group_of_row, row_weights = np.asarray(groups), sample_weights(weights, clicked.size)
    if group_of_row.shape != clicked.shape:
        raise ValueError(
            f"`groups` must have one group per label, {clicked.size}. Received: shape {group_of_row.shape}."
        )
    outside = (group_of_row < 1) | (group_of_row > num_groups)
    if outside.any():
        raise ValueError(f"`groups` must lie in 1..{num_groups}. Received: {group_of_row[outside][0]}.")
    return tuple(
        _compare(
            group, clicked[rows], model[rows], baseline[rows], None if row_weights is None else row_weights[rows]
        )
        for group in range(1, num_groups + 1)
        for rows in [group_of_row == group]
    )


def relative_improvement(value: float, baseline: float) -> float:
    """Returns (value - baseline) / baseline, NaN where the baseline is 0."""
    return (value - baseline) / baseline if baseline else float("nan")


def _compare(
    group: int, clicked: np.ndarray, model: np.ndarray, baseline: np.ndarray, weights: np.ndarray | None
) -> GroupComparison:
    counted = clicked if weights is None else clicked[weights > 0]
    both_classes = counted.any() and not counted.all()
    aucs = [auc(clicked, scores, weights) if both_classes else float("nan") for scores in (model, baseline)]
    losses = [log_loss(clicked, scores, weights) if counted.size else float("nan") for scores in (model, baseline)]
    return GroupComparison(
        group=group,
        impressions=clicked.size,
        clicks=int(clicked.sum()),
        auc=aucs[0],
        baseline_auc=aucs[1],
        auc_improvement=relative_improvement(*aucs),
        log_loss=losses[0],
        baseline_log_loss=losses[1],
        log_loss_improvement=-relative_improvement(*losses),
    )
