"""Tests of the rich marketplace: its columns, and that the effects in its truth are those in its clicks."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from tfmm import metrics, presets
from tfmm.data import checks, declared, schema, transform
from tfmm.data.join import write_examples
from tfmm.marketplace import generator, planted

EFFECTS = [effect.name for effect in planted.EFFECTS]


def truth(folder):
    table = pq.read_table(folder / "truth" / "impressions.parquet")
    return {name: table[name].to_numpy() for name in table.column_names}


def logits(shown):
    return np.log(shown["click_probability"] / (1 - shown["click_probability"]))


@pytest.fixture(scope="module")
def config(small_config):
    return dataclasses.replace(small_config, rich=True)


@pytest.fixture(scope="module")
def rich(tmp_path_factory, config):
    folder = tmp_path_factory.mktemp("rich")
    generator.generate(config, folder)
    return folder


def test_the_preset_finds_all_that_it_declares(rich):
    run = presets.rich()
    report = checks.check(rich, run.data, run.feature_set)
    assert report.ok, [str(fault) for fault in report.faults]
    assert declared.faults(rich, run.feature_set) == []
    assert [str(found) for found in report.unread] == ["truth/"]


def test_what_is_not_of_clicks_stays_as_it_is_without(rich, small_marketplace):
    assert schema.read_table(rich, "searches").equals(schema.read_table(small_marketplace, "searches"))
    assert schema.read_table(rich, "items").equals(schema.read_table(small_marketplace, "items"))
    shown = ["user_id", "item_id", "timestamp"]
    assert schema.read_table(rich, "impressions", shown).equals(
        schema.read_table(small_marketplace, "impressions", shown)
    )
    assert not (small_marketplace / "users.parquet").exists()
    assert "popularity" in truth(small_marketplace) and "price_effect" not in truth(small_marketplace)


def test_the_logit_is_that_of_the_same_impressions_plus_the_effects(rich, small_marketplace):
    with_effects, without = truth(rich), truth(small_marketplace)
    effects = sum(with_effects[f"{name}_effect"] for name in EFFECTS)
    np.testing.assert_allclose(logits(with_effects) - effects, logits(without), atol=1e-8)  # through a sigmoid


def test_each_effect_is_worth_a_point_of_auc_by_the_true_probabilities(rich):
    shown = truth(rich)
    probability, logit = shown["click_probability"], logits(shown)
    rng = np.random.default_rng(0)
    labels = rng.random((20, len(logit))) < probability  # twenty weeks of the same impressions

    def auc(values):
        return np.mean([metrics.auc(clicks, values) for clicks in labels])

    facts = json.loads((rich / "truth" / "effects.json").read_text())
    assert list(facts["effects"]) == EFFECTS
    assert facts["auc"] == pytest.approx(auc(logit), abs=0.003)  # 5 standard errors of twenty weeks
    for effect in planted.EFFECTS:
        part = shown[f"{effect.name}_effect"]
        # averaged out: the mean probability over what the effect might have been
        averaged = (1 / (1 + np.exp(-(logit - part)[:, None] - rng.choice(part, 50)))).mean(1)
        lost = auc(logit) - auc(averaged)
        assert lost >= 0.01, effect
        assert facts["effects"][effect.name]["auc_lost_without"] == pytest.approx(lost, abs=0.003)
        assert facts["effects"][effect.name]["columns"] == list(effect.columns)
        assert (part.mean(), part.std()) == pytest.approx((0, effect.spread))


def test_effects_point_the_way_that_they_say():
    plan = dataclasses.replace(
        planted.draw(4, 2, np.zeros(3, int), np.random.default_rng(0)),
        price=np.array([5.0, 20.0, 80.0]),
        income=np.array([1e4, 2e4, 4e4, 8e4]),
        city=np.array([0, 0, 1, 1]),
        city_liking=np.array([1.0, -1.0]),
        is_local=np.array([1.0, 0.0]),
    )
    hour = 3_600_000_000
    user, item, place = np.array([0, 0, 3, 3]), np.array([0, 2, 0, 2]), np.array([1, 2, 3, 4])
    found = plan.effects(user, item, np.array([0, 1, 0, 1]), hour * np.array([20, 8, 14, 20]), place)
    price = found["price"]
    assert price[0] > price[1] and price[2] > price[3] and price[0] - price[1] > 2 * (price[2] - price[3])
    np.testing.assert_allclose(found["city_category"], 0.8 * np.sqrt(2) * np.array([1, 0, -1, 0]))
    assert found["time_of_day"][0] == found["time_of_day"][3] > found["time_of_day"][2] > found["time_of_day"][1]
    assert (np.diff(found["position"]) < 0).all()


def test_positions_count_from_one_in_each_visit(rich):
    table = pq.read_table(rich / "impressions.parquet").to_pydict()
    visits = {}
    for user, time, position, device in zip(*(table[n] for n in ("user_id", "timestamp", "position", "device"))):
        visits.setdefault((user, time.day), []).append((time, position, device))
    # a visit that passes midnight counts on
    whole = [sorted(rows) for rows in visits.values() if rows and min(time.hour for time, _, _ in rows) >= 6]
    assert len(whole) > 1000
    for rows in whole:
        assert [position for _, position, _ in rows] == list(range(1, len(rows) + 1))
        assert len({device for _, _, device in rows}) == 1


def test_what_is_not_known_is_null(rich):
    income = pq.read_table(rich / "users.parquet")["income"]
    dwell = pq.read_table(rich / "behaviors.parquet")["dwell"]
    assert 0.04 < income.null_count / len(income) < 0.18
    assert 0.04 < dwell.null_count / len(dwell) < 0.06
    tags = pq.read_table(rich / "items.parquet")["tags"].to_pylist()
    assert {len(names) for names in tags} == {0, 1, 2, 3}


def test_one_seed_gives_one_rich_marketplace(tmp_path, config):
    tiny = dataclasses.replace(config, num_items=40, new_items_per_day=4, num_users=20, num_days=2, num_searches=30)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        generator.generate(dataclasses.replace(tiny, seed=seed), tmp_path / name)
    for table in ("users", "items", "behaviors", "impressions"):
        a, b, c = (pq.read_table(tmp_path / name / f"{table}.parquet") for name in "abc")
        assert a.equals(b) and not a.equals(c)


@pytest.mark.slow
def test_the_preset_becomes_examples_of_every_column(rich, tmp_path):
    run = presets.rich()
    write_examples(rich, run.data, run.feature_set, tmp_path / "raw")
    manifest = transform.fit(tmp_path / "raw", tmp_path / "vocabulary")
    sizes = manifest["vocabulary_sizes"]
    assert sizes["city"] == len(planted.CITIES) + 2 and sizes["device"] == len(planted.DEVICES) + 2
    assert sizes["tags"] == len(planted.TAGS) + 2 and sizes["hour"] == 25
