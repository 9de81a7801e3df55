"""Rows of training from requests as they were served."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from serving.nearline import joining, rows
from serving.streaming.events import EventError
from tfmm import fingerprints
from tfmm.data.served import Served
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet
from tfmm.index import encode, item_features, item_index, live_vectors

FEATURES = dataclasses.replace(
    FeatureSet(),
    features=(
        *DEFAULT_FEATURES,
        Feature("tags", "item", "ids", max_values=2),
        Feature("price", "item", "number", serving_value=None),
        Feature("device", "context"),
        Feature("age", "user", "number", source="users.age"),
        Feature("position", "context", "number", source="impressions.position", serving_value=1.0),
    ),
).resolved(max_behaviors=3, min_count=1)
ID_TYPES = {"user_id": "string", "item_id": "int64", "category": "int64", "tags": "string", "device": "string"}
T_US = 1_709_596_800_000_000


@pytest.fixture
def reader(tmp_path):
    layout = item_features.Layout.of(FEATURES, ID_TYPES)
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        values = {"category": 4, "tags": ["red", "new"], "price": 2.5}
        known = {
            "category": np.array([4]), "price": np.array([2.5], np.float32),
            "tags": fingerprints.fingerprint(values["tags"])[None],
        }  # fmt: skip
        row = layout.pack(known)
        index.register_encoder("item_features", layout.version, layout.dim, layout.text)
        index.write("item_features", layout.version, [12], row, [1.0], [1])
        yield rows.Reader(FEATURES, ID_TYPES, live_vectors.LiveFeatures(index, layout))


def waiting(labels, features, items=(11, 12, 13), item_features=None, **told):
    scores = [0.5] * len(items)
    request = Served("a", T_US / 1e6, "tfmm", 1, {}, {}, features, list(items), scores, item_features)
    said = {12: {name: (0.0, value) for name, value in told.items()}}
    return joining.Waiting(request, T_US + 1, "log", 1, b"", labels, said)


def test_rows_are_the_items_shown_with_the_features_as_served(reader):
    given = {"user_id": "ann", "device": "phone", "age": 30, "behavior_item_ids": [1, 2, 12, 3, 0],
             "behavior_categories": [5, 6, 7, 8, 0]}  # fmt: skip
    own = {"category": [1, 2, 3], "price": [None, 9.0, 8.0], "tags": [["a"], ["b", "", "c", "d"], None]}
    found = reader.read(waiting({13: 1, 12: 0}, given, item_features=own, position=3))
    ann, phone = fingerprints.fingerprint(["ann", "phone"]).tolist()
    assert found["item_id"].tolist() == [12, 13] and found["label"].tolist() == [0, 1]
    assert found["user_id"].tolist() == [ann] * 2 and found["device"].tolist() == [phone] * 2
    assert found["behavior_item_ids"].tolist() == [[2, 12, 3]] * 2  # the newest, without what pads them
    assert found["behavior_categories"].tolist() == [[6, 7, 8]] * 2
    assert found["category"].tolist() == [2, 3] and found["price"].tolist() == [9.0, 8.0]
    assert found["tags"].tolist() == [fingerprints.fingerprint(["b", "c"]).tolist(), [0, 0]]
    assert found["timestamp"].tolist() == [T_US] * 2 and found[rows.AT].tolist() == [T_US + 1] * 2
    np.testing.assert_array_equal(found["position"], np.float32([3, np.nan]))  # as events told it, else missing


def test_a_candidate_that_stands_twice_is_one_row(reader):
    found = reader.read(waiting({11: 1}, {"user_id": "ann"}, items=(12, 11, 11)))
    assert found["item_id"].tolist() == [11] and found["label"].tolist() == [1]


def test_what_is_left_out_is_looked_up_and_what_nobody_knows_is_missing(reader):
    found = reader.read(waiting({11: 0, 12: 1}, {"user_id": "ann", "behavior_item_ids": [12, 9]}))
    assert found["category"].tolist() == [0, 4]
    np.testing.assert_array_equal(found["price"], np.array([np.nan, 2.5], np.float32))
    assert found["behavior_categories"].tolist() == [[4, 0, 0]] * 2
    assert np.isnan(found["age"]).all() and found["device"].tolist() == [0, 0]
    assert found["tags"].tolist() == [[0, 0], fingerprints.fingerprint(["red", "new"]).tolist()]


def test_an_id_that_a_model_looked_up_stands_as_the_fingerprint(reader):
    tag = int(fingerprints.fingerprint(["red"])[0])
    found = reader.read(waiting({11: 0}, {"user_id": "ann"}, item_features={"tags": [[tag], [], []]}))
    assert found["tags"].tolist() == [[tag, 0]]


@pytest.mark.parametrize("features, item_features, reason", [
    ({"user_id": 7.5}, {}, "user_id: must hold texts"),
    ({"user_id": "ann", "behavior_item_ids": ["x"]}, {}, "behavior_item_ids: must hold integers"),
    ({"user_id": "ann", "behavior_item_ids": 7}, {}, "behavior_item_ids: must be a list"),
    ({"user_id": "ann", "behavior_item_ids": [1, 2], "behavior_categories": [1]}, {}, "must have as many values as"),
    ({"user_id": "ann", "age": "old"}, {}, "age: must hold values of kind number"),
    ({"user_id": "ann"}, {"category": [1]}, "category: must be a list of 3 values, one per item"),
    ({"user_id": "ann"}, {"category": [1 << 70, 1, 1]}, "category: must hold 64-bit integers"),
])  # fmt: skip
def test_values_that_are_not_as_declared_are_refused(reader, features, item_features, reason):
    with pytest.raises(EventError, match=reason):
        reader.read(waiting({11: 1}, features, item_features=item_features))


def block(*at):
    return {rows.AT: np.array(at), "item_id": np.arange(len(at))}


def test_a_block_is_taken_when_no_more_can_come_into_it():
    buffer = rows.Buffer({})
    assert buffer.take(10**9, 4, 100) is None
    buffer.add(block(1, 2, 50))
    assert buffer.take(60, 4, 100) is None  # more may come before 101
    buffer.add(block(99, 100))
    assert buffer.take(99, 4, 100)[rows.AT].tolist() == [1, 2, 50, 99]  # full
    assert buffer.take(199, 4, 100) is None and len(buffer) == 1
    assert buffer.take(200, 4, 100)[rows.AT].tolist() == [100] and len(buffer) == 0


def test_blocks_are_the_same_however_rows_come():
    at = np.sort(np.random.default_rng(0).integers(0, 2000, 100))
    runs = []
    for sizes in ([100], [1] * 100, [30, 30, 40]):
        buffer, found, start = rows.Buffer({}), [], 0
        runs.append(found)
        for size in sizes:
            buffer.add({rows.AT: at[start : start + size]})
            start += size
            while (taken := buffer.take(int(at[start - 1]), 16, 150)) is not None:
                found.append(taken[rows.AT].tolist())
        while (taken := buffer.take(10**9, 16, 150)) is not None:
            found.append(taken[rows.AT].tolist())
    assert runs[0] == runs[1] == runs[2] and sum(map(len, runs[0])) == 100


def test_live_vectors_follow_the_index(tmp_path):
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        vectors = np.random.default_rng(0).normal(size=(200, 4))
        quantized, scales = encode.quantize(vectors)
        index.write("text", "v1", np.arange(1, 11), quantized[:10], scales[:10], np.ones(10, np.int64))
        table = live_vectors.LiveVectors(index, "text", "v1")
        assert table.slots(np.array([[5, 11, 0]])).astype(bool).tolist() == [[True, False, False]]
        index.write("text", "v1", [11, 5], quantized[[10, 0]], scales[[10, 0]], [2, 2])
        index.withdraw([6], [3])
        assert table.refresh() is False
        slots = table.slots(np.array([5, 6, 11, 12]))
        found = table.lookup(tf.constant(slots))
        assert found.mask.numpy().tolist() == [True, False, True, False]
        np.testing.assert_array_equal(found.rows.numpy()[[0, 2]], quantized[[0, 10]])
        np.testing.assert_array_equal(found.scales.numpy()[[0, 2]], scales[[0, 10]])
        index.write("text", "v1", np.arange(1, 201), quantized, scales, np.full(200, 9))
        assert table.refresh() is True  # larger than its room
        np.testing.assert_array_equal(table.lookup(tf.constant(table.slots(np.arange(1, 201)))).rows.numpy(), quantized)
        assert table.watermark == index.last_sequence("text", "v1") and table.refresh() is False
