"""Events drawn at random: each is embedded, withdrawn or a dead letter, and none ends the job or takes others along."""

import base64
import collections
import gc
import json
import random

import hypothesis
import hypothesis.strategies as st
import psutil
import pytest
import tensorflow as tf

from serving.streaming import embedding, event_log, events, ingestion
from tfmm import artifacts
from tfmm.config import SCLConfig
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet
from tfmm.index import encode, item_index
from tfmm.index.item_features import Layout
from tfmm.pretrain import encoders as pretrain_encoders

BEFORE, AFTER = 7_777_777_777_001, 7_777_777_777_002  # neighbors; no drawn event has these ids
PICTURE = tf.io.encode_png(tf.cast(tf.reshape(tf.range(32 * 32 * 3) % 251, [32, 32, 3]), tf.uint8)).numpy()
REAL = (
    events.make_event(7, category=2, title="red canvas shoe", event_time_us=1),
    events.make_event("shoe-7", category="shoes", title="rote Schuhe \U0001f45f", event_time_us=2),
    events.make_event(8, image=PICTURE, event_time_us=3),
    events.make_event(9, vector=[0.5, -1e-3], event_time_us=4),
    events.make_event(7, withdrawn=True, event_time_us=5),
    events.make_event(10, features={"price": 9.5, "tags": ["red", None], "in_stock": True}, event_time_us=6),
)
FIELDS = ("version", "item_id", "category", "title", "image", "vector", "features", "event_time_us", "withdrawn")
LAYOUT = Layout.of(
    FeatureSet((*DEFAULT_FEATURES, Feature("price", "item", "number"), Feature("tags", "item", "ids"),
                Feature("in_stock", "item", "boolean"), Feature("launched", "item", "time"))),
    {"category": "int64", "tags": "string"},
)  # fmt: skip
COLUMNS = [feature.column for feature in LAYOUT.features]
LITERALS = (b"NaN", b"-Infinity", b"1e400", b"9" * 5000, b"[" * 5000, b'"\\ud800"', b'"\\u0000"', b"null", b"true",
            b"1.0", b"[[1]]", b"{}", b'""', b"-9223372036854775809", b'"' + b"a" * 20_000 + b'"')  # fmt: skip

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
GOOD = st.fixed_dictionaries(
    {"version": st.just(1), "item_id": st.integers(-9, 9) | st.text(max_size=4), "event_time_us": st.integers(0, 9)},
    optional={
        "category": st.integers(0, 9) | st.text(max_size=4),
        "title": st.text(max_size=40),
        "image": st.binary(max_size=40).map(lambda value: base64.b64encode(value).decode()),
        "vector": st.lists(st.floats(width=32), max_size=3),
        "withdrawn": st.booleans(),
        "features": st.dictionaries(st.sampled_from(COLUMNS) | st.text(max_size=5), JSON, max_size=3),
    },
)


@st.composite
def spoiled(draw):
    """A good event with other values in some of its fields."""
    event = draw(GOOD)
    return json.dumps(event | draw(st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=3)))


@st.composite
def spelled(draw):
    """A good event with a field that is spelled as `json.dumps` would not."""
    field, literal = draw(st.sampled_from(FIELDS)), draw(st.sampled_from(LITERALS))
    event = {"title": "red"} | draw(GOOD)
    event.pop(field, None)
    return json.dumps(event | {"@": 0}).encode().replace(b'"@": 0', f'"{field}": '.encode() + literal)


@st.composite
def mutated(draw):
    """A real event with some of its bytes replaced, dropped or added."""
    payload = draw(st.sampled_from(REAL))
    for _ in range(draw(st.integers(1, 3))):
        start, width = draw(st.integers(0, len(payload))), draw(st.integers(0, 12))
        patch = draw(st.binary(max_size=6) | st.sampled_from(LITERALS))
        payload = payload[:start] + patch + payload[start + width :]
    return payload


PAYLOADS = (
    st.binary(max_size=60)
    | JSON.map(json.dumps).map(str.encode)
    | GOOD.map(json.dumps).map(str.encode)
    | spoiled().map(str.encode)
    | spelled()
    | mutated()
)


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Encoders as pre-training exports them, untrained, and items' own vectors of 2 values."""
    root = tmp_path_factory.mktemp("untrained")
    for modality in ("image", "text"):
        config = SCLConfig(modality=modality, dim=8, image_size=32, width=8, text_buckets=1000)
        encoder = pretrain_encoders.make_encoder(config)
        encoder.export(root / modality / "encoder")
        artifacts.write_manifest(root / modality, "encoder", modality=modality, dim=8, encoder_version="v1")
    return [*(encode.load_encoder(root / name) for name in ("image", "text")), encode.GivenVectors(2)]


def neighbor(item_id):
    return events.make_event(item_id, title="a neighbor", vector=[1, 0], event_time_us=(1 << 63) - 1)


def take(payloads, source, encoders, index):
    """Ingests payloads between two neighbors; checks that none is lost; returns the outcome's counts."""
    first = index.position(source) + 1
    whole = [neighbor(BEFORE), *payloads, neighbor(AFTER)]
    batch = [event_log.Event(offset, payload) for offset, payload in enumerate(whole, first)]
    outcome = ingestion.ingest(embedding.EventBatch(source, batch), encoders, index, [LAYOUT])
    assert index.position(source) == batch[-1].offset
    dead = collections.defaultdict(list)
    for event, reason in outcome.dead:
        dead[event.offset].append(reason)
    assert not any("the encoder fails" in reason or "the event fails" in reason for _, reason in outcome.dead)
    assert not {batch[0].offset, batch[-1].offset} & set(dead)
    for event in batch:  # what is not dead is withdrawn, or every content is embedded
        if event.offset in dead:
            continue
        (new,) = events.parse_events([event.payload])
        if new.is_withdrawn:
            assert new.item.item_id in [item.item_id for item in outcome.withdrawn]
            continue
        for encoder, rows in outcome.embedded:
            if new.item.content(encoder.modality):
                assert new.item.item_id in rows.ids
    return {"events": len(payloads), "dead": len(dead), "withdrawn": len(outcome.withdrawn)}


@hypothesis.settings(max_examples=300)
@hypothesis.given(st.lists(PAYLOADS, max_size=6))
def test_any_payload_is_taken_or_a_dead_letter_with_its_neighbors_embedded(encoders, payloads):
    with item_index.ItemIndex(":memory:") as index:
        index.register_encoder("item_features", LAYOUT.version, LAYOUT.dim, LAYOUT.text)
        counts = take(payloads, "fuzz", encoders, index)
        assert {BEFORE, AFTER} <= set(index.embeddings("text", "v1").ids.tolist())
        letters = {(position, payload) for _, position, _, payload in index.dead_letters("fuzz")}
        assert len({position for position, _ in letters}) == counts["dead"]
        assert all(payload == payloads[position - 2] for position, payload in letters)


def draw_payload(generator):
    """As `PAYLOADS`, from a plain generator: hypothesis keeps what it has drawn, which would hide a leak."""
    payload = generator.choice(REAL)
    kind = generator.randrange(4)
    if kind == 0:
        return generator.randbytes(generator.randrange(60))
    if kind == 1:
        start, width = generator.randrange(len(payload)), generator.randrange(20)
        patch = generator.choice([*LITERALS, generator.randbytes(generator.randrange(8))])
        return payload[:start] + patch + payload[start + width :]
    event = json.loads(payload) | {"item_id": generator.choice([generator.randrange(1, 999), f"{payload[9]}"])}
    if kind == 2:
        event["@"] = 0
        field = generator.choice(FIELDS)
        event.pop(field, None)
        return json.dumps(event).encode().replace(b'"@": 0', f'"{field}": '.encode() + generator.choice(LITERALS))
    return json.dumps(event).encode()


@pytest.mark.slow
def test_forty_thousand_fuzzed_events_leave_no_memory_behind(encoders, tmp_path):
    generator, process = random.Random(7), psutil.Process()
    totals, sizes = collections.Counter(), []
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        for number in range(1400):  # of 30
            totals.update(take([draw_payload(generator) for _ in range(30)], "fuzz", encoders, index))
            if number % 350 == 349:
                gc.collect()
                sizes.append(process.memory_info().rss)
    print(dict(totals), [size >> 20 for size in sizes], "MB")
    assert totals["events"] == 42_000 and 0.2 < totals["dead"] / totals["events"] < 0.9
    assert sizes[-1] < 1.05 * sizes[0]
