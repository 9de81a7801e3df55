"""The report on encoders: the served vectors and those of fresh weights, on the same rows."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm import artifacts, metrics
from tfmm.config import SCLConfig
from tfmm.evaluate import encoders, probe, wording
from tfmm.index import encode, item_index, snapshot
from tfmm.pretrain.encoders import make_encoder
from tfmm.training import examples as examples_lib

CONFIG = SCLConfig(modality="text", dim=8, text_buckets=256, seed=3)
WORDS = ("red", "blue", "mug", "lamp", "big", "bag", "椅子", "soft")
ACCURACIES = {
    "acc_at_1": 0.4,
    "acc_at_5": 0.6,
    "acc_at_1_untrained": 0.3,
    "acc_at_1_chance": 0.01,
    "heldout_pairs": 2_000,
    "heldout_items": 100,
}


def title(item_id):
    return " ".join(WORDS[digit] for digit in np.random.default_rng(item_id).integers(0, len(WORDS), 3))


@pytest.fixture(scope="module")
def catalog(shop, tmp_path_factory):
    """Titles of the shop's items, one of them null, in two files; and an encoder's manifest."""
    folder = tmp_path_factory.mktemp("catalog")
    (folder / "data" / "items").mkdir(parents=True)
    ids = np.arange(1000, 1280)[::-1]
    titles = [None if item == 1007 else title(item) for item in ids.tolist()]
    for part, rows in enumerate((slice(0, 100), slice(100, None))):
        table = pa.table({"item_id": ids[rows], "title": titles[rows]})
        pq.write_table(table, folder / "data" / "items" / f"part-{part}.parquet", row_group_size=70)
    artifacts.write_manifest(
        folder / "encoders" / "text", "encoder", CONFIG, modality="text", dim=8, encoder_version="v1", **ACCURACIES
    )
    artifacts.write_manifest(folder / "encoders" / "pairs", "pairs")
    return folder


def eval_rows(shop):
    names = ("user_id", "item_id", "behavior_item_ids", "label")
    return examples_lib.read_columns(examples_lib.example_files(shop.eval), shop.features, names)


def test_served_vectors_are_probed_with_what_is_left_out_counted(shop):
    found = encoders.probe_encoders(shop.eval, shop.features, shop.snapshot)
    assert set(found) == {"image", "text"}
    rows, table = eval_rows(shop), snapshot.load_snapshot(shop.snapshot)["image"]
    cosines, known = probe.largest_cosines(table.ids, table.rows, rows["item_id"], rows["behavior_item_ids"])
    facts = found["image"]["probe"]
    assert facts["gauc"] == metrics.gauc(rows["label"][known], cosines[known], rows["user_id"][known]).value > 0.55
    assert facts["rows"] + facts["rows_left_out"] == len(known) and facts["rows_left_out"] > 0
    assert "gauc_untrained" not in facts and found["image"]["warnings"] == []


def test_untrained_is_the_same_encoder_with_fresh_weights_on_the_same_rows(shop, catalog):
    folders = encoders.encoder_folders(catalog / "encoders")
    assert folders == {"text": catalog / "encoders" / "text"}
    found = encoders.probe_encoders(shop.eval, shop.features, shop.snapshot, catalog / "data", folders)["text"]
    rows, table = eval_rows(shop), snapshot.load_snapshot(shop.snapshot)["text"]
    ids = table.ids
    contents = tf.constant([b"" if item == 1007 else title(item).encode() for item in ids.tolist()])
    encoder = make_encoder(CONFIG)
    vectors = encoder.encode(contents)["vector"].numpy()
    wanted = (rows["item_id"], rows["behavior_item_ids"])
    trained, known = probe.largest_cosines(ids, table.rows, *wanted)
    untrained, read = probe.largest_cosines(ids, vectors, *wanted)
    both = known & read
    label, user = rows["label"][both], rows["user_id"][both]
    facts = found["probe"]
    assert facts["rows"] == both.sum() < known.sum()
    assert facts["gauc_untrained"] == metrics.gauc(label, untrained[both], user).value
    assert facts["gauc"] == metrics.gauc(label, trained[both], user).value
    assert {name: found[name] for name in ACCURACIES} == ACCURACIES
    json.dumps(found, allow_nan=False)


def test_of_items_with_versions_the_newest_is_encoded(catalog, tmp_path):
    manifest = artifacts.read_manifest(catalog / "encoders" / "text", "encoder")
    ids, found = np.array([1, 2, 3]), []
    for name, (rows, texts, times) in {
        "versions": ([3, 1, 2, 1, 3], ["old mug", "red lamp", "bag", "blue lamp", "mug"], [1, 9, 4, 3, 2]),
        "newest": ([1, 2, 3], ["red lamp", "bag", "mug"], [None] * 3),
    }.items():
        (tmp_path / name).mkdir()
        updated = pa.array(times, pa.timestamp("us"))
        table = pa.table({"item_id": rows, "title": texts, "updated_at": updated})
        pq.write_table(table, tmp_path / name / "items.parquet", row_group_size=2)
        found.append(encoders.untrained_vectors(manifest, tmp_path / name, ids))
    np.testing.assert_array_equal(*found)


def test_an_encoder_no_better_than_untrained_is_said(shop, catalog, tmp_path):
    ids = np.arange(1000, 1280)
    contents = tf.constant([title(item).encode() for item in ids.tolist()])
    encoder = make_encoder(CONFIG)
    rows, scales = encode.quantize(encoder.encode(contents)["vector"].numpy())
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        index.write("text", "v1", ids, rows, scales, np.ones(len(ids), np.int64))
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    folders = encoders.encoder_folders(catalog / "encoders")
    found = encoders.probe_encoders(shop.eval, shop.features, tmp_path / "snapshot", catalog / "data", folders)["text"]
    assert found["probe"]["gauc"] == pytest.approx(found["probe"]["gauc_untrained"], abs=0.02)  # int8 against float
    assert found["is_no_better"] is True
    (warning,) = found["warnings"]
    assert "not better than untrained beyond noise" in warning and " users and " in warning
    lines = wording.describe("text", found)
    assert not any(warning in line for line in lines)  # the verdict says it, and first
    assert "(untrained 0.300, chance 0.010)" in lines[0] and "2,000 held-out pairs of 100 items" in lines[0]
    assert f"untrained {found['probe']['gauc_untrained']:.4f}" in lines[1]


def test_an_encoder_better_than_untrained_is_not_warned_of():
    gain = {"low": 0.01, "high": 0.03, "level": 0.95}
    assert encoders.warning("text", {"gauc": 0.6, "gauc_untrained": 0.58, "gauc_gain": 0.02,
                                     "gauc_gain_interval": gain}) is None  # fmt: skip


@pytest.mark.parametrize(("limit", "value"), [("MAX_ROWS", 200), ("MAX_ITEMS", 120), ("MAX_ROWS", 1)])
def test_of_a_large_log_whole_users_are_probed(shop, limit, value, monkeypatch):
    rows = eval_rows(shop)
    monkeypatch.setattr(encoders, limit, value)
    kept = encoders.sample(rows)
    users, counts = np.unique(kept["user_id"], return_counts=True)
    assert 0 < len(kept["label"]) < len(rows["label"])
    np.testing.assert_array_equal(counts, [(rows["user_id"] == user).sum() for user in users])
    if limit == "MAX_ROWS":
        assert len(kept["label"]) <= value or len(users) == 1
    else:
        assert len(np.setdiff1d(np.append(kept["item_id"], kept["behavior_item_ids"]), [0])) <= value


def test_a_small_log_is_probed_whole(shop):
    rows = eval_rows(shop)
    for name, values in encoders.sample(rows).items():
        np.testing.assert_array_equal(values, rows[name])


def test_encoders_without_a_snapshot_or_a_catalog_are_refused(shop, catalog):
    folders = encoders.encoder_folders(catalog / "encoders")
    for given in ((shop.snapshot, None), (None, catalog / "data")):
        with pytest.raises(ValueError, match="`snapshot_dir` and `data_dir` must be named beside `encoder_dirs`"):
            encoders.probe_encoders(shop.eval, shop.features, *given, folders)


def test_without_a_snapshot_nothing_is_probed(shop):
    assert encoders.probe_encoders(shop.eval, shop.features, None, None, encoders.encoder_folders(None)) == {}
