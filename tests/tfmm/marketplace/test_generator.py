import dataclasses
import datetime
import hashlib

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm import artifacts, metrics
from tfmm.config import MarketplaceConfig
from tfmm.data import checks, schema
from tfmm.marketplace import generator, shoppers

TINY = MarketplaceConfig(
    num_items=40,
    new_items_per_day=4,
    num_users=20,
    num_days=2,
    impressions_per_user_day=4,
    num_searches=30,
    image_size=16,
)

GOLDEN = {
    "items": "8800129ad0880e55",
    "searches": "a8bed335a339bf36",
    "behaviors": "cff354c4b6bf6d52",
    "impressions": "4e7a0f1b8de50481",
}


def truth(folder, name):
    return pq.read_table(folder / "truth" / f"{name}.parquet").to_pydict()


def gauc(users, labels, scores):
    return metrics.gauc(labels, scores, users).value


def test_one_seed_gives_one_marketplace(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generator.generate(dataclasses.replace(TINY, seed=seed), tmp_path / name)
    for table in schema.TABLES:
        a, b, c = (schema.read_table(tmp_path / name, table) for name in "abc")
        assert a.equals(b) and not a.equals(c)


def test_items_without_image_or_title_change_nothing_else(tmp_path):
    generator.generate(TINY, tmp_path / "whole")
    config = dataclasses.replace(TINY, missing_image_fraction=0.5, missing_title_fraction=0.25)
    generator.generate(config, tmp_path / "lacking")
    assert checks.check(tmp_path / "lacking").ok
    whole, lacking = (schema.read_table(tmp_path / name, "items") for name in ("whole", "lacking"))
    old = np.array(whole["item_id"]) < generator.FIRST_ITEM_ID + TINY.num_items
    for column, share in (("image", 0.5), ("title", 0.25)):
        kept = np.array([value is not None for value in lacking[column].to_pylist()])
        assert whole[column].filter(kept).equals(lacking[column].drop_null())
        for rows in (old, ~old):  # new items lack them as often; 4 standard errors of so few
            assert abs(1 - kept[rows].mean() - share) < 4 * (share * (1 - share) / rows.sum()) ** 0.5
    for table in set(schema.TABLES) - {"items"}:
        assert schema.read_table(tmp_path / "whole", table).equals(schema.read_table(tmp_path / "lacking", table))


def test_bytes_of_the_tables_stay(tmp_path):
    """Golden: SHA-256 of TINY's rows, seed 0, by the generator before it could leave images and titles out.

    Images count as their pixels: how PNG packs them is the encoder's affair.
    """
    generator.generate(TINY, tmp_path)
    found = {}
    for name in schema.TABLES:
        rows = schema.read_table(tmp_path, name).to_pydict()
        for column in {"image", "query_image"} & set(rows):
            rows[column] = [png and tf.io.decode_png(png).numpy().tobytes() for png in rows[column]]
        found[name] = hashlib.sha256(repr(rows).encode()).hexdigest()[:16]
    assert found == GOLDEN


def test_the_tables_pass_the_check(small_marketplace):
    report = checks.check(small_marketplace)
    assert report.ok, [str(fault) for fault in report.faults]
    assert report.counts == artifacts.read_manifest(small_marketplace, "data")["rows"]
    assert schema.modalities(small_marketplace) == ("image", "text")


def test_new_items_enter_every_day_and_are_shown_only_then(small_marketplace):
    items = schema.read_table(small_marketplace, "items", ["item_id", "created_at"])
    created = dict(zip(items["item_id"].to_pylist(), items["created_at"].to_pylist()))
    week_start = datetime.datetime(1970, 1, 1) + datetime.timedelta(microseconds=generator.WEEK_START_US)
    days = np.array([time.day for time in created.values() if time >= week_start])
    assert np.bincount(days)[4:].tolist() == [20] * 7  # the week starts on the fourth
    for name in ("impressions", "behaviors"):
        log = schema.read_table(small_marketplace, name, ["item_id", "timestamp"]).to_pydict()
        assert all(created[item] <= time for item, time in zip(log["item_id"], log["timestamp"]))


def test_searches_end_in_a_purchase_and_clicks_lead_from_it(small_marketplace):
    acts = schema.read_table(small_marketplace, "behaviors")
    acts = acts.filter(pc.is_valid(acts["search_id"])).to_pylist()
    bought = {act["search_id"]: act["item_id"] for act in acts if act["action"] == "purchase"}
    searches = schema.read_table(small_marketplace, "searches").to_pylist()
    assert set(bought) == {search["search_id"] for search in searches}
    led = [act for act in acts if act["trigger_item_id"] is not None]
    assert 0.5 * len(searches) < len(led) < len(searches)
    assert all(act["trigger_item_id"] == bought[act["search_id"]] != act["item_id"] for act in led)
    assert {(s["query_text"] is None, s["query_image"] is None) for s in searches} == {
        (False, False),
        (True, False),
        (False, True),
    }


def test_rivals_resemble_what_was_wanted(small_marketplace):
    columns = truth(small_marketplace, "items")
    category = dict(zip(columns["item_id"], columns["category"]))
    acts = schema.read_table(small_marketplace, "behaviors", ["item_id", "trigger_item_id"])
    acts = acts.filter(pc.is_valid(acts["trigger_item_id"])).to_pylist()
    assert np.mean([category[act["item_id"]] == category[act["trigger_item_id"]] for act in acts]) > 0.5


def test_images_and_queries_decode_to_the_size_asked_for(small_marketplace):
    for name, column in (("items", "image"), ("searches", "query_image")):
        image = schema.read_table(small_marketplace, name, [column])[column].drop_null()[0].as_py()
        assert tf.io.decode_png(image).shape == (16, 16, 3)


def test_clicks_follow_taste_more_than_popularity(small_marketplace):
    shown = {name: np.array(values) for name, values in truth(small_marketplace, "impressions").items()}
    taste = shoppers.VISUAL_WEIGHT * shown["visual_affinity"] + shoppers.TEXTUAL_WEIGHT * shown["textual_affinity"]
    users, labels = shown["user_id"], shown["label"]
    assert 0.15 < labels.mean() < 0.25
    assert gauc(users, labels, taste) > 0.7
    assert 0.54 < gauc(users, labels, shown["popularity"]) < gauc(users, labels, taste)
    assert gauc(users, labels, shown["visual_affinity"]) > 0.6
    assert gauc(users, labels, shown["textual_affinity"]) > 0.6
    # 5 standard errors of the mean of as many clicks
    assert shown["click_probability"].mean() == pytest.approx(labels.mean(), abs=5 * labels.std() / len(labels) ** 0.5)


def test_tastes_can_be_recovered_from_what_users_did(small_marketplace):
    items, users = truth(small_marketplace, "items"), truth(small_marketplace, "users")
    look = dict(zip(items["item_id"], zip(items["palette"], items["pattern"])))
    liked = {user: {tuple(pair) for pair in looks} for user, looks in zip(users["user_id"], users["liked_looks"])}
    acts = schema.read_table(small_marketplace, "behaviors", ["user_id", "item_id"]).to_pydict()
    hits = np.mean([look[item] in liked[user] for user, item in zip(acts["user_id"], acts["item_id"])])
    by_chance = np.mean([look[item] in liked[user] for user, item in zip(acts["user_id"], reversed(acts["item_id"]))])
    assert hits > 5 * by_chance


def test_tastes_cut_across_categories(small_marketplace):
    columns = truth(small_marketplace, "items")
    table = np.zeros((12, 10))
    np.add.at(table, (columns["category"], columns["palette"]), 1)
    expected = table.sum(1, keepdims=True) * table.sum(0, keepdims=True) / table.sum()
    chi_square = ((table - expected) ** 2 / expected).sum()
    assert chi_square < 170  # 99 degrees of freedom; p = 1e-5


def test_the_order_of_impressions_is_time_and_says_nothing_of_labels(small_marketplace):
    shown = schema.read_table(small_marketplace, "impressions")
    times, labels = schema.microseconds(shown["timestamp"]), shown["label"].to_numpy()
    assert (np.diff(times) >= 0).all()
    assert "split" not in shown.column_names
    assert abs(np.corrcoef(labels[1:], labels[:-1])[0, 1]) < 0.1


def test_an_item_is_shown_once_per_user_and_day(small_marketplace):
    shown = schema.read_table(small_marketplace, "impressions").to_pydict()
    seen = list(zip(shown["user_id"], shown["item_id"], (time.day for time in shown["timestamp"])))
    assert len(seen) == len(set(seen))


def test_a_new_item_is_drawn_like_the_others(small_marketplace):
    config = TINY
    first, second = (generator.draw_new_item(config, number, 7) for number in (0, 1))
    assert first == generator.draw_new_item(config, 0, 7)
    assert first["item_id"] == generator.FIRST_ITEM_ID + 48 and second["item_id"] == first["item_id"] + 1
    assert first["image"] != second["image"] and first["title"] != second["title"]
    assert tf.io.decode_png(first["image"]).shape == (16, 16, 3)
    assert 1 <= first["category"] <= 12 and first["created_at"] == 7
    rich = generator.draw_new_item(dataclasses.replace(config, rich=True), 0, 7)
    assert {name: rich[name] for name in first} == first and set(rich) - set(first) == {"brand", "price", "tags"}
    assert rich["brand"] in rich["title"] and rich["price"] >= 0.5 and isinstance(rich["tags"], list)


def test_a_marketplace_without_new_items_works(tmp_path):
    manifest = generator.generate(dataclasses.replace(TINY, new_items_per_day=0), tmp_path)
    assert manifest["rows"]["items"] == 40


@pytest.mark.slow
def test_the_default_marketplace_has_the_signal_it_promises(tmp_path):
    manifest = generator.generate(MarketplaceConfig(), tmp_path)
    assert 0.15 <= manifest["click_through_rate"] <= 0.25
    shown = {name: np.array(values) for name, values in truth(tmp_path, "impressions").items()}
    held = np.argsort(shown["timestamp"], kind="stable")[int(0.8 * len(shown["label"])) :]
    users, labels = shown["user_id"][held], shown["label"][held]
    taste = shoppers.VISUAL_WEIGHT * shown["visual_affinity"] + shoppers.TEXTUAL_WEIGHT * shown["textual_affinity"]
    assert gauc(users, labels, taste[held]) >= 0.70
    assert 0.55 <= gauc(users, labels, shown["popularity"][held]) <= 0.65
    train = np.ones(len(shown["label"]), bool)
    train[held] = False
    new = ~np.isin(shown["item_id"][held], shown["item_id"][train])
    assert new.sum() > 1000 and gauc(users[new], labels[new], taste[held][new]) >= 0.70
