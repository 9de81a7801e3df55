"""What Acc@N alone does not show of an encoder: its vectors' shape, its kinds of items, and what is nearly the same."""

from __future__ import annotations

import typing

import numpy as np

from tfmm.metrics.alignment import alignment, uniformity
from tfmm.metrics.top_n_accuracy import TIE
from tfmm.pretrain import accuracy
from tfmm.pretrain.heldout import Heldout, Vectors

NUM_SIBLINGS = 9  # other candidates that are nearly the same
MAX_UNIFORM = 4_096  # items whose pairs are compared, drawn of all: integer ids are in the order of their making
MAX_CATEGORIES = 20  # told one by one, those of the most pairs
REST = "the rest"
_CHUNK = 1024

Facts = dict[str, typing.Any]


def look(heldout: Heldout, vectors: Vectors, untrained: Vectors, ranks: np.ndarray) -> Facts:
    """Returns facts of held-out pairs beside Acc@N.

    Args:
        heldout: the pairs.
        vectors: of the trained encoder.
        untrained: of the encoder before training.
        ranks: int64 [n], of each pair's positive among all positives, by the trained one.
    Returns:
        `alignment` (of the pairs; lower is closer) and `uniformity` (of the items' vectors; lower is more even), each
        with `*_untrained`; `siblings`, how many candidates `sibling_ranks` adds to a positive, and `acc_at_1_siblings`
        with `*_untrained` and `*_chance`, where there are any; `categories`, see `by_category`, where pairs name them.
        What cannot be told, of one item alone, is None.
    """
    ids = heldout.pairs.item_ids
    _, first = np.unique(ids, return_index=True)
    drawn = first
    if len(first) > MAX_UNIFORM:
        drawn = np.random.default_rng(0).permutation(first)[:MAX_UNIFORM]
    facts: Facts = {}
    for suffix, found in (("", vectors), ("_untrained", untrained)):
        facts[f"alignment{suffix}"] = _told(alignment(*found))
        facts[f"uniformity{suffix}"] = _told(uniformity(found.positives[drawn]))
    facts["siblings"] = count = min(NUM_SIBLINGS, len(first) - 1)
    if count:
        near = siblings(untrained.positives, ids, count)
        for suffix, found in (("", vectors), ("_untrained", untrained)):
            facts[f"acc_at_1_siblings{suffix}"] = float(np.mean(sibling_ranks(found, ids, near) == 1))
        facts["acc_at_1_siblings_chance"] = 1.0 / (count + 1)
    if heldout.pairs.categories is not None:
        facts["categories"] = by_category(ranks, heldout.pairs.categories, ids)
    return facts


def siblings(positives: np.ndarray, item_ids: np.ndarray, count: int) -> np.ndarray:
    """Returns the items nearest to each item before anything was learned: what is nearly the same (figure 5).

    The paper's pillows differ in a pattern alone. Which items are such siblings no column says; here they are those
    whose vectors by the encoder's fresh weights have the largest cosines with the item's own: of a picture nearly the
    same pixels in nearly the same places, of a text nearly the same words and letters. A backbone whose weights came
    from a file judges by these. So the siblings are the same whatever training made of the encoder, and are those that
    fresh weights confuse; of another seed they are slightly others.

    Args:
        positives: float32 [n, D], of each pair's positive by the untrained encoder; an item's are all the same.
        item_ids: int64 [n].
        count: of siblings, below the number of items.
    Returns:
        int64 [items, count], places in the ascending distinct ids.
    """
    _, first = np.unique(item_ids, return_index=True)
    rows = _unit(positives[first])
    near = np.empty((len(rows), count), np.int64)
    for start in range(0, len(rows), _CHUNK):
        cosines = rows[start : start + _CHUNK] @ rows.T
        own = np.arange(len(cosines))
        cosines[own, start + own] = -np.inf
        near[start : start + _CHUNK] = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return near


def sibling_ranks(vectors: Vectors, item_ids: np.ndarray, near: np.ndarray) -> np.ndarray:
    """Ranks each query's positive among itself and its siblings, 1 the most similar, a tie ranked before it.

    Args:
        vectors: of the pairs.
        item_ids: int64 [n].
        near: int64 [items, m], as `siblings` returns it.
    Returns:
        int64 [n], 1 .. m + 1.
    """
    _, first, own = np.unique(item_ids, return_index=True, return_inverse=True)
    queries, items = _unit(vectors.queries), _unit(vectors.positives[first])
    ranks = np.empty(len(queries), np.int64)
    for start in range(0, len(queries), _CHUNK):
        rows = slice(start, start + _CHUNK)
        mine = np.einsum("nd,nd->n", queries[rows], items[own[rows]])
        others = np.einsum("nd,nmd->nm", queries[rows], items[near[own[rows]]])
        ranks[rows] = 1 + np.count_nonzero(others >= mine[:, None] - TIE, axis=1)
    return ranks


def by_category(ranks: np.ndarray, categories: np.ndarray, item_ids: np.ndarray) -> dict[str, Facts]:
    """Returns Acc@N of the pairs of each category of positives; candidates are all items, of all categories.

    Args:
        ranks: int64 [n].
        categories: object [n], texts; None where an item has none, which is told as "".
        item_ids: int64 [n].
    Returns:
        Per category, of the most pairs first, `pairs`, `items` and `accuracy.at_n`; those beyond `MAX_CATEGORIES` as
        one.
    """
    names, place, counts = np.unique([name or "" for name in categories], return_inverse=True, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    groups = [(str(names[group]), place == group) for group in order[:MAX_CATEGORIES]]
    if len(order) > MAX_CATEGORIES:
        groups.append((REST, np.isin(place, order[MAX_CATEGORIES:])))
    return {
        name: {"pairs": int(of.sum()), "items": len(np.unique(item_ids[of])), **accuracy.at_n(ranks[of])}
        for name, of in groups
    }


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _told(value: float) -> float | None:
    return None if np.isnan(value) else value
