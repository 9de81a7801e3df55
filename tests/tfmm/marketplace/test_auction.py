"""The auction, against a slow loop and against its own meaning; bids that the seed gives."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tfmm.config import MarketplaceConfig
from tfmm.marketplace import auction, generator

TINY = MarketplaceConfig(num_items=40, new_items_per_day=4, num_users=20, num_days=2, num_searches=30, image_size=16)
candidates = st.lists(st.tuples(st.floats(0.01, 1.0), st.floats(0.0, 2.0)), min_size=1, max_size=12)


def by_loop(scores, bids, num_slots, reserve):
    """The rules one by one: takes the best of those that are left, again and again."""
    left, shown = [c for c in range(len(bids)) if bids[c] >= reserve], []
    while left:
        best = left[0]
        for candidate in left:
            if scores[candidate] * bids[candidate] > scores[best] * bids[best]:
                best = candidate
        left.remove(best)
        shown.append(best)
    prices = []
    for own, after in zip(shown, [*shown[1:], None]):
        price = reserve if after is None else scores[after] * bids[after] / scores[own]
        prices.append(min(max(price, reserve), bids[own]))
    return shown[:num_slots], prices[:num_slots]


@given(candidates, st.integers(1, 5), st.floats(0.01, 0.5))
def test_the_auction_is_that_of_a_slow_loop(found, num_slots, reserve):
    scores, bids = np.array(found).T
    places, prices = auction.second_price(scores, bids, num_slots, reserve)
    wanted_places, wanted_prices = by_loop(scores, bids, num_slots, reserve)
    assert places.tolist() == wanted_places and prices.tolist() == wanted_prices
    assert (prices >= reserve).all() and (prices <= bids[places]).all()


def test_a_price_is_the_least_bid_that_keeps_the_slot():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scores, bids = rng.uniform(0.01, 0.5, 9), np.exp(rng.normal(-0.7, 0.5, 9))
        places, prices = auction.second_price(scores, bids, 4)
        for slot, (place, price) in enumerate(zip(places, prices)):
            for factor, keeps in ((1.001, True), (0.999, False)):
                changed = bids.copy()
                changed[place] = price * factor
                again, _ = auction.second_price(scores, changed, 4)
                assert (again[slot : slot + 1] == place).all() == keeps, (slot, factor)


def test_one_candidate_pays_the_reserve_and_below_it_nobody_is_shown():
    places, prices = auction.second_price(np.array([0.3]), np.array([2.0]), 3, reserve=0.25)
    assert (places.tolist(), prices.tolist()) == ([0], [0.25])
    places, prices = auction.second_price(np.array([0.3]), np.array([0.2]), 3, reserve=0.25)
    assert (places.tolist(), prices.tolist()) == ([], [])


def test_of_equal_ones_the_earlier_is_first_and_pays_its_bid():
    places, prices = auction.second_price(np.full(3, 0.1), np.full(3, 0.4), 2)
    assert places.tolist() == [0, 1] and prices.tolist() == [0.4, 0.4]


@pytest.mark.parametrize(
    ("scores", "bids", "said"),
    [
        ([0.1, 0.2], [1.0], r"of one length. Received: \(2,\) and \(1,\)"),
        ([0.0], [1.0], r"`scores` must lie in \(0, 1\]"),
        ([float("nan")], [1.0], r"`scores` must lie in \(0, 1\]"),
        ([0.5], [-1.0], "`bids` must be finite and not negative"),
    ],
)
def test_what_is_no_auction_is_refused(scores, bids, said):
    with pytest.raises(ValueError, match=said):
        auction.second_price(np.array(scores), np.array(bids), 1)
    with pytest.raises(ValueError, match="`reserve` must be positive"):
        auction.second_price(np.array([0.5]), np.array([1.0]), 1, reserve=0.0)


def test_bids_are_those_of_the_seed_around_levels_of_categories():
    config = dataclasses.replace(TINY, num_items=20_000)
    bids = auction.catalog_bids(config)
    np.testing.assert_array_equal(bids, auction.catalog_bids(config))
    assert not np.array_equal(bids, auction.catalog_bids(dataclasses.replace(config, seed=1)))
    _, traits = generator.draw_shoppers(config)
    logarithms = [np.log(bids[traits.category == category]) for category in range(12)]
    spreads = [of_category.std() for of_category in logarithms]
    np.testing.assert_allclose(spreads, auction.ITEM_SPREAD, rtol=0.1)  # over 4 standard errors of 1,600 draws
    levels = [of_category.mean() - np.log(auction.MEDIAN_BID) for of_category in logarithms]
    assert np.std(levels) == pytest.approx(auction.CATEGORY_SPREAD, rel=0.6)  # of 12 draws
    new = [auction.new_item_bid(config, number) for number in range(400)]
    assert len(set(new)) == 400
    of_first = [bid for n, bid in enumerate(new) if generator.traits_of_new_item(config, n).category[0] == 0]
    assert np.mean(np.log(of_first)) == pytest.approx(np.mean(logarithms[0]), abs=0.3)  # 4 standard errors of some 30
