import numpy as np

from tfmm.marketplace import shoppers


def traits(**values):
    n = len(next(iter(values.values())))
    columns = {name: np.zeros(n, int) for name in ("category", "palette", "pattern", "style", "material")}
    return shoppers.Traits(**{**columns, "popularity": np.zeros(n), **{k: np.array(v) for k, v in values.items()}})


def one_user():
    """Likes the look (1, 1) and the theme (2, 2)."""
    looks, themes = np.full((1, shoppers.LIKED, 2), 1), np.full((1, shoppers.LIKED, 2), 2)
    return shoppers.Taste(looks, themes, np.zeros((1, 12)))


def test_affinity_counts_shared_attributes_of_one_liked_pair():
    items = traits(palette=[1, 1, 0], pattern=[1, 0, 0], style=[0, 2, 2], material=[0, 0, 2])
    visual, textual = shoppers.affinities(one_user(), items, np.zeros(3, int), np.arange(3))
    np.testing.assert_allclose(visual, [1, shoppers.SAME_ONE, 0])
    np.testing.assert_allclose(textual, [0, shoppers.SAME_ONE, 1])


def test_the_click_logit_is_the_documented_sum():
    items = traits(palette=[1], pattern=[1], style=[2], material=[0], popularity=[0.5])
    logit = shoppers.click_logits(one_user(), items, np.array([0]), np.array([0]))
    expected = (
        shoppers.BASE_LOGIT
        + shoppers.VISUAL_WEIGHT
        + shoppers.TEXTUAL_WEIGHT * shoppers.SAME_ONE
        + shoppers.POPULARITY_WEIGHT * 0.5
    )
    np.testing.assert_allclose(logit, [expected])


def test_popular_items_are_drawn_more_often():
    pool = shoppers.draw_pool(np.array([0.0, 1.0]), 1, 20_000, np.random.default_rng(0))
    share = np.exp(0.8) / (1 + np.exp(0.8))
    assert abs(pool.mean() - share) < 0.02  # 5 standard deviations


def test_nobody_is_shown_an_item_twice():
    rng = np.random.default_rng(0)
    items = traits(palette=rng.integers(0, 10, 30), pattern=rng.integers(0, 8, 30))
    taste = shoppers.draw_taste(50, rng)
    shown = shoppers.show(taste, items, rng.integers(0, 30, (50, 64)), 10, rng)
    assert shown.shape == (50, 10)
    assert all(len(set(row)) == 10 for row in shown.tolist())


def test_a_pool_of_few_items_is_not_repeated():
    taste, items = one_user(), traits(palette=[0, 1, 2], pattern=[0, 0, 0])
    shown = shoppers.show(taste, items, np.array([[0, 1, 2, 2, 1, 0, 0]]), 5, np.random.default_rng(0))
    assert sorted(shown[0].tolist()) == [-1, -1, 0, 1, 2]


def test_liked_items_are_shown_and_chosen_more_often():
    items = traits(palette=[0, 1], pattern=[0, 1])
    pool = np.tile([0, 1], (1, 1)).repeat(2000, 0)
    taste = one_user()
    many = shoppers.Taste(taste.looks.repeat(2000, 0), taste.themes.repeat(2000, 0), taste.categories.repeat(2000, 0))
    assert shoppers.show(many, items, pool, 1, np.random.default_rng(0)).mean() > 0.8
    assert shoppers.choose(many, items, np.arange(2000), pool, np.random.default_rng(0)).mean() > 0.9
