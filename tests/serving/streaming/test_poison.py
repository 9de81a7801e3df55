"""Poison events: whatever one holds, it becomes a dead letter, and its neighbors are embedded."""

import json
import sqlite3
import time

import numpy as np
import pytest

from serving.streaming import embedding, event_log, events, ingestion
from tfmm import artifacts, fingerprints
from tfmm.index import encode, item_index

SOURCE = "sqlite:test"
TITLE_BYTES, PAYLOAD_BYTES = 1 << 14, 1 << 24  # the limits


def event(**changes):
    whole = {"version": 1, "item_id": 5, "title": "red", "event_time_us": 1} | changes
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def raw(field, literal):
    """An event whose field is spelled like `literal`."""
    return event(**{field: "@"}).replace(b'"@"', literal)


ID = "must be a 64-bit integer or a string, not "
TIME = "event_time_us: must be microseconds since 1970, not "
DEEP = "not JSON that can be read: nested too deep"
HALF = "must be Unicode text, not '\\ud800' at character 1, half a pair of surrogates"
VECTOR = "vector: must be a list of numbers, not "
NO_IMAGES = (5, True, [], {}, " ", "\n", "é", "abc", "\ud800")
EMPTY = ({"image": ""}, {"title": ""}, {"vector": []})
POISON = {
    # Nesting
    "deep title": (raw("title", b"[" * 200_000), DEEP),
    "deep and closed": (raw("title", b"[" * 200_000 + b"]" * 200_000), DEEP),
    "deep objects": (b'{"title":' * 100_000, DEEP),
    "deep version": (raw("version", b"[" * 300 + b"]" * 300), "version: must be 1, not [[["),
    "deep vector": (raw("vector", b"[" * 300 + b"]" * 300), VECTOR + "[[["),
    # Numbers
    "long item_id": (raw("item_id", b"9" * 5000), "not a usable number: must have at most 1000 digits, not 5000"),
    "long time": (raw("event_time_us", b"-" + b"9" * 5000), "not a usable number: must have at most 1000 digits"),
    "long integer in a vector": (raw("vector", b"[1" + b"0" * 400 + b", 1]"), "vector: must be finite: int too large"),
    "NaN": (raw("vector", b"[NaN, 1]"), "not JSON: NaN is no number"),
    "Infinity": (raw("event_time_us", b"Infinity"), "not JSON: Infinity is no number"),
    "-Infinity": (raw("item_id", b"-Infinity"), "not JSON: -Infinity is no number"),
    "1e400 in a vector": (raw("vector", b"[1e400, 1]"), "vector: must be finite, not [inf, 1"),
    "1e400 as a time": (raw("event_time_us", b"1e400"), TIME + "inf"),
    "image as in contents": (event(image={"base64": "aGk="}), "image: not base64: must be text, not {'base64"),
    "1e400 as an id": (raw("item_id", b"1e400"), "item_id: " + ID + "inf"),
    "item_id above int64": (event(item_id=1 << 63), "item_id: " + ID + "9223372036854775808"),
    "category below int64": (event(category=-(1 << 63) - 1), "category: " + ID + "-9223372036854775809"),
    "time above int64": (event(event_time_us=1 << 63), TIME + "9223372036854775808"),
    # Texts
    "surrogate in the title": (event(title="a\ud800"), "title: " + HALF),
    "surrogate in the item_id": (event(item_id="a\ud800"), "item_id: " + HALF),
    "surrogate in the category": (event(category="a\ud800"), "category: " + HALF),
    "surrogate in a field's name": (event(**{"\ud800": 1}), "unknown fields: \\ud800; an event has version, item_id"),
    "surrogate in the version": (event(version="\ud800"), "version: must be 1, not '\\ud800'"),
    "surrogate as UTF-8": (raw("title", b'"\xed\xa0\x80"'), "not JSON: 'utf-8' codec can't decode"),
    "NUL in a field's name": (event(**{"a\0b": 1}), "unknown fields: a\\x00b"),
    "twice": (b'{"item_id": 1, "item_id": 2, "item_id": 3}', "item_id: must stand once in a JSON object, not 3 times"),
    "long title": (event(title="[" * 200_000), f"title: must be at most {TITLE_BYTES} bytes of UTF-8, not 200000"),
    "long title of wide characters": (event(title="字" * 6000), f"title: must be at most {TITLE_BYTES} bytes of UTF-8"),
    "long title of many n-grams": (event(title="a b " * 500_000), f"title: must be at most {TITLE_BYTES} bytes"),
    "long field's name": (event(**{"a" * 5000: 1}), "unknown fields: " + "a" * 200 + "; an event has version"),
    "many fields": (json.dumps({"version": 1} | {str(n): n for n in range(10_000)}).encode(), "unknown fields: 0, 1"),
    # Types
    **{f"item_id {v}": (event(item_id=v), "item_id: " + ID) for v in (True, 1.5, [], {}, [[]])},
    **{f"item_id {v!r}": (event(item_id=v), "item_id: must be neither missing") for v in (..., None, "", 0)},
    **{f"category {v}": (event(category=v), "category: " + ID) for v in (False, 1.5, [], {}, [{}])},
    **{f"time {v!r}": (event(event_time_us=v), TIME) for v in (..., None, True, "1", 1.5, -1, [], {})},
    **{f"title {v}": (event(title=v), "title: must be text") for v in (5, True, [], {})},
    **{f"withdrawn {v!r}": (event(withdrawn=v), "withdrawn: must be true or false") for v in (None, 1, "true", [], {})},
    **{f"version {v!r}": (event(version=v), "version: must be 1") for v in (..., None, 1.0, True, "1", 2, [], {})},
    # Vectors
    **{f"vector {v!r}": (event(vector=v), VECTOR) for v in ("1,2", 1, {}, [True], [None, 1], ["1", 1], [[1, 1]])},
    "vector of a million": (event(vector=[1] * 10**6), "vector: must have at most 1040 values, not 1000000"),
    "vector of another length": (event(vector=[1, 2, 3], title=...), "vector: must give 2 finite values"),
    "vector beyond float32": (event(vector=[1e39, 1], title=...), "vector: must give 2 finite values"),
    "vector of zeros": (event(vector=[0, 0.0], title=...), "vector: is all zeros"),
    # Images
    **{f"image {v!r}": (event(image=v), "image: not base64") for v in NO_IMAGES},
    "image of garbage": (event(image="YmFkIGltYWdl", title=...), "image: cannot be decoded"),
    # Contents
    **{f"nothing in {v}": (event(**{"title": ...} | v), "no content") for v in EMPTY},
    "title that the encoder fails on": (event(title="poison"), "title: the encoder fails"),
    # Payloads
    **{f"payload {v!r}": (v, "not JSON") for v in (b"", b" ", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"{", b"'")},
    **{f"payload {v!r}": (v, "not a JSON object") for v in (b"null", b"1", b'"{}"', b"[]", b"[{}]")},
    "UTF-16": (event().decode().encode("utf-16"), "not JSON"),
    "large payload": (b" " * (PAYLOAD_BYTES + 1), f"payload: must be at most {PAYLOAD_BYTES} bytes"),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoders(encoders_dir):
    """An encoder for images, one for text, and items' own vectors of 2 values."""
    return [*(encode.load_encoder(encoders_dir / name) for name in ("image", "text")), encode.GivenVectors(2)]


@pytest.fixture
def index(tmp_path, encoders):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        for encoder in encoders:
            index.register_encoder(encoder.modality, encoder.version, encoder.dim)
        yield index


def make_batch(*payloads, first=7):
    return embedding.EventBatch(SOURCE, [event_log.Event(n, payload) for n, payload in enumerate(payloads, first)])


def texts_in(index):
    return index.embeddings("text", "text-1").ids.tolist()


def good(item_id, **changes):
    return events.make_event(item_id, **({"title": f"title {item_id}", "event_time_us": 1} | changes))


@pytest.mark.parametrize(("payload", "reason"), POISON.values(), ids=[ascii(name) for name in POISON])
def test_poison_is_a_dead_letter_and_its_neighbors_are_embedded(payload, reason, encoders, index):
    ingestion.ingest(make_batch(good(1), payload, good(3)), encoders, index)
    assert texts_in(index) == [1, 3]
    ((source, position, found, kept),) = index.dead_letters()
    assert (source, position, kept) == (SOURCE, 8, payload[:PAYLOAD_BYTES])
    assert found.startswith(reason) and len(found) <= 1000
    assert index.position(SOURCE) == 9


def test_job_outlives_every_poison_and_a_second_start_goes_on_after_it(
    encoders_dir, index, tmp_path, running_job, wait_for
):
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        for start in (1, 1001):
            payloads = [good(start)]
            for n, (payload, _) in enumerate(POISON.values(), start + 1):
                payloads += [payload, good(n)]
            with running_job(log.path, encoders_dir, index.path) as job:
                last = log.append(payloads)
                wait_for(lambda last=last: index.position(log.name) == last or not job.is_alive())
                assert index.position(log.name) == last
        assert texts_in(index) == [*range(1, len(POISON) + 2), *range(1001, len(POISON) + 1002)]
        letters = index.dead_letters(log.name)
    first = 2 * len(POISON) + 1
    assert [position for _, position, _, _ in letters] == [*range(2, first, 2), *range(first + 2, 2 * first, 2)]
    for (_, _, reason, kept), (payload, wanted) in zip(letters, [*POISON.values()] * 2):
        assert reason.startswith(wanted) and kept == payload[:PAYLOAD_BYTES]


def test_what_only_looks_odd_is_embedded(encoders, index):
    titles = ["a\0b\0", "a\0b", "\U0001f45f", "\ufeffshoe", "a" * TITLE_BYTES]
    batch = make_batch(
        b"\xef\xbb\xbf" + good(1, title="with a byte order mark"),
        *(good(n, title=title, category=-(1 << 63)) for n, title in enumerate(titles, 2)),
        good(1 << 62, event_time_us=time.time_ns() // 1000 + events.MAX_AHEAD_US - 10**7),
        good(8, title=None, image=b"bytes\0\0"),
        good(9, title=None, vector=[10**300, 1e300]).replace(b"1e+300", b"1"),
    )
    ingestion.ingest(batch, encoders, index)
    assert index.dead_letters() == []
    assert texts_in(index) == [1, 2, 3, 4, 5, 6, 1 << 62]
    rows = dict(zip(texts_in(index), index.embeddings("text", "text-1").rows))
    wanted, _ = encode.quantize(encoders[1]([title.encode() for title in titles]))
    np.testing.assert_array_equal([rows[n] for n in range(2, 7)], wanted)
    assert (rows[2] != rows[3]).any()
    image = index.embeddings("image", "image-1")
    np.testing.assert_array_equal(image.rows, encode.quantize(encoders[0]([b"bytes\0\0"]))[0])


def test_ids_of_nul_characters_are_ids(encoders, index):
    ids = fingerprints.fingerprint(["\0", "a\0", "a"]).tolist()
    ingestion.ingest(make_batch(good("\0"), good("a\0"), good("a"), good("a\0", withdrawn=True, event_time_us=2)),
                     encoders, index)  # fmt: skip
    ingestion.ingest(make_batch(good("\0", withdrawn=True, event_time_us=2), first=11), encoders, index)
    assert texts_in(index) == [ids[2]]
    assert len({0, *ids}) == 4 and not index.dead_letters()


def test_other_content_of_the_event_is_embedded(encoders, index):
    ingestion.ingest(make_batch(good(1, title="a" * TITLE_BYTES + "a", image=b"image")), encoders, index)
    assert index.embeddings("image", "image-1").ids.tolist() == [1]
    assert [reason.split(":")[0] for _, _, reason, _ in index.dead_letters()] == ["title"]


def test_event_that_cannot_be_written_is_a_dead_letter(encoders, index, caplog):
    with sqlite3.connect(index.path) as other:
        other.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON embeddings WHEN NEW.item_id = 2 "
            "BEGIN SELECT RAISE(ABORT, 'no second item'); END"
        )
    other.close()
    events_before = [good(9), good(8, withdrawn=True)]
    outcome = ingestion.ingest(make_batch(*events_before, good(1), good(2), good(3)), encoders, index)
    assert texts_in(index) == [1, 3, 9]
    ((_, position, reason, payload),) = index.dead_letters()
    assert (position, reason, payload) == (10, "the event fails: sqlite3.IntegrityError: no second item", good(2))
    assert index.position(SOURCE) == 11
    assert [item.item_id for item in outcome.items] == [9, 1, 3]
    assert [item.item_id for item in outcome.withdrawn] == [8] and len(outcome.dead) == 1
    assert "offset 10 of sqlite:test becomes a dead letter" in caplog.text


@pytest.mark.parametrize(
    ("fault", "cure", "message"),
    [
        ("PRAGMA max_page_count = 1", "PRAGMA max_page_count = 1073741823", "disk is full"),
        ("PRAGMA query_only = 1", "PRAGMA query_only = 0", "readonly"),
        ("ALTER TABLE embeddings RENAME TO gone", "ALTER TABLE gone RENAME TO embeddings", "no such table"),
    ],
)
def test_failing_store_stops_the_job_and_loses_nothing(fault, cure, message, encoders, index):
    batch = make_batch(*(good(n, title=f"title {n}") for n in range(1, 300)), b"poison" * 10_000)
    index._database.execute(fault)
    with pytest.raises(sqlite3.OperationalError, match=message):
        ingestion.ingest(batch, encoders, index)
    index._database.execute(cure)
    assert (index.position(SOURCE), texts_in(index), index.dead_letters()) == (0, [], [])
    ingestion.ingest(batch, encoders, index)
    assert texts_in(index) == [*range(1, 300)] and len(index.dead_letters()) == 1


def test_failing_store_ends_the_real_job_loudly(encoders_dir, index, tmp_path, running_job, wait_for):
    with event_log.SQLiteEventLog(tmp_path / "events.sqlite") as log:
        last = log.append([good(1), b"poison", good(3)])
        index._database.execute("ALTER TABLE embeddings RENAME TO gone")
        with pytest.raises(Exception, match="no such table: embeddings"):
            with running_job(log.path, encoders_dir, index.path) as job:
                wait_for(lambda: not job.is_alive())
        index._database.execute("ALTER TABLE gone RENAME TO embeddings")
        assert index.position(log.name) == 0 and not index.dead_letters()
        with running_job(log.path, encoders_dir, index.path):
            wait_for(lambda: index.position(log.name) == last)
    assert texts_in(index) == [1, 3] and len(index.dead_letters()) == 1


def test_failing_encoder_stops_the_job_and_loses_nothing(encoders_dir, index, tmp_path):
    artifacts.write_manifest(tmp_path / "text", "encoder", modality="text", dim=7, encoder_version="text-1")
    (tmp_path / "text" / "encoder").symlink_to(encoders_dir / "text" / "encoder")
    broken = encode.load_encoder(tmp_path / "text")  # it gives 6 values, not 7
    with pytest.raises(encode.EncoderError, match=r"must give \[1, 7\] values.*Received: \[1, 6\]"):
        ingestion.ingest(make_batch(good(1), good(2)), [broken], index)
    assert index.position(SOURCE) == 0 and not index.dead_letters()
