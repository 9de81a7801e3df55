"""Histories: what each user did strictly before each impression."""

from __future__ import annotations

import numpy as np


def tie_break(*ids: np.ndarray) -> np.ndarray:
    """Returns uint64 [n]: a hash of each row's ids, to order rows of equal time whatever the file's order.

    Args:
        *ids: int64 [n] each.
    """
    mixed = np.zeros(len(ids[0]), np.uint64)
    for values in ids:  # SplitMix64's finalizer
        mixed = (mixed ^ values.astype(np.int64).view(np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed = mixed ^ (mixed >> np.uint64(31))
    return mixed


def sort_behaviors(
    users: np.ndarray,
    times: np.ndarray,
    items: np.ndarray,
    lines: np.ndarray | None = None,
    latest: np.ndarray | None = None,
) -> np.ndarray:
    """Returns the int64 [n] order of behaviors by user and time; ties by `lines`, then by a hash.

    Args:
        users, times, items: int64 [n].
        lines: int64 [n], place within an order; None: all the same.
        latest: int64 [n], until when each may have happened, which counts before `times`; None: `times`.
    """
    lines = np.zeros(len(users), np.int64) if lines is None else lines
    latest = times if latest is None else latest
    return np.lexsort((tie_break(users, items, times), lines, times, latest, users))


def windows(
    users: np.ndarray,
    times: np.ndarray,
    behavior_users: np.ndarray,
    behavior_times: np.ndarray,
    max_behaviors: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds each impression's history: the user's newest behaviors that are strictly earlier.

    Args:
        users, times: int64 [B] of the impressions, in any order; the earliest instants at which they may have been.
        behavior_users, behavior_times: int64 [n], sorted by user, then time; the latest instants, by the same token.
        max_behaviors: L.
    Returns:
        start, end: int64 [B]; the behaviors start <= row < end, oldest first, L at most. By one sort of both tables.

    >>> windows(np.array([7]), np.array([30]), np.array([7, 7, 7]), np.array([10, 20, 30]), 4)
    (array([0]), array([2]))
    """
    num_impressions, num_behaviors = len(users), len(behavior_users)
    # One merged order in which an impression stands before a behavior of the same instant.
    is_behavior = np.repeat([False, True], [num_impressions, num_behaviors])
    order = np.lexsort((is_behavior, np.concatenate([times, behavior_times]), np.concatenate([users, behavior_users])))
    earlier = np.cumsum(is_behavior[order])
    end = np.empty(num_impressions, np.int64)
    places = order[~is_behavior[order]]
    end[places] = earlier[~is_behavior[order]]
    return np.maximum(np.searchsorted(behavior_users, users), end - max_behaviors), end


def histories(
    users: np.ndarray,
    times: np.ndarray,
    behavior_users: np.ndarray,
    behavior_times: np.ndarray,
    max_behaviors: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the windows of `windows`, row by row.

    Returns:
        rows: int64 [B, L], rows of the behaviors, oldest first, right-padded with 0.
        mask: bool [B, L], True where a behavior is.

    >>> histories(np.array([7]), np.array([30]), np.array([7, 7, 7]), np.array([10, 20, 30]), 4)[1]
    array([[ True,  True, False, False]])
    """
    start, end = windows(users, times, behavior_users, behavior_times, max_behaviors)
    offsets = np.arange(max_behaviors)
    mask = offsets < (end - start)[:, None]
    return np.where(mask, start[:, None] + offsets, 0), mask
