"""What happens in a simulated week, whatever any model does: items that arrive, visits, and what would be clicked.

The week follows that of the marketplace's tables. Simulated time is counted in hours; each begins with its new items.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
import typing

import numpy as np
import pyarrow.parquet as pq

from tfmm.config import RunConfig
from tfmm.data.instants import DAY_US
from tfmm.marketplace import auction, generator, visits
from tfmm.quickstart import requests

HOURS = 24  # of a day
_HOUR_US = DAY_US // HOURS
_STREAM = 6  # of the simulation's seed: visits


class Visit(typing.NamedTuple):
    """A shopper who comes.

    Attributes:
        number: 0..
        time_us: simulated, microseconds since 1970.
        user_id: who.
        pool: ids of the items that may be shown, none twice.
        clicks: of each, whether it is clicked if it is shown.
    """

    number: int
    time_us: int
    user_id: int
    pool: list[int]
    clicks: list[bool]


@dataclasses.dataclass(frozen=True)
class Item:
    """An item of the catalog, or a new one."""

    row: dict[str, typing.Any]  # as the table has it
    values: dict[str, typing.Any]  # by feature, as requests have them
    bid: float
    created_at_us: int


class World:
    """The marketplace after its week; all is drawn by the seed, in one order.

    Args:
        run: of the models.
        tables: the marketplace's.
        seed: of visits, pools and clicks.
        candidates: size of a pool, of which some may be drawn twice.

    Attributes:
        items: by id, those that have arrived.
        users: the user side of a request as the tables' week left it, by user id.
    """

    def __init__(self, run: RunConfig, tables: pathlib.Path, seed: int, candidates: int):
        self._market, self._features = run.marketplace, run.feature_set
        self._rng, self._num_visits, self._num_new = np.random.default_rng((seed, _STREAM)), 0, 0
        zone = run.data.time_zone
        found = requests.busiest_users(tables, self._features, zone, self._market.num_users)
        self.users = {user["user_id"]: user for user in found}
        self._user_ids = sorted(self.users)
        born = pq.read_table(tables / "items.parquet", columns=["item_id", "created_at"]).to_pydict()
        created = {item: _microseconds(at) for item, at in zip(born["item_id"], born["created_at"])}
        bids = auction.catalog_bids(self._market)
        self.items = {
            item: self._item(row, float(bids[item - generator.FIRST_ITEM_ID]), created[item])
            for item, row in requests.catalog(tables, self._features, zone).items()
        }
        self.begins_us = generator.WEEK_START_US + self._market.num_days * DAY_US
        newest = sorted(created, key=lambda item: created[item])[-self._market.new_items_per_day :]
        self._visits = visits.Visits(
            self._market, self._rng, candidates, recent=self._market.new_items_per_day, newest=newest
        )

    def _item(self, row: dict[str, typing.Any], bid: float, created_at_us: int) -> Item:
        values = {name: found[0] for name, found in requests.candidates_of(self._features, [row]).items()}
        return Item(row, values, bid, created_at_us)

    def arrive(self, hour: int) -> list[int]:
        """Lets the new items of an hour arrive, as many each day, and returns their ids."""
        arrived = []
        per_day = self._market.new_items_per_day
        while self._num_new < (hour + 1) * per_day // HOURS:
            number, self._num_new = self._num_new, self._num_new + 1
            at_us = self.begins_us + hour * _HOUR_US
            row = generator.draw_new_item(self._market, number, at_us)
            self.items[row["item_id"]] = self._item(row, auction.new_item_bid(self._market, number), at_us)
            self._visits.add(row["item_id"], number)
            arrived.append(row["item_id"])
        return arrived

    def visit(self, hour: int, count: int) -> list[Visit]:
        """Draws the visits of an hour, in order of time, once its items have arrived."""
        moments = np.sort(self._rng.integers(0, _HOUR_US, count)).tolist()
        users = self._rng.choice(self._user_ids, count).tolist()
        found = []
        for moment, user in zip(moments, users):
            pool = self._visits.pool()
            clicks = self._visits.clicks(user, pool)
            time_us = self.begins_us + hour * _HOUR_US + moment
            found.append(Visit(self._num_visits, time_us, user, pool, clicks))
            self._num_visits += 1
        return found


def _microseconds(at: datetime.datetime) -> int:
    return round(at.replace(tzinfo=datetime.timezone.utc).timestamp() * 1e6)
