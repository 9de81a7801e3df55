"""Group AUC: the AUC inside each user, averaged over users."""

from __future__ import annotations

import dataclasses
import typing

import keras
import numpy as np
import numpy.typing as npt

from tfmm.metrics.inputs import binary_labels, finite_scores, id_column, sample_weights
from tfmm.metrics.state import RowsMetric, host_array

WEIGHTINGS = ("impressions", "users", "clicks")


@dataclasses.dataclass(frozen=True)
class GAUCResult:
    """GAUC and how much of the data it stands on."""

    value: float
    users: int  # users with both classes, who count
    users_left_out: int  # users with one class only
    impressions: int  # of the users who count
    impressions_left_out: int


@dataclasses.dataclass(frozen=True)
class UserAUC:
    """AUC per user; all arrays [users], in the order of `user_ids`."""

    user_ids: np.ndarray
    auc: np.ndarray  # float64, NaN where the user has one class only
    impressions: np.ndarray  # int64
    clicks: np.ndarray  # int64
    impression_weights: np.ndarray | None = None  # float64, where rows have weights: their sum
    click_weights: np.ndarray | None = None  # float64, the sum of those of clicks

    def weights(self, weighting: str) -> np.ndarray:
        """Returns float64 [users]: what each user counts, 0 where the AUC is NaN."""
        check_weighting(weighting)
        counts = {
            "impressions": self.impressions if self.impression_weights is None else self.impression_weights,
            "clicks": self.clicks if self.click_weights is None else self.click_weights,
            "users": np.ones(self.auc.size),
        }[weighting]
        return np.where(np.isnan(self.auc), 0.0, counts)

    def gauc(self, weighting: str = "impressions") -> GAUCResult:
        """Averages over users (see `gauc`), each counting by `weights`, float64 [users].

        Raises:
            ValueError: no user has both classes.
        """
        weights = self.weights(weighting)
        counted = weights > 0
        if not counted.any():
            raise ValueError(
                f"GAUC needs at least one user with both a click and a non-click. Received: "
                f"{self.auc.size} users with one class each. Widen the sample."
            )
        impressions = int(self.impressions[counted].sum())
        return GAUCResult(
            value=float(np.average(self.auc[counted], weights=weights[counted])),
            users=int(counted.sum()),
            users_left_out=int((~counted).sum()),
            impressions=impressions,
            impressions_left_out=int(self.impressions.sum()) - impressions,
        )


def gauc(
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    user_ids: npt.ArrayLike,
    weighting: str = "impressions",
    weights: npt.ArrayLike | None = None,
) -> GAUCResult:
    """Computes the mean over users of the AUC inside each user (section 6.1.4).

    Users with clicks only, or none, have no AUC: they are left out and counted. Ties count one half.

    Args:
        labels: 0 or 1, [n].
        scores: finite numbers [n]; probabilities, logits or whole numbers.
        user_ids: integers or strings [n]; rows of a user need not be adjacent.
        weighting: "impressions" (default, as in the paper's references) weighs a user by impressions,
            "clicks" by clicks, "users" counts each user once.
        weights: optional floats [n] >= 0, how often each row counts, in the user's AUC and in what the user weighs.
    Returns:
        GAUCResult: the value in [0, 1], users counted and users left out.
    Raises:
        ValueError: labels other than 0 and 1, a score that is not finite, an unknown weighting, or no user
            with both classes.

    >>> labels, scores = [1, 0, 0, 1, 0, 1], [0.9, 0.1, 0.5, 0.2, 0.3, 0.7]
    >>> gauc(labels, scores, [7, 7, 7, 8, 8, 9])          # user 7: 1, 3 rows; user 8: 0, 2 rows; 9 left out
    GAUCResult(value=0.6, users=2, users_left_out=1, impressions=5, impressions_left_out=1)
    """
    check_weighting(weighting)
    return user_aucs(labels, scores, user_ids, weights).gauc(weighting)


def user_aucs(
    labels: npt.ArrayLike, scores: npt.ArrayLike, user_ids: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> UserAUC:
    """Computes the exact AUC of every user with one sort over all rows.

    Args:
        labels: 0 or 1, [n].
        scores: finite numbers [n].
        user_ids: integers or strings [n].
        weights: optional floats [n] >= 0; a user whose clicks or non-clicks all weigh 0 has no AUC.
    Returns:
        UserAUC, users in ascending order of id.
    Raises:
        ValueError: as `gauc`.
    """
    clicked = binary_labels(labels)
    if clicked.size == 0:
        raise ValueError("GAUC needs at least one row. Received: 0 rows.")
    values = finite_scores("scores", scores, clicked.size)
    ids, users = user_index(user_ids, clicked.size)
    row_weights = sample_weights(weights, clicked.size)
    if row_weights is not None:
        return _weighted_user_aucs(clicked, values, ids, users, row_weights)
    keys = users.astype(np.uint64)
    keys <<= np.uint64(32)
    keys |= score_keys(values, users)
    keys <<= np.uint64(1)
    keys |= clicked
    keys.sort()  # by user, then score, then label
    places, won = pairs_won(keys)
    impressions = np.bincount(users, minlength=ids.size)
    owners = (keys[places] >> np.uint64(33)).astype(np.int64)
    clicks = np.bincount(owners, minlength=ids.size)
    before = np.cumsum(impressions - clicks) - (impressions - clicks)  # non-clicks of the users before
    first = np.cumsum(clicks) - clicks
    won_of_user = np.zeros(ids.size, np.int64)
    has_click = clicks > 0
    if places.size:
        won_of_user[has_click] = np.add.reduceat(won, first[has_click])
    with np.errstate(invalid="ignore"):
        aucs = (won_of_user - 2 * before * clicks) / (2 * clicks * (impressions - clicks))
    return UserAUC(ids, aucs, impressions, clicks)


def _weighted_user_aucs(
    clicked: np.ndarray, scores: np.ndarray, ids: np.ndarray, users: np.ndarray, weights: np.ndarray
) -> UserAUC:
    """Computes `user_aucs` of checked rows, `users` numbered from 0, with weights float64 [n]."""
    totals, of_clicks = (np.bincount(users, w, ids.size) for w in (weights, weights * clicked))
    of_others = np.bincount(users, weights * ~clicked, ids.size)
    has_both = (of_clicks > 0) & (of_others > 0)
    # shares of a user's clicks and non-clicks: every user's sum to 1, and no product leaves the range of floats
    shares = weights / np.where(has_both[users], np.where(clicked, of_clicks[users], of_others[users]), np.inf)
    order = np.lexsort((scores, users))
    owners, ordered, shares, clicked_first = users[order], scores[order], shares[order], clicked[order]
    is_new_user = np.concatenate(([True], owners[1:] != owners[:-1]))
    starts = np.flatnonzero(is_new_user | np.concatenate(([True], ordered[1:] != ordered[:-1])))  # of ties
    positives = np.add.reduceat(shares * clicked_first, starts)
    negatives = np.add.reduceat(shares * ~clicked_first, starts)
    first = np.flatnonzero(is_new_user[starts])  # of each user
    steps = negatives.copy()
    steps[first[1:]] -= np.add.reduceat(negatives, first)[:-1]  # each user begins at 0
    below = np.cumsum(steps) - negatives
    won = np.add.reduceat(positives * (below + 0.5 * negatives), first)
    aucs = np.where(has_both, np.clip(won, 0.0, 1.0), np.nan)  # rounding may pass the ends
    impressions, clicks = (np.bincount(rows, minlength=ids.size) for rows in (users, users[clicked]))
    return UserAUC(ids, aucs, impressions, clicks, totals, of_clicks)


def score_keys(scores: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Maps scores to whole numbers in the same order within each user, equal where the scores are equal.

    Scores are keyed by the bits of their float32. Where that rounding may have made two scores of a user meet,
    all scores of such users are ranked instead, so that no two are taken for a tie.

    Args:
        scores: numbers [n], finite.
        users: int64 [n], numbered from 0.
    Returns:
        uint32 [n].
    """
    with np.errstate(over="ignore"):
        single = scores.astype(np.float32) + np.float32(0.0)  # + 0.0 turns -0.0 into 0.0
    keys = single.view(np.uint32)
    if keys.max() >= 2**31:  # a negative score; without one the bits are already in order
        keys = np.where(keys >= 2**31, ~keys, keys | np.uint32(2**31))
    if scores.dtype.kind != "f" or not np.array_equal(single, scores):
        ranked = users_with_ties(keys, users)[users]
        keys[ranked] = ranks(scores[ranked])
    return keys


def users_with_ties(keys: np.ndarray, users: np.ndarray) -> np.ndarray:
    """Returns bool [users]: whether a user has one of the keys, uint32 [n], twice."""
    pairs = users.astype(np.uint64)
    pairs <<= np.uint64(32)
    pairs |= keys
    pairs.sort()
    tied = pairs[1:][pairs[1:] == pairs[:-1]]
    has_tie = np.zeros(users.max() + 1, bool)
    has_tie[(tied >> np.uint64(32)).astype(np.int64)] = True
    return has_tie


def ranks(values: np.ndarray) -> np.ndarray:
    """Returns uint32 [n]: how many distinct values are smaller than each."""
    order = np.argsort(values)
    ordered = values[order]
    result = np.zeros(values.size, np.uint32)
    result[order[1:]] = np.cumsum(ordered[1:] != ordered[:-1], dtype=np.uint32)
    return result


def pairs_won(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts, for each click, the non-clicks before it.

    Args:
        keys: uint64 [n], ascending, (user, score) << 1 | label: non-clicks stand first in a tie.
    Returns:
        int64 [clicks], their places; int64 [clicks], twice the non-clicks before each, one of the same user and
        score counting once.
    """
    places = np.flatnonzero((keys & np.uint64(1)).astype(bool))
    clicks = keys[places]
    before = places - np.arange(places.size)  # non-clicks before, those in the tie included
    first = np.flatnonzero(np.concatenate(([places.size > 0], clicks[1:] != clicks[:-1])))  # of each score
    ties = first[keys[places[first] - 1] == clicks[first] - 1]  # a non-click of this score stands before it
    tied = np.zeros(first.size, np.int64)
    tied[np.searchsorted(first, ties)] = places[ties] - np.searchsorted(keys, clicks[ties] - 1)
    return places, 2 * before - np.repeat(tied, np.diff(first, append=places.size))


def user_index(user_ids: npt.ArrayLike, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers users from 0.

    Args:
        user_ids: integers or strings [n].
        size: n.
    Returns:
        the distinct ids, ascending, and int64 [n], the place of each row's user among them.
    Raises:
        ValueError: another length, or ids that are neither integers nor strings.
    """
    column = id_column("user_ids", user_ids, size)
    if column.dtype.kind in "iu" and size:
        low, high = int(column.min()), int(column.max())
        if high - low < 4 * size:  # counting beats sorting where ids lie close together
            wide = column.astype(np.uint64 if column.dtype.kind == "u" else np.int64)
            offsets = (wide - wide.dtype.type(low)).astype(np.int64)
            present = np.bincount(offsets) > 0
            index = (np.cumsum(present) - 1)[offsets]
            ids = np.flatnonzero(present).astype(wide.dtype) + wide.dtype.type(low)
            return ids.astype(column.dtype), index
    ids, index = np.unique(column, return_inverse=True)
    return ids, index


def check_weighting(weighting: str) -> None:
    """Refuses an unknown GAUC weighting."""
    if weighting not in WEIGHTINGS:
        raise ValueError(f"`weighting` must be one of {', '.join(WEIGHTINGS)}. Received: {weighting!r}.")


@keras.saving.register_keras_serializable("tfmm")
class GAUC(RowsMetric):
    """GAUC over all batches, however a user's rows are spread; keeps every row in host memory.

    Call `update_state(labels, scores, user_ids, sample_weight=None)` eagerly. `result()` is NaN while no user has
    both classes.

    Args:
        weighting: "impressions", "clicks" or "users", as in `gauc`.

    >>> metric = GAUC()
    >>> metric.update_state([1, 0, 1], [0.9, 0.1, 0.2], [7, 7, 8])
    >>> metric.update_state([0, 0], [0.5, 0.3], [7, 8])       # user 7: 1, 3 rows; user 8: 0, 2 rows
    >>> metric.result()
    0.6
    """

    def __init__(self, weighting: str = "impressions", name: str = "gauc", dtype: typing.Any = None) -> None:
        super().__init__(name=name, dtype=dtype)
        check_weighting(weighting)
        self.weighting = weighting

    def update_state(self, labels, scores, user_ids, sample_weight=None) -> None:
        """Adds a batch: labels 0 or 1, scores and weights float [n] or [n, 1], int or string ids of the same shape."""
        way_out = "Keras gives a metric no user ids: call `gauc` on the predictions, in a callback for instance."
        labels, scores, user_ids = (
            host_array(self, values, way_out) for values in (labels, scores, user_ids)
        )
        clicked = binary_labels(labels)
        scores = finite_scores("scores", scores, clicked.size)
        ids = id_column("user_ids", user_ids, clicked.size)
        batch = {"labels": clicked, "scores": scores, "user_ids": ids}
        if sample_weight is not None:
            weights = host_array(self, sample_weight, way_out)
            batch["weights"] = typing.cast(np.ndarray, sample_weights(weights, clicked.size))
        self.add_state(batch)

    def result(self) -> float:
        result = self.details()
        return float("nan") if result is None else result.value

    def details(self) -> GAUCResult | None:
        """Returns GAUC with the users counted and left out; None while no user has both classes."""
        state = self.state()
        if not state:
            return None
        users = user_aucs(state["labels"], state["scores"], state["user_ids"], state.get("weights"))
        if np.isnan(users.auc).all():
            return None
        return users.gauc(self.weighting)

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "weighting": self.weighting}
