"""The model in service, before it is judged, takes what the index has beyond its export."""

import shutil

import numpy as np
import pytest

from tfmm import saved_model
from tfmm.evaluate import in_service
from tfmm.index import encode, item_index
from tfmm.training import examples as examples_lib

NEW = 5000  # an item that came after the export


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


def test_new_items_of_the_index_have_their_vectors(multimodal, index, shop):
    files = examples_lib.example_files(shop.eval)
    with saved_model.load_session(multimodal.version_dir) as model:
        assert in_service.prepare(model, index.url, files) == {
            "index": {"image": {"rows": 0, "left_out": None}, "text": {"rows": 0, "left_out": None}}, "left_out": None,
        }  # fmt: skip
        before = score(model, NEW)
        add(index, "image", 16, [NEW, NEW + 1])
        add(index, "image", 16, [NEW], version="v2")  # of another encoder: not for this model
        found = in_service.prepare(model, index.url, files)
        assert found["index"]["image"] == {"rows": 2, "left_out": None} and found["index"]["text"]["rows"] == 0
        assert score(model, NEW) != before
        index.withdraw([NEW], [11])
        in_service.prepare(model, index.url, files)
        np.testing.assert_array_equal(score(model, NEW), before)


def test_without_an_index_it_stays_as_exported(multimodal, shop, tmp_path):
    files = examples_lib.example_files(shop.eval)
    with saved_model.load_session(multimodal.version_dir) as model:
        for path in (None, tmp_path / "none.sqlite"):
            assert in_service.prepare(model, path, files) == {"index": {}, "left_out": None}
    assert not (tmp_path / "none.sqlite").exists()


def test_index_of_other_encoders_and_full_tables_are_said(multimodal, index, tmp_path):
    with saved_model.load_session(multimodal.version_dir) as model:
        with item_index.ItemIndex(tmp_path / "other.sqlite") as other:
            assert in_service.catch_up(model, other)["text"]["left_out"].endswith("knows no text encoder v1")
        add(index, "text", 8, list(range(6000, 6400)))
        found = in_service.catch_up(model, index)["text"]
        assert found["rows"] == 0 and found["left_out"].startswith("400 rows do not fit: ")


def test_model_of_another_declaration_is_left_out_with_the_reason(multimodal, shop):
    files = examples_lib.example_files(shop.eval)

    with saved_model.load_session(multimodal.version_dir) as model:
        assert in_service.prepare(model, None, files)["left_out"] is None
        model.signatures.pop("serve_examples")
        assert in_service.prepare(model, None, files)["left_out"] == "it has no signature `serve_examples`"
