"""Tests of snapshots of the item index."""

import numpy as np
import pytest

from tfmm import artifacts
from tfmm.index import encode, item_index, snapshot


@pytest.fixture
def index():
    with item_index.ItemIndex(":memory:") as index:
        rows, scales = encode.quantize(np.random.default_rng(0).normal(size=[5, 4]))
        index.write("image", "v1", [9, 3, -7, 4, 5], rows, scales, [1] * 5)
        index.write("text", "v1", [9], rows[:1, :2].copy(), scales[:1], [1])
        index.withdraw([4], [2])
        yield index


def test_snapshot_survives_writing_and_loading(index, tmp_path):
    manifest = snapshot.write_snapshot(index, tmp_path)
    taken, loaded = snapshot.take_snapshot(index), snapshot.load_snapshot(tmp_path)
    assert loaded.modalities == ("image", "text")
    assert manifest["modalities"]["image"] == {
        "dim": 4,
        "encoder_version": "v1",
        "watermark": index.last_sequence("image", "v1"),
        "size": 4,
    }
    for modality in loaded.modalities:
        for name in ("ids", "rows", "scales", "sequences"):
            wanted, found = getattr(taken[modality], name), getattr(loaded[modality], name)
            np.testing.assert_array_equal(wanted, found)
            assert wanted.dtype == found.dtype
        assert (loaded[modality].dim, loaded[modality].watermark) == (
            taken[modality].dim, taken[modality].watermark)  # fmt: skip
    assert loaded["image"].ids.tolist() == [-7, 3, 5, 9]  # 4 is withdrawn


def test_lookup_masks_items_without_embedding(index):
    table = snapshot.take_snapshot(index)["image"]
    rows, scales, mask = table.lookup([[9, 0], [4, -7], [10**9, 3]])
    assert mask.tolist() == [[True, False], [False, True], [False, True]]
    assert not rows[~mask].any() and not scales[~mask].any()
    np.testing.assert_array_equal(rows[0, 0], table.rows[3])


def test_empty_table_masks_everything(tmp_path):
    with item_index.ItemIndex(":memory:") as index:
        index.register_encoder("image", "v1", 4)
        snapshot.write_snapshot(index, tmp_path)
    rows, scales, mask = snapshot.load_snapshot(tmp_path)["image"].lookup([1, 2])
    assert rows.shape == (2, 4) and not scales.any() and not mask.any()


def test_snapshot_takes_the_active_encoder_or_the_named_one(index):
    index.write("image", "v2", [1], np.ones([1, 3], np.int8), [0.5], [1])
    assert snapshot.take_snapshot(index)["image"].encoder_version == "v1"
    index.activate("image", "v2")
    assert snapshot.take_snapshot(index)["image"].ids.tolist() == [1]
    assert snapshot.take_snapshot(index, {"image": "v1"}).modalities == ("image",)


def test_incomplete_snapshot_is_refused(index, tmp_path):
    snapshot.write_snapshot(index, tmp_path)
    np.save(tmp_path / "image" / "ids.npy", np.arange(2))
    with pytest.raises(ValueError, match="must hold 4 rows"):
        snapshot.load_snapshot(tmp_path)
    (tmp_path / artifacts.MANIFEST).unlink()
    with pytest.raises(FileNotFoundError, match="did not finish"):
        snapshot.load_snapshot(tmp_path)


def test_unknown_modality_is_named(index):
    with pytest.raises(KeyError, match="must be one of"):
        snapshot.take_snapshot(index)["sound"]
