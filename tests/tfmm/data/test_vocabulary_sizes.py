"""Tests of how many ids tables have, and of tables of embeddings that memory has no room for."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm.data import declared, vocabulary_sizes
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Sequence

GIB = 2**30


@pytest.fixture
def folder(tmp_path):
    """A shop of five items and two users, whose ids can be counted by hand."""
    times = pa.array(range(6), pa.timestamp("s"))
    tables = {
        "items": {"item_id": [1, 2, 3, 4, 5], "title": list("abcde"), "brand": ["x", "y", None, "", "x"],
                  "tags": [["p"], ["p", "q"], [], None, ["r", ""]]},
        "users": {"user_id": [1, 2], "liked": ["z", "x"]},
        "impressions": {"user_id": [1, 1, 1, 2, 1, 1], "item_id": [1, 2, 1, 2, 1, 1], "timestamp": times,
                        "label": [0, 1] * 3, "page": [7, 7, 8, 0, 7, 9]},
        "behaviors": {"user_id": [9], "item_id": [77], "timestamp": times[:1], "action": ["click"]},
    }  # fmt: skip
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=2)
    return tmp_path


def declare(*features):
    return FeatureSet((*DEFAULT_FEATURES, *features), (Sequence("acts"),)).resolved(4, 2)


def counted(folder, feature_set, vocabulary):
    return vocabulary_sizes.num_ids(folder, feature_set, declared.tables(feature_set), vocabulary)


def test_ids_are_those_that_an_example_may_have(folder):
    features = declare(Feature("brand", "item"), Feature("liked", "user", vocabulary="brand"),
                       Feature("tags", "item", "ids"), Feature("page", "context"))  # fmt: skip
    assert counted(folder, features, "brand") == 3  # x, y and z: neither null nor ""
    assert counted(folder, features, "tags") == 3
    assert counted(folder, features, "item_id") == 3  # 1, 2 and 77 of a history
    assert counted(folder, features, "user_id") == 1  # the other is shown once, and two times are asked for
    assert counted(folder, features, "page") == 1
    assert counted(folder, features, "category") == 0  # no such column, which may be


def test_a_vocabulary_beyond_memory_is_refused_by_the_ids_of_the_data(folder):
    fits = Feature("brand", "item", dim=GIB)  # 4 GiB a row: two ids, missing and unknown
    beyond = Feature("tags", "item", "ids", dim=GIB, min_count=1)
    assert declared.faults(folder, declare(fits, beyond)) == [
        "feature 'tags': an embedding table must take at most 16 GiB, not 20.0 GiB, for the 3 ids of the data. Lower "
        "`dim`, or hash them into `num_buckets`"
    ]
    rare_left_out = Feature("tags", "item", "ids", dim=GIB, min_count=2)  # how rare a tag is only the examples tell
    assert declared.faults(folder, declare(rare_left_out)) == []


def test_ids_are_not_counted_where_rows_are_too_few_for_it(folder, monkeypatch):
    monkeypatch.delattr(vocabulary_sizes, "num_ids")
    assert declared.faults(folder, declare(Feature("tags", "item", "ids"))) == []


def test_what_is_not_there_is_said_once(folder):
    (said,) = declared.faults(folder, declare(Feature("size", "item", dim=GIB)))
    assert said.startswith("feature 'size': column items.size must be there")
