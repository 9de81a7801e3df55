"""Tests of events: what a good one gives, and the reason for which each bad one is refused."""

import json

import pytest

from serving.streaming import events
from tfmm import fingerprints


def parse(payload):
    (result,) = events.parse_events([payload])
    return result


def test_event_round_trip():
    new = parse(events.make_event("item-1", category="shoes", title="red", image=b"\x89PNG", event_time_us=5))
    assert (new.item.item_id, new.features) == (int(fingerprints.fingerprint(["item-1"])[0]), {"category": "shoes"})
    assert new.item.contents == {"text": "red", "image": b"\x89PNG"} and new.item.event_time_us == 5
    assert not new.is_withdrawn


def test_ids_of_both_kinds_in_one_batch():
    batch = [events.make_event(item_id, title="t") for item_id in (7, "a", -8, "b")]
    ids = [new.item.item_id for new in events.parse_events(batch)]
    assert ids[0::2] == [7, -8]
    assert ids[1::2] == fingerprints.fingerprint(["a", "b"]).tolist()


def test_event_time_is_now_where_none_is_given():
    assert parse(events.make_event(1, title="t")).item.event_time_us > 1_600_000_000_000_000


def test_vectors_and_withdrawals():
    assert parse(events.make_event(1, vector=[1, 0.5])).item.contents == {"vector": [1.0, 0.5]}
    assert parse(events.make_event(1, withdrawn=True)).is_withdrawn


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "version: must be 1"),
        ({"color": "red"}, "unknown fields: color"),
        ({"item_id": 0}, "item_id: must be neither"),
        ({"item_id": ""}, "item_id: must be neither"),
        ({"item_id": None}, "item_id: must be neither"),
        ({"item_id": 1.5}, "item_id: must be a 64-bit integer"),
        ({"item_id": True}, "item_id: must be a 64-bit integer"),
        ({"item_id": 1 << 63}, "item_id: must be a 64-bit integer"),
        ({"category": []}, "category: must be"),
        ({"event_time_us": "now"}, "event_time_us: must be microseconds"),
        ({"event_time_us": -1}, "event_time_us: must be microseconds"),
        ({"title": 5}, "title: must be text"),
        ({"title": None}, "no content"),
        ({"image": "not base64!"}, "image: not base64"),
        ({"image": 5}, "image: not base64"),
        ({"vector": "1,2"}, "vector: must be a list"),
        ({"vector": [None]}, "vector: must be a list"),
        ({"withdrawn": 1}, "withdrawn: must be true or false"),
    ],
)
def test_bad_fields_are_refused_with_the_reason(changes, reason):
    event = json.loads(events.make_event(7, title="red", event_time_us=1)) | changes
    assert str(parse(json.dumps(event).encode())).startswith(reason)


@pytest.mark.parametrize(("payload", "reason"), [(b"{", "not JSON"), (b"\xff", "not JSON"), (b"[]", "not a JSON")])
def test_payloads_that_are_no_events_are_refused(payload, reason):
    assert str(parse(payload)).startswith(reason)


def test_contents_of_any_modality_come_by_its_name():
    contents = {"audio": b"\x00\xff", "clip": [1, 0.5], "slogan": "soft", "gone": None}
    payload = events.make_event(1, title="red", contents=contents, event_time_us=1)
    assert json.loads(payload)["contents"] == {"audio": {"base64": "AP8="}, "clip": [1.0, 0.5], "slogan": "soft"}
    expected = {"text": "red", "audio": b"\x00\xff", "clip": [1.0, 0.5], "slogan": "soft"}
    assert parse(payload).item.contents == expected


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ([1], "contents: must be an object of contents by modality"),
        ({"clip": 3}, 'contents.clip: must be text, {"base64": ...} or a list of numbers'),
        ({"clip": {"hex": "00"}}, 'contents.clip: must be text, {"base64": ...} or a list of numbers'),
        ({"audio": {"base64": "?"}}, "contents.audio: not base64"),
        ({"audio": {"base64": [1]}}, "contents.audio: not base64"),
        ({"clip": [1, None]}, "contents.clip: must be a list of numbers"),
        ({"clip": [1] * 1041}, "contents.clip: must have at most 1040 values"),
        ({"slogan": "a\ud800"}, "contents.slogan: must be Unicode text"),
        ({"a\ud800": "a"}, "contents: must be Unicode text"),
        ({"text": "blue"}, "contents.text: must not stand beside title, which is the same content"),
    ],
)
def test_bad_contents_are_refused_with_the_reason(contents, reason):
    event = json.loads(events.make_event(7, title="red", event_time_us=1)) | {"contents": contents}
    assert str(parse(json.dumps(event).encode())).startswith(reason)


def test_empty_contents_are_no_content():
    event = {"version": 1, "item_id": 7, "event_time_us": 1, "contents": {"clip": [], "audio": {"base64": ""}}}
    assert str(parse(json.dumps(event).encode())).startswith("no content: none of title, image, vector and contents")
