import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import artifacts
from tfmm.config import DataConfig, PairsConfig
from tfmm.data import checks, join, pairs, schema, shards
from tfmm.data.sources import taobao_mm
from tfmm.features import FeatureSet

FEATURES = FeatureSet().resolved(max_behaviors=4, min_count=2)


def write_source(folder, *, train_history=(7, 8, 9), test_history=(8, 9, 5), user=-1):
    """Two items with features, one with an embedding, one user with a list per day."""

    def write(name, **columns):
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")

    write("item_features", **{"205": [7, 8], "206": [70, 0], "213": [0, 0], "214": [0, 0]})
    write("scl_embedding_int8_p90", **{"205": [8], "205_c": pa.array([[3, -4]], pa.list_(pa.int8()))})
    for split, history, label in (("train", train_history, [1, 0]), ("test", test_history, [0, 1])):
        write(f"{split}_samples", **{"label_0": pa.array([label], pa.list_(pa.int8())), "129_1": [user], "205": [6]})
        kinds = [10 * item if item else 0 for item in history]
        write(f"{split}_user_features", **{"129_1": [user], "150_2_180": [list(history)], "151_2_180": [kinds]})
    return folder


def test_a_tiny_source_is_converted_as_documented(tmp_path):
    manifest = taobao_mm.convert(write_source(tmp_path), tmp_path / "out")
    assert manifest["rows"] == {"items": 5, "behaviors": 4, "impressions": 2}
    items = {row["item_id"]: row for row in schema.read_table(tmp_path / "out", "items").to_pylist()}
    assert set(items) == {5, 6, 7, 8, 9}
    assert {item: row["category"] for item, row in items.items()} == {5: 50, 6: None, 7: 70, 8: 80, 9: 90}
    np.testing.assert_allclose(items[8]["vector"], [0.6, -0.8], rtol=1e-6)
    assert all(row["vector"] is None for item, row in items.items() if item != 8)
    acts = schema.read_table(tmp_path / "out", "behaviors").to_pylist()
    assert [act["item_id"] for act in sorted(acts, key=lambda act: act["timestamp"])] == [7, 8, 9, 5]
    shown = schema.read_table(tmp_path / "out", "impressions").to_pylist()
    assert [(row["label"], row["split"]) for row in shown] == [(0, "train"), (1, "eval")]
    assert max(act["timestamp"] for act in acts if act["item_id"] != 5) < shown[0]["timestamp"] < shown[1]["timestamp"]


def test_the_newest_item_of_a_list_is_the_newest_behavior(tmp_path):
    taobao_mm.convert(write_source(tmp_path), tmp_path / "out")
    manifest = join.write_examples(tmp_path / "out", DataConfig(max_behaviors=4), FEATURES, tmp_path / "examples")
    assert (manifest["train"], manifest["eval"]) == (1, 1)
    train, held = (shards.read_columns(str(tmp_path / "examples" / f"{split}-*")) for split in ("train", "eval"))
    assert train["behavior_item_ids"].tolist() == [[7, 8, 9, 0]]
    assert held["behavior_item_ids"].tolist() == [[7, 8, 9, 5]]
    assert held["behavior_categories"].tolist() == [[70, 80, 90, 50]]


def test_id_zero_is_missing(tmp_path):
    source = write_source(tmp_path, train_history=(7, 0, 9), test_history=())
    manifest = taobao_mm.convert(source, tmp_path / "out")
    assert manifest["left_out"] == {"impressions": 0, "behaviors": 1}
    assert 0 not in schema.read_table(tmp_path / "out", "items")["item_id"].to_pylist()


@pytest.mark.parametrize(
    "earlier, later, expected", [([1, 2, 3], [2, 3, 4], 2), ([1, 2], [3], 0), ([1, 1], [1, 1], 2), ([], [1], 0)]
)
def test_lists_overlap_where_one_goes_on_from_the_other(earlier, later, expected):
    assert taobao_mm._overlap(np.array(earlier), np.array(later)) == expected


def test_dequantized_vectors_have_unit_norm():
    vectors = taobao_mm.dequantize(np.array([[3, -4], [0, 0], [-38, 0]], np.int8))
    np.testing.assert_allclose(vectors, [[0.6, -0.8], [0, 0], [-1, 0]], rtol=1e-6)


def test_the_demo_is_converted(shared_data, tmp_path):
    manifest = taobao_mm.convert(shared_data / "taobao_mm_demo", tmp_path / "out")
    assert artifacts.read_manifest(tmp_path / "out", "data") == manifest
    assert manifest["rows"] == {"items": 11_220, "behaviors": 19_351, "impressions": 20}
    assert schema.modalities(tmp_path / "out") == ("vector",)
    report = checks.check(tmp_path / "out")
    assert [str(fault) for fault in report.faults] == [
        "impressions.label must be both 0 and 1 in the train split (10)"  # the demo's train samples hold no click
    ]
    assert pairs.build_pairs(tmp_path / "out", PairsConfig(), tmp_path / "pairs") == {}
    vectors = schema.read_table(tmp_path / "out", "items", ["vector"])["vector"].drop_null()
    assert len(vectors) == 10
    np.testing.assert_allclose(np.linalg.norm(vectors.to_pylist(), axis=1), 1, rtol=1e-5)


def test_a_folder_without_the_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`src` must hold TAOBAO-MM's tables"):
        taobao_mm.convert(tmp_path, tmp_path / "out")
