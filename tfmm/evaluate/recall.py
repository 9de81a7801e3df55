"""How much of what the ranking model likes best pre-ranking lets through, on the catalog, for held-out users."""

from __future__ import annotations

import typing

import numpy as np

from tfmm import saved_model
from tfmm.export.signatures import COMPARE, PRE_RANK, RANK
from tfmm.features import FeatureSet
from tfmm.training import examples as examples_lib

SECTION = "pre_ranking"  # of a report
WANTED, KEPT = 100, 500  # the ranking model's best, which shall be among so many of pre-ranking's
MAX_USERS, MAX_ITEMS = 200, 5_000  # drawn where there are more
_BATCH = 4_096
_Z = 1.96  # of the 95 % interval

Scores = typing.Callable[[bytes, np.ndarray], typing.Mapping[str, np.ndarray]]


def of_model(
    loaded: saved_model.LoadedModel,
    train_files: typing.Sequence[str],
    eval_files: typing.Sequence[str],
    feature_set: FeatureSet,
) -> dict[str, typing.Any] | None:
    """Returns the recall of an exported model's pre-ranking head; None where it has none.

    The catalog is the items that training and held-out rows show, each with the features of its newest row, at most
    `MAX_ITEMS`; a held-out user has those of their newest row, as served.

    Args:
        loaded: the exported model.
        train_files, eval_files: examples, see `training.examples.example_files`.
        feature_set: what they hold.
    Returns:
        See `report`.
    """
    if COMPARE not in loaded.signatures:
        return None
    users = _newest([eval_files], feature_set, "user_id", MAX_USERS)
    items = _newest([train_files, eval_files], feature_set, "item_id", MAX_ITEMS)
    return report(lambda user, catalog: loaded(COMPARE, {"user": [user], "items": catalog}), users, items)


def report(
    scores: Scores, users: np.ndarray, items: np.ndarray, wanted: int = WANTED, kept: int = KEPT
) -> dict[str, typing.Any]:
    """Returns the mean over users of the recall, with a 95 % interval.

    Args:
        scores: takes a user and items, gives the logits float32 [C] of `PRE_RANK` and of `RANK`.
        users: bytes [U], serialized examples.
        items: bytes [C], likewise.
        wanted, kept: see `recall`.
    Returns:
        `recall`, `low` and `high` (None where `undefined` says why), `users`, `items`, `wanted`, `kept`.
    """
    facts = {"users": len(users), "items": len(items), "wanted": wanted, "kept": kept}
    nothing = {"recall": None, "low": None, "high": None}
    if len(items) <= kept:
        return {**facts, **nothing, "undefined": f"pre-ranking would keep all of the {len(items):,} items"}
    logits = (scores(user, items) for user in users)
    found = np.array([recall(one[PRE_RANK], one[RANK], wanted, kept) for one in logits])
    half = _Z * found.std(ddof=1) / len(found) ** 0.5 if len(found) > 1 else 1.0
    mean = float(found.mean())
    return {**facts, "recall": mean, "low": max(mean - half, 0.0), "high": min(mean + half, 1.0), "undefined": None}


def recall(pre_rank: np.ndarray, rank: np.ndarray, wanted: int, kept: int) -> float:
    """Returns the share of the `wanted` best items by ranking, float [C], among the `kept` best by pre-ranking.

    >>> recall(np.array([3.0, 2.0, 1.0, 0.0]), np.array([1.0, 0.0, 9.0, 8.0]), wanted=2, kept=3)
    0.5
    """
    best = np.argsort(-rank, kind="stable")[:wanted]
    return float(np.isin(best, np.argsort(-pre_rank, kind="stable")[:kept]).mean())


def in_words(facts: typing.Mapping[str, typing.Any]) -> str:
    return f"recall of ranking's best {facts['wanted']} in pre-ranking's best {facts['kept']}"


def _newest(
    splits: typing.Sequence[typing.Sequence[str]], feature_set: FeatureSet, key: str, count: int
) -> np.ndarray:
    """Returns the newest serialized example of each user or item, of at most `count` of them, drawn once for all."""
    columns = [examples_lib.read_columns(files, feature_set, (key, "timestamp")) for files in splits]
    keys, times = (np.concatenate([one[name] for one in columns]) for name in (key, "timestamp"))
    order = np.argsort(times, kind="stable")[::-1]
    _, first = np.unique(keys[order], return_index=True)
    places = np.random.default_rng(0).permutation(order[first])[:count]
    wanted, found, start = np.sort(places), [], 0
    for files in splits:
        for batch in examples_lib.open_records(files).batch(_BATCH).as_numpy_iterator():
            found += batch[wanted[(wanted >= start) & (wanted < start + len(batch))] - start].tolist()
            start += len(batch)
    return np.array(found, object)
