"""Metrics of a trainer's evaluation rows."""

from __future__ import annotations

import numpy as np

from tfmm.metrics.auc import auc
from tfmm.metrics.gauc import user_aucs

BATCH_SIZE = 2048


def ranking_metrics(labels: np.ndarray, scores: np.ndarray, user_ids: np.ndarray) -> dict[str, float]:
    """Returns `auc` and `gauc`; one that the rows cannot give (a single class) is left out."""
    if labels.min(initial=1) == labels.max(initial=0):
        return {}
    users = user_aucs(labels, scores, user_ids)
    result = {"auc": auc(labels, scores)}
    if not np.isnan(users.auc).all():
        result["gauc"] = users.gauc().value
    return result
