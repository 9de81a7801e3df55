"""Lists of one fixed length, in every form that Arrow gives them."""

import pyarrow as pa
import pytest

from tfmm.data import casting

FIXED = pa.array([[1.0, 2.0], None, [3.0, 4.0]], pa.list_(pa.float64(), 2))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.chunked_array([FIXED]), [[1.0, 2.0], None, [3.0, 4.0]]),
        (pa.chunked_array([FIXED[1:], FIXED[:1]]), [None, [3.0, 4.0], [1.0, 2.0]]),
        (pa.chunked_array([FIXED[:0]]), []),
        (pa.chunked_array([], FIXED.type), []),
        (pa.chunked_array([FIXED[1:2]]), [None]),
    ],
)
def test_vectors_of_one_fixed_length_are_lists(array, expected):
    found = casting.cast(array, "vector", "vector", "items")
    assert found.type == pa.list_(pa.float32())
    assert found.to_pylist() == expected


def test_ids_of_one_fixed_length_are_lists():
    tags = pa.chunked_array([pa.array([["a", "b"]], pa.list_(pa.string(), 2))])
    assert casting.cast(tags, "tags", "ids", "items").to_pylist() == [["a", "b"]]
