"""What the streaming job measures, in the process that embeds: events, dead letters by reason, delay, watermark."""

from __future__ import annotations

import time

import prometheus_client

from serving import metrics
from serving.streaming import embedding, events

OTHER = "other"
# What reasons begin with; a caller's own words are no label.
_KINDS = (
    "payload", "not JSON", "not a JSON object", "not a usable number", "unknown fields", "no content",
    "the event fails",
)  # fmt: skip
_SECONDS = [0.01 * 2**power for power in range(20)]  # 10 ms to 1.5 hours

REGISTRY = metrics.registry()
_EVENTS = prometheus_client.Counter("tfmm_stream_events", "Events taken.", ["source"], registry=REGISTRY)
_ITEMS = prometheus_client.Counter("tfmm_stream_items", "Items written.", ["source"], registry=REGISTRY)
_WITHDRAWN = prometheus_client.Counter("tfmm_stream_withdrawn", "Items withdrawn.", ["source"], registry=REGISTRY)
_DEAD = prometheus_client.Counter(
    "tfmm_stream_dead_letters", "Events and contents that could not be used.", ["source", "reason"], registry=REGISTRY
)
_DELAY = prometheus_client.Histogram(
    "tfmm_stream_delay_seconds",
    "From an event's own time to its place in the index.",
    ["source"],
    buckets=_SECONDS,
    registry=REGISTRY,
)
_POSITION = prometheus_client.Gauge(
    "tfmm_stream_position", "Offset of the newest event in the index.", ["source"], registry=REGISTRY
)
_WATERMARK = prometheus_client.Gauge(
    "tfmm_stream_watermark_seconds", "Newest event time in the index, since 1970.", ["source"], registry=REGISTRY
)


def kind_of(reason: str) -> str:
    """Returns the label of a dead letter's reason: the field at fault, or what is wrong with the event as a whole.

    >>> kind_of("contents.clip: must be finite, not [nan]"), kind_of("not JSON: nested too deep"), kind_of("my word: ?")
    ('contents', 'not JSON', 'other')
    """
    field = reason.split(":")[0].split(".")[0]
    if field in events.FIELDS:
        return field
    return next((kind for kind in _KINDS if reason.startswith(kind)), OTHER)


def _label(source: str) -> str:
    """Returns a source's name as a label: of files in a folder, of which there may be many, that of the folder."""
    return source.rpartition("/")[0] if source.startswith("folder://") else source


def record(batch: embedding.EventBatch, outcome: embedding.Outcome) -> None:
    """Counts a batch of events and what was written for it."""
    batch = batch._replace(source=_label(batch.source))
    _EVENTS.labels(batch.source).inc(len(batch.events))
    _ITEMS.labels(batch.source).inc(len(outcome.items))
    _WITHDRAWN.labels(batch.source).inc(len(outcome.withdrawn))
    for _, reason in outcome.dead:
        _DEAD.labels(batch.source, kind_of(reason)).inc()
    _POSITION.labels(batch.source).set(batch.events[-1].offset)
    times_s = [item.event_time_us / 1e6 for item in [*outcome.items, *outcome.withdrawn]]
    for moment in times_s:
        _DELAY.labels(batch.source).observe(time.time() - moment)
    if times_s:
        _WATERMARK.labels(batch.source).set(max(times_s))
