"""Shoppers after the week are those of the week: same tastes, same items, same click model."""

import dataclasses

import numpy as np
import pyarrow.parquet as pq
import pytest

from tfmm.config import MarketplaceConfig
from tfmm.marketplace import generator, shoppers, visits, wording

TINY = MarketplaceConfig(
    num_items=40, new_items_per_day=4, num_users=20, num_days=2, impressions_per_user_day=4, num_searches=30,
    image_size=16,
)  # fmt: skip


@pytest.fixture
def visited():
    return visits.Visits(TINY, np.random.default_rng(0))


def test_tastes_and_items_are_those_of_the_tables(tmp_path):
    generator.generate(TINY, tmp_path)
    taste, traits = generator.draw_shoppers(TINY)
    users, items = (pq.read_table(tmp_path / "truth" / f"{name}.parquet") for name in ("users", "items"))
    assert users["liked_looks"].to_pylist() == taste.looks.tolist()
    assert users["liked_themes"].to_pylist() == taste.themes.tolist()
    np.testing.assert_array_equal(np.array(users["category_preference"].to_pylist()), taste.categories)
    for field in dataclasses.fields(shoppers.Traits):
        np.testing.assert_array_equal(items[field.name].to_numpy(), getattr(traits, field.name), err_msg=field.name)


def test_what_a_new_item_is_agrees_with_its_event():
    for number in range(20):
        item, traits = generator.draw_new_item(TINY, number, 1), generator.traits_of_new_item(TINY, number)
        assert item["category"] == traits.category[0] + 1
        for words in (wording.STYLES[traits.style[0]], wording.MATERIALS[traits.material[0]]):
            assert any(word in item["title"] for word in words), item["title"]


def test_a_pool_has_new_items_once_there_are_some_and_none_twice(visited):
    known = range(generator.FIRST_ITEM_ID, generator.FIRST_ITEM_ID + 48)
    for pool in (visited.pool() for _ in range(20)):
        assert len(set(pool)) == len(pool) <= generator.POOL and set(pool) <= set(known)
    new = [generator.draw_new_item(TINY, number, 1)["item_id"] for number in range(3)]
    for number, item in enumerate(new):
        visited.add(item, number)
    found = {item for _ in range(20) for item in visited.pool()}
    assert set(new) <= found and found - set(new) <= set(known)


def test_a_pool_has_the_newest_of_the_catalog_until_new_items_take_their_place():
    old = {generator.FIRST_ITEM_ID, generator.FIRST_ITEM_ID + 1}
    visited = visits.Visits(TINY, np.random.default_rng(0), size=32, recent=2, newest=sorted(old))
    pools = [set(visited.pool()) for _ in range(100)]
    assert all(len(pool) <= 32 and pool & old for pool in pools)  # 14 of 32 are drawn of those two
    new = {generator.draw_new_item(TINY, number, 1)["item_id"] for number in range(2)}
    for number, item in enumerate(sorted(new)):
        visited.add(item, number)
    pools = [set(visited.pool()) for _ in range(100)]
    assert all(pool & new for pool in pools) and not all(pool & old for pool in pools)


def test_clicks_are_as_frequent_as_the_planted_model_says(visited):
    """Of one shopper, the item that suits best, the one that suits least, and a new one."""
    taste, traits = generator.draw_shoppers(TINY)
    logits = shoppers.click_logits(taste, traits, np.full(48, 4), np.arange(48))
    new = generator.draw_new_item(TINY, 0, 1)["item_id"]
    visited.add(new, 0)
    of_new = shoppers.click_logits(taste, generator.traits_of_new_item(TINY, 0), np.array([4]), np.array([0]))
    places = [int(np.argmax(logits)), int(np.argmin(logits))]
    shown = [*(generator.FIRST_ITEM_ID + place for place in places), new]
    clicks = np.mean([visited.clicks(generator.FIRST_USER_ID + 4, shown) for _ in range(4000)], axis=0)
    noise = shoppers.NOISE * np.random.default_rng(1).standard_normal((100_000, 1))
    wanted = np.mean(1 / (1 + np.exp(-(np.array([*logits[places], of_new[0]]) + noise))), axis=0)
    np.testing.assert_allclose(clicks, wanted, atol=0.03)  # over 3 standard deviations of 4,000 draws
