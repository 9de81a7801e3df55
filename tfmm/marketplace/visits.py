"""Shoppers of a marketplace after its week: what a request for them may hold, and what of it they click."""

from __future__ import annotations

import collections
import dataclasses
import typing

import numpy as np

from tfmm.config import MarketplaceConfig
from tfmm.marketplace import generator, shoppers

RECENT = 500  # newest items, of which a pool takes some


class Visits:
    """Draws pools and clicks as `generator.generate` does on each day, with the same tastes and items.

    Differs from the week: what a rich marketplace plants in clicks beside taste (prices, cities, hours, positions) has
    no part in these.

    Args:
        config: of the marketplace; the same one has the same shoppers.
        rng: of pools and clicks.
        size: candidates of a pool, of which some may be drawn twice.
        recent: how many items count as the newest.
        newest: those among the catalog's items, the oldest first.
    """

    def __init__(
        self,
        config: MarketplaceConfig,
        rng: np.random.Generator,
        size: int = generator.POOL,
        recent: int = RECENT,
        newest: typing.Iterable[int] = (),
    ):
        self._config, self._rng, self._size = config, rng, size
        self._taste, self._traits = generator.draw_shoppers(config)
        self._old = len(self._traits.category)  # items before any new one
        self._rows: dict[int, int] = {}  # of new items, by id
        self._recent: collections.deque[int] = collections.deque(newest, maxlen=recent)

    def add(self, item_id: int, number: int) -> None:
        """Takes an item of `generator.draw_new_item`, which has this number."""
        own = generator.traits_of_new_item(self._config, number)
        joined = {
            field.name: np.concatenate([getattr(self._traits, field.name), getattr(own, field.name)])
            for field in dataclasses.fields(shoppers.Traits)
        }
        self._traits = shoppers.Traits(**joined)
        self._rows[item_id] = len(self._traits.category) - 1
        self._recent.append(item_id)

    def pool(self) -> list[int]:
        """Draws what may be shown, each item once: of the catalog, popular items more often, and of the newest."""
        share = self._size * generator.NEW_IN_POOL // generator.POOL if self._recent else 0
        popularity = self._traits.popularity[: self._old]
        old = shoppers.draw_pool(popularity, 1, self._size - share, self._rng)[0] + generator.FIRST_ITEM_ID
        recent = self._rng.choice(self._recent, share) if share else np.zeros(0, np.int64)
        return list(dict.fromkeys([*old.tolist(), *recent.tolist()]))

    def clicks(self, user_id: int, item_ids: list[int]) -> list[bool]:
        """Draws which of the items that a user is shown are clicked."""
        items = np.array([self._rows.get(item, item - generator.FIRST_ITEM_ID) for item in item_ids], np.int64)
        users = np.full(len(items), user_id - generator.FIRST_USER_ID)
        logits = shoppers.click_logits(self._taste, self._traits, users, items)
        logits = logits + shoppers.NOISE * self._rng.standard_normal(len(items))
        return (self._rng.random(len(items)) < 1 / (1 + np.exp(-logits))).tolist()
