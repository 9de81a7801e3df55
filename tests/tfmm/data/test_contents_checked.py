"""What the check says of items' contents, by the encoders that take them."""

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from tfmm.data import checks
from tfmm.modalities import Modality, ModalitySet

PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
CORRUPT = PNG[:40]


def shop(at):
    return {
        "items": [{"item_id": k, "title": "t"} for k in (1, 2, 3)],
        "impressions": [{"user_id": 1, "item_id": 1, "timestamp": at(m), "label": m % 2} for m in range(20)],
    }


def faults(report):
    return [(fault.table, fault.column, fault.rule) for fault in report.faults]


@pytest.mark.parametrize("last, others", [(3, []), (0, [("items", "item_id", "must not be 0 or empty")])])
def test_catalog_without_content_is_a_fault_whatever_its_rows(tables, at, last, others):
    data = shop(at)
    data["items"] = [{"item_id": k} for k in (1, 2, last)]
    said = ("items", "", "must have a title, an image or a vector in at least one row")
    assert faults(checks.check(tables(**data))) == [*others, said]


@pytest.mark.parametrize("row", [{}, {"vector": [0.0] * 1041}, {"vector": []}, {"image": CORRUPT}])
def test_vectors_that_no_index_takes_are_a_fault_that_stops_a_run(tables, at, row):
    """They were found by the embedding, after all that comes before it."""
    data = shop(at)
    data["items"] = [{"item_id": k, "vector": [1.0] * 1041, "image": PNG} for k in (1, 2, 3)]
    data["items"][2] |= row
    (fault,) = checks.check(tables(**data)).stopping(1.0)
    assert (fault.column, fault.rows) == ("vector", ())
    assert fault.rule.startswith("must have 1 to 1040 values, not 1041 as most have")


@pytest.mark.parametrize("none", [[], None])
def test_length_of_vectors_is_that_of_those_that_are_there(tables, at, none):
    """The embedding goes by these, however few there are."""
    data = shop(at)
    data["items"] = [{"item_id": k, "vector": vector} for k, vector in enumerate((none, none, [1.0, 0.5]), 1)]
    assert not [fault for fault in checks.check(tables(**data)).faults if 2 in fault.rows]


@pytest.mark.parametrize("kind", [pa.null(), pa.list_(pa.float64())], ids=str)
def test_column_of_null_vectors_is_no_fault_beside_titles(tables, at, kind):
    data = shop(at)
    data["items"] = pa.table({"item_id": [1, 2, 3], "title": ["t"] * 3, "vector": pa.nulls(3, kind)})
    assert checks.check(tables(**data)).ok


BAG, TRANSFORMER = (Modality("description", encoder, "title") for encoder in ("text", "text_transformer"))


@pytest.mark.parametrize(
    "declared, has_vectors, is_fault",
    [((), False, True), ((BAG,), True, True), ((TRANSFORMER,), False, False), ((), True, False)],
    ids=["bag of words", "declared bag of words", "transformer, which reads the first words", "ready vectors instead"],
)
def test_long_text_is_a_fault_where_its_encoder_refuses_it(tables, at, declared, has_vectors, is_fault):
    data = shop(at)
    for row in data["items"]:
        row |= {"title": "é" * 8192, "vector": [1.0, 0.5] if has_vectors else None}
    data["items"][1]["title"] += "e"
    found = [str(fault) for fault in checks.check(tables(**data), modality_set=ModalitySet(declared)).faults]
    assert found == ["items.title must have at most 16,384 bytes of UTF-8 (1, first rows 1)"] * is_fault
