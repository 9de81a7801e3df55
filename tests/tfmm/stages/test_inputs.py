"""What a training is given: vectors of the catalog that it trains on, and how many."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm.index import encode, item_index, snapshot
from tfmm.stages import inputs


@pytest.fixture
def write(tmp_path):
    """Returns a function that writes a catalog with titles and images, and a snapshot."""

    def make(items, **vectors_of):
        contents = {"title": ["t"] * len(items), "image": [b"i"] * len(items)}
        pq.write_table(pa.table({"item_id": items, **contents}), tmp_path / "items.parquet")
        with item_index.ItemIndex(":memory:") as index:
            for modality, ids in vectors_of.items():
                rows, scales = encode.quantize(np.ones([len(ids), 4]))
                index.write(modality, "v1", ids, rows, scales, [1] * len(ids))
            snapshot.write_snapshot(index, tmp_path / "snapshot")
        return ("image", "text"), tmp_path, tmp_path / "snapshot"

    return make


def test_items_with_a_vector_are_counted_by_modality(write):
    assert inputs.coverage(*write([1, 2, 3], text=[1, 2, 9], image=[3])) == [
        "image: 1 of 3 items have a vector", "text: 2 of 3 items have a vector",
    ]  # fmt: skip


def test_rows_without_an_id_are_no_items(write):
    (line, _) = inputs.coverage(*write([1, None, 0, 2, None], image=[1], text=[1]))
    assert line == "image: 1 of 2 items have a vector"


def test_snapshot_of_another_catalog_is_refused(write):
    """One by numbers, one by texts; its fingerprints are other numbers."""
    with pytest.raises(ValueError, match=r"vectors of items \(image 2, text 1\), none of which is among the 3 here"):
        inputs.coverage(*write(["1", "2", "3"], text=[1], image=[1, 2]))


def test_snapshot_without_a_modality_of_the_data_is_refused(write):
    with pytest.raises(ValueError, match=r"must have vectors of image, which .* has. Received: .* with text"):
        inputs.coverage(*write([1, 2], text=[1]))
