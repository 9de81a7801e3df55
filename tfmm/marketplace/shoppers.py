"""Shoppers of the synthetic marketplace: their taste, what they are shown, and what they click."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfmm.marketplace import drawing, wording

LIKED = 2  # looks, and themes, that each shopper likes
SAME_BOTH, SAME_ONE = (
    1.0,
    0.35,
)  # affinity of an item that shares both attributes of a liked pair, or one of them

VISUAL_WEIGHT, TEXTUAL_WEIGHT = 3.6, 3.6  # of the affinities in the click's logit
POPULARITY_WEIGHT, CATEGORY_WEIGHT, NOISE = 0.55, 0.20, 0.30
SHOWN_WEIGHT = 2.2  # of the affinities in what is shown: the shop knows a little of the taste
BASE_LOGIT = -3.8


@dataclasses.dataclass(frozen=True)
class Traits:
    """What shoppers see of n items; int [n] indices, and float [n] popularity of mean 0 and spread 1.

    A look is a pair (palette, pattern), seen only in the picture; a theme is a pair (style, material), said
    only in the title. Both cut across categories.
    """

    category: np.ndarray
    palette: np.ndarray
    pattern: np.ndarray
    style: np.ndarray
    material: np.ndarray
    popularity: np.ndarray


@dataclasses.dataclass(frozen=True)
class Taste:
    """What n users like: looks and themes int [n, LIKED, 2], categories float [n, C] of spread 1."""

    looks: np.ndarray
    themes: np.ndarray
    categories: np.ndarray


def draw_taste(num_users: int, rng: np.random.Generator) -> Taste:
    looks = np.stack(
        [
            rng.integers(0, drawing.NUM_PALETTES, (num_users, LIKED)),
            rng.integers(0, len(drawing.PATTERNS), (num_users, LIKED)),
        ],
        -1,
    )
    themes = np.stack(
        [
            rng.integers(0, len(wording.STYLES), (num_users, LIKED)),
            rng.integers(0, len(wording.MATERIALS), (num_users, LIKED)),
        ],
        -1,
    )
    return Taste(looks, themes, rng.standard_normal((num_users, len(drawing.SHAPES))))


def affinities(taste: Taste, traits: Traits, users: np.ndarray, items: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how well items suit users' liked looks and liked themes, two float [...] in [0, 1].

    Args:
        users: int [...] rows of `taste`, broadcast against `items`.
        items: int [...] rows of `traits`.
    """
    return (
        _affinity(taste.looks[users], traits.palette[items], traits.pattern[items]),
        _affinity(taste.themes[users], traits.style[items], traits.material[items]),
    )


def _affinity(liked: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    same = (liked[..., 0] == first[..., None]).astype(np.int8) + (liked[..., 1] == second[..., None])
    return np.array([0, SAME_ONE, SAME_BOTH])[same.max(-1)]


def click_logits(taste: Taste, traits: Traits, users: np.ndarray, items: np.ndarray) -> np.ndarray:
    """Returns the logit of a click, float [...], without noise: taste, popularity, a little category."""
    visual, textual = affinities(taste, traits, users, items)
    return (
        BASE_LOGIT
        + VISUAL_WEIGHT * visual
        + TEXTUAL_WEIGHT * textual
        + POPULARITY_WEIGHT * traits.popularity[items]
        + CATEGORY_WEIGHT * taste.categories[users, traits.category[items]]
    )


def draw_pool(popularity: np.ndarray, num_users: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Draws int [num_users, size] items, popular ones more often; may repeat."""
    share = np.cumsum(np.exp(0.8 * popularity))
    return np.minimum(np.searchsorted(share, rng.random((num_users, size)) * share[-1]), len(share) - 1)


def show(taste: Taste, traits: Traits, pool: np.ndarray, num_shown: int, rng: np.random.Generator) -> np.ndarray:
    """Picks what each user is shown out of a pool: a recommender that knows a little of the taste.

    Args:
        pool: int [users, P] candidates.
    Returns:
        int [users, num_shown], no item twice, in random order; -1 where the pool holds no more.
    """
    users = np.arange(len(pool))[:, None]
    visual, textual = affinities(taste, traits, users, pool)
    preference = SHOWN_WEIGHT * (visual + textual) + rng.gumbel(size=pool.shape)
    order = np.argsort(pool, axis=1, kind="stable")
    ordered = np.take_along_axis(pool, order, 1)
    repeated = np.zeros(pool.shape, bool)
    np.put_along_axis(repeated, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], 1)
    preference[repeated] = -np.inf
    best = np.argpartition(-preference, min(num_shown, pool.shape[1]) - 1, axis=1)[:, :num_shown]
    best = rng.permuted(best, axis=1)
    return np.where(np.take_along_axis(repeated, best, 1), -1, np.take_along_axis(pool, best, 1))


def choose(taste: Taste, traits: Traits, users: np.ndarray, pool: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws the item of each pool that is shown and clicked; users int [n], pool int [n, P] -> int [n]."""
    visual, textual = affinities(taste, traits, users[:, None], pool)
    clicked = -np.log1p(np.exp(-click_logits(taste, traits, users[:, None], pool)))
    preference = SHOWN_WEIGHT * (visual + textual) + clicked + rng.gumbel(size=pool.shape)
    return pool[np.arange(len(pool)), np.argmax(preference, axis=1)]
