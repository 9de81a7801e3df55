"""Times in other units, in the future or too old, and ids of another type than the catalog's."""

import json
import logging
import time

import numpy as np
import pytest

from serving.streaming import embedding, event_log, events, ingestion, pipeline
from tfmm import fingerprints
from tfmm.index import encode, item_index

DAY_US = 86_400_000_000
NOW_US = time.time_ns() // 1000
SHOE = 1004


def event(item_id=SHOE, **changes):
    return json.dumps(json.loads(events.make_event(item_id, vector=[1, 0], event_time_us=NOW_US)) | changes).encode()


@pytest.fixture
def index(tmp_path):
    with item_index.ItemIndex(tmp_path / "index.sqlite") as opened:
        opened.keep_id_types({"item_id": "int64", "category": "string"})
        yield opened


def ingest(index, *payloads, first=1):
    found = [event_log.Event(first + place, payload) for place, payload in enumerate(payloads)]
    return ingestion.ingest(embedding.EventBatch("log", found), [encode.GivenVectors(2)], index)


def reasons(index):
    return [reason for _, _, reason, _ in index.dead_letters()]


def embedded(index):
    return index.embeddings("vector", encode.GivenVectors(2).version).ids.tolist()


@pytest.mark.parametrize(
    ("value", "unit"),
    [(NOW_US // 1_000_000, "seconds"), (NOW_US // 1000, "milliseconds"), (NOW_US * 1000, "nanoseconds")],
    ids=["seconds", "milliseconds", "nanoseconds"],
)
def test_time_in_another_unit_is_a_dead_letter_that_names_it(index, value, unit):
    ingest(index, event(event_time_us=value), event(7))
    assert reasons(index) == [f"event_time_us: must be microseconds since 1970, not {value}, which is {unit}"]
    assert embedded(index) == [7]


@pytest.mark.parametrize(
    "value",
    [NOW_US + 400 * DAY_US, 253_402_300_799_000_000, (1 << 63) - 1],
    ids=["in_400_days", "year_9999", "largest"],
)
def test_time_far_ahead_is_a_dead_letter_and_blocks_nothing(index, value):
    ingest(index, event(event_time_us=value), event(event_time_us=value, withdrawn=True))
    assert len(reasons(index)) == 2
    assert all(reason.startswith("event_time_us: must be at most 24 hours from now") for reason in reasons(index))
    ingest(index, event(), first=3)
    assert embedded(index) == [SHOE]


@pytest.mark.parametrize("value", [0, 5, NOW_US - 9000 * DAY_US, NOW_US + DAY_US // 2], ids=["0", "5", "old", "ahead"])
def test_old_times_and_clocks_that_are_ahead_are_taken(index, value):
    ingest(index, event(event_time_us=value))
    assert reasons(index) == [] and embedded(index) == [SHOE]


def test_id_of_another_type_than_the_catalog_has_is_a_dead_letter(index):
    """As JavaScript and protobuf's JSON write it; taken for a new item it would leave the old one as it was."""
    ingest(index, event("1004"), event("1004", withdrawn=True), event(category=5), event(category="shoes"))
    assert reasons(index) == [
        "item_id: must be an integer, as in the catalog, not '1004'",
        "item_id: must be an integer, as in the catalog, not '1004'",
        "category: must be a string, as in the catalog, not 5",
    ]
    assert embedded(index) == [SHOE]


def test_without_a_catalog_ids_of_both_types_are_taken(tmp_path):
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        ingest(index, event("1004"), event(1004))
        text = int(fingerprints.fingerprint(["1004"])[0])
        assert sorted(embedded(index)) == sorted([1004, text])


def test_catalog_with_ids_of_another_type_is_refused(index):
    with pytest.raises(ValueError, match=r"`item_id` of the catalog must be int64.*Received: string.*name another"):
        index.keep_id_types({"item_id": "string"})


def test_what_is_older_than_the_index_is_counted_and_said(index, caplog):
    older = event(vector=[0, 1], event_time_us=NOW_US - 5)
    ingest(index, event(), event(8), event(9, withdrawn=True))
    outcome = ingest(index, older, event(8, withdrawn=True, event_time_us=NOW_US - 1), first=4)
    assert outcome.older == (8, SHOE)
    assert ingest(index, event(), event(9, withdrawn=True), first=6).older == ()  # the same again
    assert ingest(index, event(9, event_time_us=NOW_US - 5), first=8).older == (9,)
    job = pipeline.EmbedEvents({}, str(index.path))
    job._index, job._encoders = index, [encode.GivenVectors(2)]
    with caplog.at_level(logging.INFO):
        job.process(embedding.EventBatch("log", [event_log.Event(9, older)]))
    assert "offset 9: 1 items, 0 withdrawn, 0 dead letters, 1 older than what is known" in caplog.text
    rows = index.embeddings("vector", encode.GivenVectors(2).version)
    np.testing.assert_array_equal(rows.rows[rows.ids == SHOE], [[127, 0]])
