"""The probe: what item vectors alone say about clicks, the largest cosine of target and history as the score.

No click model stands in between, so that it tells a worse encoder from a worse click model; and the same encoder
with fresh weights stands beside it, as what training must beat.
"""

from __future__ import annotations

import typing

import numpy as np

from tfmm import features, metrics
from tfmm.data import as_known

CHUNK_BYTES = 64 * 2**20  # of gathered history vectors
REPLICATES = 200  # draws of users for an interval


def largest_cosines(
    ids: np.ndarray, vectors: np.ndarray, targets: np.ndarray, behaviors: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the largest cosine between each target and the items of its history.

    Args:
        ids: int64 [m], unique item ids, ascending, not 0.
        vectors: float or int8 [m, D]; the cosine normalizes. A row of zeros is no embedding.
        targets: int64 [n], item ids.
        behaviors: int64 [n, L], item ids, 0 where padded.
    Returns:
        float32 [n], 0 where there is none; bool [n], True where the target and at least one behavior have an
        embedding.

    >>> ids, vectors = np.array([3, 5, 8]), np.array([[2.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
    >>> cosines, known = largest_cosines(ids, vectors, np.array([3, 9]), np.array([[8, 5, 0], [3, 0, 0]]))
    >>> cosines.round(2).astype(str).tolist(), known.tolist()
    (['0.6', '0.0'], [True, False])
    """
    table = np.zeros([len(ids) + 1, vectors.shape[1]], np.float32)  # the last row: no embedding
    table[:-1] = vectors
    norms = np.sqrt(np.einsum("md,md->m", table, table))
    is_held = norms > 0.0
    table[is_held] /= norms[is_held, None]
    targets, behaviors = places(ids, targets), places(ids, behaviors)
    cosines, known = np.zeros(len(targets), np.float32), np.zeros(len(targets), bool)
    chunk = max(1, CHUNK_BYTES // (4 * table.shape[1] * max(behaviors.shape[1], 1)))
    for start in range(0, len(targets), chunk):
        rows = slice(start, start + chunk)
        mask = is_held[behaviors[rows]] & is_held[targets[rows], None]
        cosine = np.einsum("bd,bld->bl", table[targets[rows]], table[behaviors[rows]])
        largest = np.where(mask, cosine, -np.inf).max(axis=1, initial=-np.inf)
        known[rows] = mask.any(axis=1)
        cosines[rows] = np.where(known[rows], largest, 0.0)
    return cosines, known


def places(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Returns int64 places of `wanted` in the ascending `ids`; len(ids) where it is not there."""
    found, is_there = as_known.find(wanted, ids)
    return np.where(is_there & (wanted != features.PADDING), found, len(ids))


def judge(
    labels: np.ndarray,
    user_ids: np.ndarray,
    cosines: np.ndarray,
    untrained_cosines: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> dict[str, typing.Any]:
    """Judges the largest cosines as scores of clicks, beside those of the untrained encoder.

    Args:
        labels: int [n], 0 or 1.
        user_ids: int64 [n].
        cosines: float [n].
        untrained_cosines: float [n] on the same rows; None where there is no encoder to train.
        weights: float [n], how many rows each stands for; None: one.
    Returns:
        JSON values: `rows`, `clicks`, `users` (with both classes), `auc`, `gauc` and `gauc_interval`; with the
        untrained encoder `auc_untrained`, `gauc_untrained`, `gauc_gain` and `gauc_gain_interval`. Metrics are
        None where no user has both classes.
    """
    facts: dict[str, typing.Any] = {"rows": len(labels), "clicks": int(labels.sum()), "users": 0}
    names = ["auc", "gauc", "gauc_interval"]
    if untrained_cosines is not None:
        names += ["auc_untrained", "gauc_untrained", "gauc_gain", "gauc_gain_interval"]
    users = metrics.user_aucs(labels, cosines, user_ids, weights) if len(labels) else None
    if users is None or np.isnan(users.auc).all():
        return {**facts, **dict.fromkeys(names)}
    found = users.gauc()
    facts |= {"users": found.users, "auc": metrics.auc(labels, cosines, weights), "gauc": found.value}
    facts["gauc_interval"] = _interval(labels, cosines, user_ids, weights)
    if untrained_cosines is not None:
        facts["auc_untrained"] = metrics.auc(labels, untrained_cosines, weights)
        facts["gauc_untrained"] = metrics.gauc(labels, untrained_cosines, user_ids, weights=weights).value
        facts["gauc_gain"] = facts["gauc"] - facts["gauc_untrained"]
        facts["gauc_gain_interval"] = _interval(labels, cosines, user_ids, weights, untrained_cosines)
    return facts


def _interval(
    labels: np.ndarray,
    scores: np.ndarray,
    user_ids: np.ndarray,
    weights: np.ndarray | None,
    baseline: np.ndarray | None = None,
) -> dict[str, float | None]:
    found = metrics.user_bootstrap(
        "gauc", labels, scores, user_ids, baseline_scores=baseline, weights=weights, replicates=REPLICATES
    )
    return {key: v if np.isfinite(v := getattr(found, key)) else None for key in ("low", "high", "level")}
