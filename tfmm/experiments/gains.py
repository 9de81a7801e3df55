"""Metrics of a method over seeds, and its gain over another with an interval over users, drawn for both alike."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np

from tfmm import metrics
from tfmm.metrics.confidence import ratio_interval
from tfmm.metrics.log_loss import row_losses
from tfmm.training.labels import metric_weights

REPLICATES = 1000  # draws of users
LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Rows:
    """Held-out rows: labels, users and items [n]; `weights` float [n], or None where each counts once."""

    labels: np.ndarray
    users: np.ndarray
    items: np.ndarray
    weights: np.ndarray | None

    @classmethod
    def of(cls, source: typing.Any, label: typing.Any) -> Rows:
        """Reads them from an `ExampleSource`."""
        columns = {name: source.column(name) for name in ("user_id", "item_id", *label.sources)}
        return cls(columns["label"], columns["user_id"], columns["item_id"], metric_weights(columns, label))


def means(rows: Rows, scores: typing.Sequence[np.ndarray]) -> dict[str, typing.Any]:
    """Returns the mean over seeds of `gauc`, `auc` and `logloss`, and each seed's GAUC as `gauc_by_seed`."""
    found = {
        "gauc": [metrics.gauc(rows.labels, one, rows.users, weights=rows.weights).value for one in scores],
        "auc": [metrics.auc(rows.labels, one, rows.weights) for one in scores],
        "logloss": [metrics.log_loss(rows.labels, one, rows.weights) for one in scores],
    }
    return {**{name: float(np.mean(values)) for name, values in found.items()}, "gauc_by_seed": found["gauc"]}


def gain(
    rows: Rows, scores: typing.Sequence[np.ndarray], baseline: typing.Sequence[np.ndarray], replicates: int = REPLICATES
) -> dict[str, typing.Any]:
    """Returns how a method differs from another, in the mean over the seeds that both have.

    Users are drawn with replacement, the same for both methods and all seeds, so that what is hard for both cancels.
    The interval says what other users would change; other seeds are `by_seed`.

    Args:
        rows: n of them.
        scores, baseline: probabilities float [n] per seed.
        replicates: draws.
    Returns:
        Per `gauc` and `logloss`: `value`, `low` and `high`, and of GAUC `by_seed`; `auc`: `value` and `by_seed`.
    """
    pairs = list(zip(scores, baseline, strict=False))
    aucs = [[metrics.user_aucs(rows.labels, one, rows.users, rows.weights) for one in pair] for pair in pairs]
    weights = aucs[0][0].weights("impressions")
    by_seed = [np.nan_to_num(left.auc) - np.nan_to_num(right.auc) for left, right in aucs]
    gauc = _drawn(weights * np.mean(by_seed, axis=0), weights, replicates)
    clicked, counts = rows.labels > 0, np.ones(len(rows.labels)) if rows.weights is None else rows.weights
    losses = [row_losses(clicked, a.astype(float)) - row_losses(clicked, b.astype(float)) for a, b in pairs]
    _, users = np.unique(rows.users, return_inverse=True)
    loss = np.bincount(users, counts * np.mean(losses, axis=0))
    auc = [metrics.auc(rows.labels, a, rows.weights) - metrics.auc(rows.labels, b, rows.weights) for a, b in pairs]
    return {
        "gauc": {**gauc, "by_seed": [float(weights @ one / weights.sum()) for one in by_seed]},
        "auc": {"value": float(np.mean(auc)), "by_seed": auc},
        "logloss": _drawn(loss, np.bincount(users, counts), replicates),
    }


def _drawn(won: np.ndarray, weights: np.ndarray, replicates: int) -> dict[str, float | None]:
    """Returns sum(won) / sum(weights) and its interval over users [m]; none of fewer that count than `MIN_GROUPS`."""
    found = ratio_interval(won, weights, replicates=replicates, level=LEVEL)
    has_interval = np.count_nonzero(weights) >= metrics.MIN_GROUPS
    return {"value": found.value, **{side: getattr(found, side) if has_interval else None for side in ("low", "high")}}
