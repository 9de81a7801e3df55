"""The world of a simulation: the same for every model, with as many new items each day as the marketplace had."""

import dataclasses

import pytest

from serving.simulation import arms
from serving.simulation.world import HOURS, World
from tfmm import presets
from tfmm.config import MarketplaceConfig
from tfmm.data.instants import DAY_US
from tfmm.features import FeatureSet
from tfmm.marketplace import generator

TINY = MarketplaceConfig(
    num_items=60, new_items_per_day=30, num_users=25, num_days=2, impressions_per_user_day=4, num_searches=40,
    image_size=16,
)  # fmt: skip
RUN = dataclasses.replace(presets.small(), marketplace=TINY)


@pytest.fixture(scope="module")
def tables(tmp_path_factory):
    folder = tmp_path_factory.mktemp("marketplace")
    generator.generate(TINY, folder)
    return folder


def lived(tables, hours, seed=0):
    world, visits = World(RUN, tables, seed, 32), []
    for hour in range(hours):
        world.arrive(hour)
        visits += world.visit(hour, 5)
    return world, visits


def test_the_same_seed_gives_the_same_visits_and_clicks_and_another_one_others(tables):
    _, visits = lived(tables, 3)
    assert visits == lived(tables, 3)[1] != lived(tables, 3, seed=1)[1]


def test_a_day_has_its_new_items_and_a_pool_those_of_the_last_day_above_all(tables):
    world, visits = lived(tables, 3 * HOURS)
    new = [item for item in world.items.values() if item.created_at_us >= world.begins_us]
    assert len(new) == 3 * TINY.new_items_per_day
    share = [
        sum(visit.time_us - world.items[item].created_at_us < DAY_US for item in visit.pool) / len(visit.pool)
        for visit in visits
    ]
    wanted = 14 / 32  # with fewer of both, since an item that is drawn twice stands once
    assert sum(share) / len(share) == pytest.approx(wanted, abs=0.1) and min(share) > 0.1
    assert all(len(set(visit.pool)) == len(visit.pool) == len(visit.clicks) for visit in visits)


def test_visits_stand_in_order_within_their_hours_and_know_nothing_of_what_is_to_come(tables):
    world, visits = lived(tables, 2 * HOURS)
    assert [visit.number for visit in visits] == list(range(5 * 2 * HOURS))
    times = [visit.time_us for visit in visits]
    assert times == sorted(times) and world.begins_us <= times[0] and times[-1] < world.begins_us + 2 * DAY_US
    for visit in visits:
        assert all(world.items[item].created_at_us <= visit.time_us for item in visit.pool)


def test_every_item_has_a_bid_of_its_own(tables):
    world, _ = lived(tables, HOURS)
    bids = [item.bid for item in world.items.values()]
    assert len(bids) == 60 + 2 * 30 + 30 and len(set(bids)) == len(bids) and min(bids) > 0


def test_a_click_is_the_newest_behavior_and_histories_keep_their_length():
    features = dataclasses.replace(RUN, data=dataclasses.replace(RUN.data, max_behaviors=3)).feature_set
    user = {"user_id": 1, "behavior_item_ids": [4, 5, 6], "behavior_categories": [1, 2, 3]}
    arms.remember(user, features, {"item_id": 9, "category": 7})
    assert user == {"user_id": 1, "behavior_item_ids": [5, 6, 9], "behavior_categories": [2, 3, 7]}
    purchases = [dataclasses.replace(one, actions=("purchase",)) for one in features.sequences]
    arms.remember(user, FeatureSet(features.features, tuple(purchases)), {"item_id": 8, "category": 7})
    assert user["behavior_item_ids"] == [5, 6, 9]
