"""Features in events: the catalog's types, missing values, and reasons that name the feature."""

import json
import logging

import numpy as np
import pytest

from serving.streaming import embedding, event_log, events, item_features, pipeline
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet
from tfmm.fingerprints import fingerprint
from tfmm.index.item_features import Layout

FEATURES = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("brand", "item"),
        Feature("color", "item", source="items.colour"),
        Feature("price", "item", "number"),
        Feature("tags", "item", "ids", max_values=2),
        Feature("codes", "item", "ids"),
        Feature("in_stock", "item", "boolean"),
        Feature("launched", "item", "time"),
        Feature("day", "item", "time", source="items.launched", part="weekday"),
    )
)
TYPES = {"category": "int64", "brand": "int64", "color": "string", "tags": "string", "codes": "int64"}
LAYOUT = Layout.of(FEATURES, TYPES)


def read(*brought, layouts=(LAYOUT,)):
    return item_features.pack(brought, layouts)


def values_of(packed):
    return {name: column[0] for name, column in LAYOUT.unpack(packed.row[None]).items()}


def test_every_kind_is_read_as_in_the_catalog():
    ((packed,),) = read({
        "category": -5, "brand": 1 << 62, "colour": "réd", "price": 3, "tags": ["a", None, "", "b", "c"],
        "codes": [0, 9], "in_stock": True, "launched": 1_700_000_000_000_000,
    })  # fmt: skip
    values = values_of(packed)
    assert (values["category"], values["brand"], values["price"], values["in_stock"]) == (-5, 1 << 62, 3.0, 1.0)
    assert values["color"] == fingerprint(["réd"])[0]
    assert values["tags"].tolist() == fingerprint(["a", "b"]).tolist()
    assert values["codes"].tolist() == [9] + [0] * 7
    assert values["launched"] == values["day"] == 1_700_000_000_000_000
    assert packed.given.all() and packed.version == LAYOUT.version


def test_null_is_missing_and_what_is_not_there_is_not_given():
    ((packed,),) = read({"price": None, "colour": None, "tags": None, "in_stock": None, "launched": None, "brand": 0})
    values = values_of(packed)
    assert np.isnan(values["price"]) and np.isnan(values["in_stock"])
    assert values["color"] == values["launched"] == values["brand"] == 0 and not values["tags"].any()
    given = {name for name, (start, _) in LAYOUT.places.items() if packed.given[start]}
    assert given == {"price", "color", "tags", "in_stock", "launched", "day", "brand"}
    assert read({}) == [()]


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("brand", "7", "features.brand: must be a 64-bit integer, as in the catalog, not '7'"),
        ("brand", 7.0, "features.brand: must be a 64-bit integer"),
        ("brand", True, "features.brand: must be a 64-bit integer"),
        ("brand", 1 << 63, "features.brand: must be a 64-bit integer"),
        ("colour", 7, "features.colour: must be text, as in the catalog, not 7"),
        ("colour", "a\ud800", "features.colour: must be Unicode text"),
        ("price", "9.9", "features.price: must be a number, not '9.9'"),
        ("price", True, "features.price: must be a number"),
        ("price", 1e39, "features.price: must be finite"),
        ("price", float("inf"), "features.price: must be finite"),
        ("price", 10**400, "features.price: must be finite"),
        ("tags", "red", "features.tags: must be a list, each of it text, not 'red'"),
        ("tags", ["red", 3], "features.tags: must be text"),
        ("codes", [1, "2"], "features.codes: must be a 64-bit integer"),
        ("codes", [[1]], "features.codes: must be a 64-bit integer"),
        ("in_stock", 1, "features.in_stock: must be true or false, not 1"),
        ("launched", "2024-01-01", "features.launched: must be microseconds since 1970, not '2024-01-01'"),
        ("launched", 1.5, "features.launched: must be microseconds since 1970"),
        ("category", "shoes", "features.category: must be a 64-bit integer"),
    ],
)
def test_another_type_is_refused_by_name_and_its_neighbors_are_read(column, value, reason):
    first, bad, last = read({"price": 1.0}, {"price": 2.0, column: value}, {"price": 3.0})
    assert isinstance(bad, events.EventError) and str(bad).startswith(reason)
    assert (values_of(first[0])["price"], values_of(last[0])["price"]) == (1.0, 3.0)


def test_an_event_of_another_type_is_a_dead_letter_as_a_whole():
    batch = [event_log.Event(n, events.make_event(n, title="red", features={"price": price}))
             for n, price in enumerate((1.0, "2", 3.0), 1)]  # fmt: skip
    outcome = embedding.embed_events(batch, [], [LAYOUT])
    assert [item.item_id for item in outcome.items] == [1, 3]
    assert [(event.offset, reason) for event, reason in outcome.dead if event.offset == 2] == [
        (2, "features.price: must be a number, not '2'")
    ]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"features": [1]}, "features: must be an object of values by column, not [1]"),
        ({"features": {"category": 2}, "category": 3}, "features.category: must not stand beside category"),
    ],
)
def test_features_that_are_no_features_are_refused(change, reason):
    event = json.loads(events.make_event(7, title="red", event_time_us=1)) | change
    (found,) = events.parse_events([json.dumps(event).encode()])
    assert str(found).startswith(reason)


def test_a_column_that_no_layout_takes_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(item_features, "_said", set())
    with caplog.at_level(logging.WARNING):
        assert read({"wieght": 1.0}, {"wieght": 2.0}) == [(), ()]
    assert caplog.text.count("not used: 'wieght' among an event's features") == 1
    assert "the index takes brand, category, codes, colour" in caplog.text
    with caplog.at_level(logging.WARNING):
        read(*({f"other {n}": 1, "\ud800": 1} for n in range(1000)))
    assert len(caplog.records) == 100 == len(item_features._said)  # a hostile producer fills no memory


def test_layouts_of_several_runs_are_all_filled_where_types_agree():
    older = Layout.of(FeatureSet((*DEFAULT_FEATURES, Feature("brand", "item"), Feature("price", "item", "number"),
                                  Feature("size", "item"))), {"brand": "string", "category": "int64"})  # fmt: skip
    (rows,) = read({"brand": 5, "price": 2.0, "size": 4}, layouts=(older, LAYOUT))
    old, new = rows
    assert (old.version, new.version) == (older.version, LAYOUT.version)
    values = {name: column[0] for name, column in older.unpack(old.row[None]).items()}
    assert values == {"brand": 0, "category": 0, "size": 4, "price": 2.0}  # of brand, text is wanted
    assert values_of(new)["brand"] == 5


@pytest.mark.parametrize("value", [float("nan"), None])
def test_make_event_says_of_a_missing_value_that_it_is_none(value):
    payload = json.loads(events.make_event(7, features={"price": value}, event_time_us=1))
    assert payload["features"] == {"price": None}


def test_the_job_takes_features_of_a_layout_that_came_while_it_ran(encoders_dir, tmp_path, running_job, wait_for):
    from tfmm.index import store

    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log, store.open_store(tmp_path / "i.sqlite") as index:
        with running_job(log.path, encoders_dir, index.url):
            assert not pipeline.stop_requested.is_set()
            index.register_encoder("item_features", LAYOUT.version, LAYOUT.dim, LAYOUT.text)
            last = log.append([events.make_event(7, title="red", category=4, features={"price": 9.5})])
            wait_for(lambda: index.position(log.name) == last)
        found = index.embeddings("item_features", LAYOUT.version)
        assert found.ids.tolist() == [7] and index.dead_letters() == []
        values = {name: column[0] for name, column in LAYOUT.unpack(found.rows).items()}
        assert (values["price"], values["category"]) == (9.5, 4) and np.isnan(values["in_stock"])
