import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import fingerprints
from tfmm.data import schema


def test_a_table_is_read_from_one_file_or_from_parts(tmp_path):
    table = pa.table({"item_id": [1, 2], "title": ["a", None]})
    pq.write_table(table, tmp_path / "items.parquet")
    assert schema.read_table(tmp_path, "items").to_pydict() == table.to_pydict()
    parts = tmp_path / "in_parts"
    (parts / "items").mkdir(parents=True)
    pq.write_table(table, parts / "items" / "part-1.parquet")
    pq.write_table(pa.table({"item_id": [0]}), parts / "items" / "part-0.parquet")
    read = schema.read_table(parts, "items", ["title", "item_id"])
    assert read.to_pydict() == {"title": [None, "a", None], "item_id": [0, 1, 2]}


def test_columns_come_in_their_documented_types(tables):
    folder = tables(
        impressions=pa.table(
            {
                "user_id": pa.array(["u"], pa.large_string()).dictionary_encode(),
                "item_id": pa.array([1], pa.int32()),
                "timestamp": pa.array([1_000], pa.timestamp("ms", tz="UTC")),
                "label": pa.array([1], pa.int8()),
                "extra": [1],
            }
        )
    )
    types = {field.name: str(field.type) for field in schema.read_table(folder, "impressions").schema}
    assert types == {"user_id": "string", "item_id": "int64", "timestamp": "timestamp[us]", "label": "int64"}


def test_times_as_spark_stores_them_do_not_wrap(tmp_path):
    """INT96, Spark's default, holds the year 9999; as Arrow's nanoseconds it would be one of 1816."""
    told = [datetime.datetime(2024, 5, 1, 10, 30, 0, 7), datetime.datetime(9999, 12, 31), None]
    table = pa.table({"item_id": [1, 2, 3], "created_at": pa.array(told, pa.timestamp("us"))})
    pq.write_table(table, tmp_path / "items.parquet", use_deprecated_int96_timestamps=True)
    assert pq.read_schema(tmp_path / "items.parquet").field("created_at").type == pa.timestamp("ns")
    assert schema.read_table(tmp_path, "items", ["created_at"])["created_at"].to_pylist() == told


def test_an_optional_column_that_is_wanted_but_absent_comes_as_nulls(tables):
    folder = tables(items=[{"item_id": 1}])
    table = schema.read_table(folder, "items", ["item_id", "vector", "created_at"])
    assert table.to_pydict() == {"item_id": [1], "vector": [None], "created_at": [None]}


def test_missing_tables_and_columns_are_named(tables):
    folder = tables(items=[{"title": "a"}])
    with pytest.raises(FileNotFoundError, match=r"no table 'impressions': expected impressions\.parquet"):
        schema.read_table(folder, "impressions")
    with pytest.raises(ValueError, match=r"must have a column 'item_id' \(int64 or string\)"):
        schema.read_table(folder, "items")
    with pytest.raises(ValueError, match="`name` must be one of"):
        schema.read_table(folder, "item")


def test_a_column_of_another_type_is_refused(tables):
    folder = tables(items=[{"item_id": 1.5}])
    with pytest.raises(ValueError, match=r"'item_id' of table 'items' must be int64 or string. Received: double"):
        schema.read_table(folder, "items")


def test_fingerprints_of_ids_agree_with_the_features():
    strings = ["a", "", "bb", "a"]
    expected = fingerprints.fingerprint(strings)
    np.testing.assert_array_equal(schema.fingerprints(pa.array(strings)), expected)
    np.testing.assert_array_equal(schema.fingerprints(pa.chunked_array([strings[:1], strings[1:]])), expected)
    np.testing.assert_array_equal(schema.fingerprints(pa.array(["a", None])), [expected[0], 0])
    np.testing.assert_array_equal(schema.fingerprints(pa.array([-3, None], pa.int64())), [-3, 0])
    assert schema.fingerprints(pa.chunked_array([], pa.string())).shape == (0,)
    np.testing.assert_array_equal(schema.fingerprints(pa.nulls(2)), [0, 0])


@pytest.mark.parametrize(
    "row, expected",
    [
        ({"image": b"x", "title": "a"}, ("image", "text")),
        ({"image": None, "title": "a"}, ("text",)),
        ({"vector": [1.0], "title": "a"}, ("vector",)),
        ({"category": 1}, ()),
    ],
)
def test_modalities_are_those_with_a_value(tables, row, expected):
    assert schema.modalities(tables(items=[{"item_id": 1, **row}])) == expected


def test_pictures_count_whatever_the_searches_hold(tables):
    folder = tables(
        items=[{"item_id": 1, "image": b"x", "title": "a"}, {"item_id": 2, "image": None, "title": None}],
        searches=[{"search_id": 1, "user_id": 1, "query_text": "a", "query_image": None}],
    )
    assert schema.modalities(folder) == ("image", "text")


def test_modalities_of_a_folder_without_items_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected items\.parquet"):
        schema.modalities(tmp_path)


def test_id_types_are_one_per_name(tables):
    folder = tables(items=[{"item_id": "a", "category": 3}], impressions=[{"user_id": 1, "item_id": "a"}])
    assert schema.id_types(folder) == {"user_id": "int64", "item_id": "string", "category": "int64"}
    tables(behaviors=[{"user_id": 1, "item_id": 7}])
    with pytest.raises(ValueError, match=r"`item_id` must have one type in all tables. Received: string elsewhere"):
        schema.id_types(folder)


@pytest.mark.parametrize(
    "column, value, message",
    [
        ("search_id", "5", "`search_id` must have one type in all tables. Received: int64 elsewhere, string in"),
        ("trigger_item_id", "1", "`trigger_item_id` must have the type of `item_id`. Received: int64 elsewhere, st"),
    ],
)
def test_ids_that_refer_to_another_table_have_its_type(tables, column, value, message):
    folder = tables(
        items=[{"item_id": 1}],
        searches=[{"search_id": 5, "user_id": 1}],
        behaviors=[{"user_id": 1, "item_id": 1, "search_id": 5, "trigger_item_id": 1, column: value}],
    )
    with pytest.raises(ValueError, match=message):
        schema.id_types(folder)


def test_order_ids_of_all_parts_have_one_type(tmp_path):
    (tmp_path / "behaviors").mkdir()
    for part, order_id in enumerate((7, "7")):
        pq.write_table(pa.table({"order_id": [order_id]}), tmp_path / "behaviors" / f"{part}.parquet")
    with pytest.raises(ValueError, match="`order_id` must have one type in all tables"):
        schema.id_types(tmp_path)


def test_the_schema_text_names_every_column():
    text = schema.schema_text()
    for table in schema.TABLES.values():
        assert table.name in text
        assert all(column.name in text for column in table.columns)
