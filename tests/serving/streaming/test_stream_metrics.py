"""What the streaming job tells Prometheus."""

import time

import pytest

from serving import metrics as pages
from serving.streaming import embedding, event_log, events, metrics
from tfmm.index import encode


def value(name, **labels):
    return metrics.REGISTRY.get_sample_value(name, labels) or 0.0


def test_a_batch_is_counted_with_its_delay_and_its_watermark():
    now_us = time.time_ns() // 1000
    batch = embedding.EventBatch("shop", [event_log.Event(offset, b"") for offset in (5, 6, 7)])
    items = [encode.Item(1, now_us - 3_000_000, {}), encode.Item(2, now_us - 1_000_000, {})]
    dead = [(batch.events[2], "vector: must be finite, not [nan]")]
    metrics.record(batch, embedding.Outcome(items[:1], items[1:], [], dead))
    assert value("tfmm_stream_events_total", source="shop") == 3
    assert value("tfmm_stream_items_total", source="shop") == value("tfmm_stream_withdrawn_total", source="shop") == 1
    assert value("tfmm_stream_dead_letters_total", source="shop", reason="vector") == 1
    assert value("tfmm_stream_position", source="shop") == 7
    assert value("tfmm_stream_watermark_seconds", source="shop") == (now_us - 1_000_000) / 1e6
    assert value("tfmm_stream_delay_seconds_count", source="shop") == 2
    assert value("tfmm_stream_delay_seconds_sum", source="shop") >= 4.0
    assert b'tfmm_stream_position{source="shop"} 7.0' in pages.page(metrics.REGISTRY)


def test_a_port_that_is_taken_is_named():
    registry = pages.registry()
    with pages.served(registry, 0, "127.0.0.1") as port:
        with pytest.raises(OSError, match=f"metrics on 127.0.0.1:{port}"), pages.served(registry, port, "127.0.0.1"):
            pass


def test_every_reason_of_an_event_has_a_kind_and_a_senders_words_have_none():
    payloads = [
        b"?", b"[]", b'{"version": 9}', b'{"version": 1, "other": 1}', b'{"their word": 1, "their word": 1}',
        b"[" * 100_000, b'{"version": 1, "item_id": 1, "event_time_us": 1}',
        b'{"version": 1, "item_id": 1, "event_time_us": 1, "contents": {"clip": [1e999]}}',
        b'{"version": 1, "item_id": 1, "event_time_us": 1, "vector": "a"}',
        b'{"version": 1, "item_id": ' + b"1" * 5000 + b"}",
    ]  # fmt: skip
    reasons = [str(result) for result in events.parse_events(payloads)]
    kinds = [metrics.kind_of(reason) for reason in reasons]
    assert kinds == [
        "not JSON", "not a JSON", "version", "unknown fields", metrics.OTHER,
        "not JSON", "no content", "contents", "vector", "not a usable",
    ], reasons  # fmt: skip
    assert metrics.kind_of("no content that this index embeds: it takes title") == "no content"
    assert metrics.kind_of("the event fails: ValueError") == "the event fails"
