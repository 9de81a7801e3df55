"""Metrics of a trainer's evaluation rows."""

from __future__ import annotations

import numpy as np

from tfmm.metrics.auc import auc
from tfmm.metrics.gauc import user_aucs

BATCH_SIZE = 2048


def ranking_metrics(
    labels: np.ndarray, scores: np.ndarray, user_ids: np.ndarray, weights: np.ndarray | None = None
) -> dict[str, float]:
    """Returns `auc` and `gauc`; one that the rows cannot give (a single class) is left out."""
    counted = labels if weights is None else labels[weights > 0]
    if counted.min(initial=1) == counted.max(initial=0):
        return {}
    users = user_aucs(labels, scores, user_ids, weights)
    result = {"auc": auc(labels, scores, weights)}
    if not np.isnan(users.auc).all():
        result["gauc"] = users.gauc().value
    return result
