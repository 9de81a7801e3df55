"""Tests of what a batch of events leads to."""

from serving.streaming import embedding, event_log, events
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet
from tfmm.index import encode, item_features


def embed(*payloads):
    batch = [event_log.Event(offset, payload) for offset, payload in enumerate(payloads, 1)]
    return embedding.embed_events(batch, [encode.GivenVectors(2)])


def test_bad_event_does_not_take_a_good_one_of_its_item_along():
    outcome = embed(
        events.make_event(7, vector=[1, 0, 0], event_time_us=1),
        events.make_event(7, vector=[1, 0], event_time_us=2),
    )
    assert [(event.offset, reason) for event, reason in outcome.dead] == [(1, "vector: must give 2 finite values")]
    assert [rows.event_times_us.tolist() for _, rows in outcome.embedded] == [[2]]


def test_encoder_that_fails_names_the_event():
    poison = events.make_event(7, vector=[3, 0]).replace(b"3.0", b"1" + b"0" * 400)  # no float
    outcome = embed(events.make_event(7, vector=[0, 1]), poison, events.make_event(8, vector=[1, 0]))
    assert [(event.offset, reason.split(":")[0]) for event, reason in outcome.dead] == [(2, "vector")]
    assert [rows.ids.tolist() for _, rows in outcome.embedded] == [[7, 8]]


def test_features_that_the_index_does_not_take_are_named():
    feature_set = FeatureSet((*DEFAULT_FEATURES, Feature("brand", "item")))
    layout = item_features.Layout.of(feature_set, dict.fromkeys(("category", "brand"), "int64"))
    payloads = [events.make_event(n, features=values) for n, values in enumerate(
        ({"warehouse": 3}, {"half\ud800": 1}, {"warehouse": 3, "brand": 5}), 1)]  # fmt: skip
    batch = [event_log.Event(n, payload) for n, payload in enumerate(payloads, 1)]
    dead = embedding.embed_events(batch, [encode.GivenVectors(2)], [layout]).dead
    found = {event.offset: reason for event, reason in dead}
    takes = "no content that this index embeds: it takes vector, features.brand, features.category, the event brings "
    assert found[1] == takes + "features.warehouse" and set(found) == {1, 2}
    assert "features.half\\ud800" in found[2] or "half a pair of surrogates" in found[2]


def test_content_that_no_encoder_covers_is_a_dead_letter():
    outcome = embed(
        events.make_event(7, title="red shoe"),
        events.make_event(8, title="red shoe", vector=[1, 0]),
        events.make_event(9, withdrawn=True),
    )
    assert [(event.offset, reason) for event, reason in outcome.dead] == [
        (1, "no content that this index embeds: it takes vector, the event brings title")
    ]


def test_content_that_no_encoder_covers_beside_one_that_is_embedded_is_named_once(caplog, monkeypatch):
    monkeypatch.setattr(embedding, "_said", set())
    for _ in range(2):
        outcome = embed(events.make_event(7, vector=[1, 0], contents={"sound": b"a", "Text": "red"}))
        assert outcome.dead == []
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"not used: contents.{name} of events; the index takes vector" for name in ("Text", "sound")]
