"""What advertisers bid for a click in the synthetic marketplace, and the second-price auction for a request's slots.

Rules, none of which looks at a model:

- Each item has one bid, the most that its advertiser pays for a click: what the click is worth to them. Bids are
  log-normal around a level of the item's category, and have nothing to do with how well the item suits whom.
- Items whose bid is below the reserve take no part. The others stand in the order of score times bid, the revenue that
  a model expects of showing them (eCPM, but for the factor 1,000); of equal ones, the earlier candidate first.
- The first of them get the slots. Who has one pays per click, not per impression, the least for which he would have
  kept it: the next one's score times bid, over his own score, and the reserve at least (generalized second price). The
  last of all, with nobody behind, pays the reserve.
"""

from __future__ import annotations

import numpy as np

from tfmm.config import MarketplaceConfig
from tfmm.marketplace import drawing, generator

MEDIAN_BID = 0.5  # of a category of level 0, in units of money
CATEGORY_SPREAD, ITEM_SPREAD = 0.3, 0.4  # standard deviations of a bid's logarithm: between categories, within one
RESERVE = 0.05  # least price of a click, in the same units
_LEVELS, _CATALOG, _NEW = 3, 4, 5  # streams of a marketplace's seed; 1 and 2 are those of new items


def catalog_bids(config: MarketplaceConfig) -> np.ndarray:
    """Draws the bids of the catalog's items, float64 [n], by `generator.FIRST_ITEM_ID`.

    Args:
        config: of the marketplace; the same one has the same bids.
    """
    _, traits = generator.draw_shoppers(config)
    return _draw(config, traits.category, np.random.default_rng((config.seed, _CATALOG, 0)))


def new_item_bid(config: MarketplaceConfig, number: int) -> float:
    """Draws the bid of the item that `generator.draw_new_item` draws with this number."""
    category = generator.traits_of_new_item(config, number).category
    return float(_draw(config, category, np.random.default_rng((config.seed, _NEW, number)))[0])


def _draw(config: MarketplaceConfig, category: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    levels = np.random.default_rng((config.seed, _LEVELS, 0)).standard_normal(len(drawing.SHAPES))
    spread = CATEGORY_SPREAD * levels[category] + ITEM_SPREAD * rng.standard_normal(len(category))
    return MEDIAN_BID * np.exp(spread)


def second_price(
    scores: np.ndarray, bids: np.ndarray, num_slots: int, reserve: float = RESERVE
) -> tuple[np.ndarray, np.ndarray]:
    """Runs the auction for one request's slots.

    Args:
        scores: float [C] in (0, 1], probabilities of a click as a model has them.
        bids: float [C] >= 0, the most that each pays for a click.
        num_slots: how many are shown, at most.
        reserve: least price of a click, > 0.
    Returns:
        int64 [S], the candidates that are shown, first slot first; float64 [S], what each pays for a click, from the
        reserve up to its bid. S is `num_slots`, or fewer where no more take part.
    Raises:
        ValueError: other lengths, or a score or a bid out of range.

    >>> second_price(np.array([0.1, 0.2, 0.4]), np.array([1.0, 1.0, 0.25]), num_slots=2)
    (array([1, 0]), array([0.5, 1. ]))
    """
    scores, bids = np.asarray(scores, np.float64), np.asarray(bids, np.float64)
    if scores.ndim != 1 or scores.shape != bids.shape:
        raise ValueError(f"`scores` and `bids` must be of one length. Received: {scores.shape} and {bids.shape}.")
    if not ((scores > 0) & (scores <= 1)).all():
        raise ValueError(f"`scores` must lie in (0, 1], as probabilities of a click. Received: {scores.tolist()}.")
    if not (np.isfinite(bids) & (bids >= 0)).all():
        raise ValueError(f"`bids` must be finite and not negative. Received: {bids.tolist()}.")
    if reserve <= 0:
        raise ValueError(f"`reserve` must be positive. Received: {reserve}.")
    taking_part = np.flatnonzero(bids >= reserve)
    value = scores[taking_part] * bids[taking_part]
    order = np.argsort(-value, kind="stable")
    places, behind = taking_part[order], np.append(value[order], 0.0)[1:]
    prices = np.clip(behind / scores[places], reserve, bids[places])  # rounding brings none over its bid
    return places[:num_slots], prices[:num_slots]
