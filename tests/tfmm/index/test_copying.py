"""An index that moves to another store, as from SQLite to Redis, is the same to every reader."""

import uuid

import numpy as np
import pytest

from tfmm.features import STORED, FeatureSet
from tfmm.index import copying, item_features, item_index, snapshot, store

LAYOUT = item_features.Layout.of(FeatureSet(), {"item_id": "int64", "category": "int64"})


@pytest.fixture
def source(tmp_path):
    """Two encoders of text, the later one active, a layout of features, and a withdrawn item."""
    generator = np.random.default_rng(0)
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        for version, count in (("old", 2500), ("new", 30)):
            rows = generator.integers(-127, 128, (count, 6)).astype(np.int8)
            index.write("text", version, np.arange(1, count + 1), rows, np.ones(count), np.arange(10, 10 + count))
        index.register_encoder(STORED, LAYOUT.version, LAYOUT.dim, LAYOUT.text)
        index.write(STORED, LAYOUT.version, [7], LAYOUT.pack({"category": np.array([3])}), [1.0], [40])
        index.withdraw([5], [50_000])
        index.activate("text", "new")
        index.keep_id_types({"item_id": "int64"})
        yield index


@pytest.fixture(params=["sqlite", "redis"])
def target(request, tmp_path):
    url = str(tmp_path / "other.sqlite")
    if request.param == "redis":
        url = request.getfixturevalue("redis_server").url(prefix=f"{{{uuid.uuid4()}}}")
    with store.open_store(url) as index:
        yield index


def state_of(index):
    found = {"active": {e.modality: e.encoder_version for e in index.encoders() if e.active}, "ids": index.id_types()}
    for entry in index.encoders():
        rows = index.embeddings(entry.modality, entry.encoder_version)
        key = (*entry[:3], entry.layout)
        found[key] = [values.tolist() for values in (rows.ids, rows.rows, rows.scales, rows.event_times_us)]
    return found


def test_a_copy_is_the_same_to_readers_and_a_second_one_changes_nothing(source, target):
    assert copying.copy(source, target) > 2500
    assert state_of(target) == state_of(source)
    assert copying.copy(source, target) == 0
    taken = [snapshot.take_snapshot(index, {"text": "new"})["text"].ids.tolist() for index in (source, target)]
    assert taken[0] == taken[1] and 5 not in taken[1]


def test_a_withdrawn_item_stays_withdrawn_and_what_is_newer_stays(source, target):
    copying.copy(source, target)
    row = np.full((1, 6), 9, np.int8)
    assert target.write("text", "new", [5], row, [1.0], [49_999]) == 0  # older than its withdrawal
    assert target.write("text", "new", [6], row, [1.0], [60_000]) == 1
    assert copying.copy(source, target) == 0
    assert target.embeddings("text", "new").rows[4].tolist() == [9] * 6
