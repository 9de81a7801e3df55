"""How two models differ on the same rows, with paired intervals: overall, on new items, on items without any vector."""

from __future__ import annotations

import typing

import numpy as np

from tfmm import metrics
from tfmm.training.labels import weights_of

METRICS = {"gauc": "GAUC", "log_loss": "LogLoss", "calibration_error": "Calibration error"}  # and their names in words
ALL, NEW_ITEMS, WITHOUT_VECTORS = "all", "new_items", "without_vectors"  # slices; the latter two are sets of items
SLICES = {ALL: "", NEW_ITEMS: "new items", WITHOUT_VECTORS: "items without any vector"}
LEVEL = 0.99  # of an interval: some twenty are judged at once; of the sampling alone, without the spread of retraining
REPLICATES = 1000  # draws of users
MIN_CLICKS = 30


def report(
    scores: typing.Mapping[str, np.ndarray],
    references: typing.Iterable[str],
    labels: np.ndarray,
    user_ids: np.ndarray,
    item_ids: np.ndarray,
    slices: typing.Mapping[str, np.ndarray],
    weights: np.ndarray | None = None,
) -> dict[str, typing.Any]:
    """Compares each model with each reference on each slice.

    Args:
        scores: per model, probability float [n].
        references: models that the others are held against; where there are no others, the first is.
        labels: int [n], 0 or 1.
        user_ids, item_ids: int64 [n].
        slices: per name of `SLICES`, bool [n].
        weights: float [n], how many rows each stands for; None: one.
    Returns:
        Per model, reference and slice, `slice_difference`.
    """
    held_against = [name for name in references if name in scores]
    return {
        model: {
            reference: {
                name: slice_difference(
                    labels[rows],
                    scores[model][rows],
                    scores[reference][rows],
                    user_ids[rows],
                    weights_of(weights, rows),
                    item_ids=None if name == ALL else item_ids[rows],
                )
                for name, rows in slices.items()
            }
            for reference in held_against
            if reference != model
        }
        for model in [name for name in scores if name not in held_against] or held_against[:1]
    }


def slice_difference(
    labels: np.ndarray,
    scores: np.ndarray,
    reference_scores: np.ndarray,
    user_ids: np.ndarray,
    weights: np.ndarray | None = None,
    wanted: typing.Iterable[str] = tuple(METRICS),
    item_ids: np.ndarray | None = None,
) -> dict[str, typing.Any]:
    """Returns a model's metrics minus the reference's, each with its interval over users, drawn for both alike.

    A model errs once per item, and all who see the item repeat it: a slice of few items has few errors, whatever the
    number of users. So where items make the slice, LogLoss and calibration have the wider bounds of users and of
    items drawn, and few items are not judged. The three metrics on 2 million rows of 500,000 users take about 7 s.

    Args:
        labels, scores, reference_scores, user_ids, weights: [n], of one slice.
        wanted: the metrics.
        item_ids: [n], where the slice is a set of items.
    Returns:
        `rows`, `clicks`, `users`, and `items` where given; per metric wanted its `value`, `low`, `high` and `level`,
        or None with what it is short of under `undefined`. The calibration error is how far predicted over observed
        clicks is from 1.
    """
    counted = np.ones(len(labels), bool) if weights is None else weights > 0
    clicks, users = int(labels[counted].sum()), len(np.unique(user_ids[counted]))
    found: dict[str, typing.Any] = {"rows": len(labels), "clicks": clicks, "users": users, "undefined": {}}
    needed = {"users": (users, metrics.MIN_GROUPS), "clicks": (clicks, MIN_CLICKS)}
    if item_ids is not None:
        found["items"] = len(np.unique(item_ids[counted]))
        needed["items"] = found["items"], metrics.MIN_GROUPS
    for metric in wanted:
        of_metric = dict(needed)
        if metric == "gauc" and users >= metrics.MIN_GROUPS:
            mixed = _users_of_both_classes(labels[counted], user_ids[counted])
            of_metric["users with a click and a non-click"] = mixed, metrics.MIN_GROUPS
        short = [f"{count:,} {what}, {least} are needed" for what, (count, least) in of_metric.items() if count < least]
        found[metric] = None
        if short:
            found["undefined"][metric] = "; ".join(short)
            continue
        drawn = [user_ids] if item_ids is None or metric == "gauc" else [user_ids, item_ids]
        intervals = [
            metrics.user_bootstrap(
                metric,
                labels,
                scores,
                ids,
                baseline_scores=reference_scores,
                weights=weights,
                replicates=REPLICATES,
                level=LEVEL,
            )
            for ids in drawn
        ]
        found[metric] = {
            "value": intervals[0].value,
            "low": min(interval.low for interval in intervals),
            "high": max(interval.high for interval in intervals),
            "level": LEVEL,
        }
    return found


def _users_of_both_classes(labels: np.ndarray, user_ids: np.ndarray) -> int:
    _, users = np.unique(user_ids, return_inverse=True)
    clicks, rows = np.bincount(users, labels), np.bincount(users)
    return int(np.count_nonzero((clicks > 0) & (clicks < rows)))
