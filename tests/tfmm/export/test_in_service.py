"""The model in service, before it is judged, takes what the index has beyond its export."""

import re
import shutil
import sqlite3

import numpy as np
import pytest
import tensorflow as tf

from tfmm import saved_model
from tfmm.evaluate import in_service, wording
from tfmm.index import encode, item_index
from tfmm.training import examples as examples_lib

NEW = 5000  # an item that came after the export
NOTHING_NEW = {"rows": 0, "left_out": None, "ahead": None}


@pytest.fixture
def index(shop, tmp_path):
    shutil.copy(shop.folder / "index.sqlite", tmp_path / "items.sqlite")
    with item_index.ItemIndex(tmp_path / "items.sqlite") as opened:
        yield opened


def add(index, modality, dim, ids, version="v1"):
    rows, scales = encode.quantize(np.random.default_rng(0).normal(size=(len(ids), dim)))
    index.write(modality, version, ids, rows, scales, np.full(len(ids), 10))


def score(model, item):
    request = {"user_id": [1], "item_id": [item], "category": [1], "behavior_item_ids": [[1000, 1001, 1002]],
               "behavior_categories": [[1, 2, 3]]}  # fmt: skip
    return model("rank", request)["score"]


def write_examples(folder, *examples):
    path = str(folder / "eval-00000-of-00001.gz")
    with tf.io.TFRecordWriter(path, "GZIP") as writer:
        for example in examples:
            writer.write(example.SerializeToString())
    return path


def test_new_items_of_the_index_have_their_vectors(multimodal, index, shop):
    files = examples_lib.example_files(shop.eval)
    with saved_model.load_session(multimodal.version_dir) as model:
        assert in_service.prepare(model, index.url, files) == {
            "index": {"image": NOTHING_NEW, "text": NOTHING_NEW}, "left_out": None, "as_exported": None,
        }  # fmt: skip
        before = score(model, NEW)
        add(index, "image", 16, [NEW, NEW + 1])
        add(index, "image", 16, [NEW], version="v2")  # of another encoder: not for this model
        found = in_service.prepare(model, index.url, files)
        assert found["index"]["image"] == {**NOTHING_NEW, "rows": 2} and found["index"]["text"]["rows"] == 0
        assert score(model, NEW) != before
        index.withdraw([NEW], [11])
        in_service.prepare(model, index.url, files)
        np.testing.assert_array_equal(score(model, NEW), before)


def test_without_an_index_it_stays_as_exported_and_says_so(multimodal, shop, tmp_path):
    files = examples_lib.example_files(shop.eval)
    with saved_model.load_session(multimodal.version_dir) as model:
        found = in_service.prepare(model, None, files)
        assert found == {"index": {}, "left_out": None, "as_exported": "no item index is named"}
        assert wording.service_lines({in_service.NAME: found}) == [
            "Warning: the model in service is judged as it was exported, without newer items: no item index is named"
        ]
        found = in_service.prepare(model, tmp_path / "none.sqlite", files)
        assert found["index"] == {} and found["left_out"] is None
        (line,) = wording.service_lines({in_service.NAME: found})
        assert line.endswith("none.sqlite does not exist. `tfmm embed` makes the item index.") and "as it was" in line
    assert not (tmp_path / "none.sqlite").exists()


def test_model_without_tables_is_judged_whole(ids_alone, index, shop):
    with saved_model.load_session(ids_alone.version_dir) as model:
        found = in_service.prepare(model, index.url, examples_lib.example_files(shop.eval))
    assert found == {"index": {}, "left_out": None, "as_exported": None}
    assert wording.service_lines({in_service.NAME: found}) == []


def test_index_that_the_model_is_beyond_gives_every_row_again(multimodal, index, shop, tmp_path):
    """As the replicator does: an index that was restored numbers what is new with numbers that were given before."""
    shutil.copy(shop.folder / "index.sqlite", tmp_path / "restored.sqlite")
    add(index, "image", 16, [NEW + 1, NEW + 2, NEW + 3])
    with saved_model.load_session(multimodal.version_dir) as model:
        assert in_service.catch_up(model, index)["image"]["rows"] == 3
        before = score(model, NEW)
        with item_index.ItemIndex(tmp_path / "restored.sqlite") as restored:
            add(restored, "image", 16, [NEW])
            found = in_service.catch_up(model, restored)
            newest = restored.newest_sequence()
        assert score(model, NEW) != before
        assert found["image"]["rows"] == 1 and found["image"]["left_out"] is None
        assert f"the index none beyond {newest}" in found["image"]["ahead"]
        assert found["text"] == {"rows": 0, "left_out": None, "ahead": None}
        said = wording.service_lines({in_service.NAME: {"index": found, "left_out": None}})
        assert said[0].startswith("Warning: the model in service is ahead of the index in image: ") and len(said) == 3


@pytest.mark.parametrize("fault", ["sequence", "dim"])
def test_rows_that_the_model_refuses_are_said(fault, multimodal, index, tmp_path):
    if fault == "sequence":
        with sqlite3.connect(index.path) as database:
            database.execute("UPDATE counters SET value = 1 << 60 WHERE name = 'sequence'")
        database.close()
        add(index, "text", 8, [NEW])
        reason = "1 rows are refused: .*beyond the present"
    else:
        index = item_index.ItemIndex(tmp_path / "other.sqlite")
        add(index, "text", 4, [NEW])
        reason = "1 rows are refused: .*`rows` of text must have 8 values"
    with index, saved_model.load_session(multimodal.version_dir) as model:
        found = in_service.catch_up(model, index)["text"]
    assert found["rows"] == 0 and re.match(reason, found["left_out"]), found


def test_index_of_other_encoders_and_full_tables_are_said(multimodal, index, tmp_path):
    with saved_model.load_session(multimodal.version_dir) as model:
        with item_index.ItemIndex(tmp_path / "other.sqlite") as other:
            assert in_service.catch_up(model, other)["text"]["left_out"].endswith("knows no text encoder v1")
        add(index, "text", 8, list(range(6000, 6400)))
        found = in_service.catch_up(model, index)["text"]
        assert found["rows"] == 0 and found["left_out"].startswith("400 rows do not fit: Reached limit of 400")


def test_model_of_another_declaration_is_left_out_with_the_reason(multimodal, shop, tmp_path):
    files = examples_lib.example_files(shop.eval)
    with saved_model.load_session(multimodal.version_dir) as model:
        assert in_service.prepare(model, None, files)["left_out"] is None
        found = in_service.prepare(model, None, [write_examples(tmp_path, tf.train.Example())])
        reason = "it cannot score these examples: .*Feature: category .*is required"
        assert re.match(reason, found["left_out"]), found
        model.signatures.pop("serve_examples")
        assert in_service.prepare(model, None, files)["left_out"] == "it has no signature `serve_examples`"
