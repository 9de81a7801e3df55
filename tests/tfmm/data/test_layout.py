"""Tests of which files make up a table: no layout may lose rows, nor read them twice."""

import datetime
import os
import pathlib
import tempfile

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfmm.config import DataConfig, PairsConfig
from tfmm.data import join, pairs, schema, shards
from tfmm.features import ACTIONS, FeatureSet

CONFIG = DataConfig(max_behaviors=20)
FEATURES = FeatureSet().resolved(CONFIG.max_behaviors, CONFIG.min_id_count)


def write(rows, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    table = rows if isinstance(rows, pa.Table) else pa.table(rows)
    pq.write_table(table, path, row_group_size=1000)


def by_day(table, folder):
    """Hive's layout: `dt=<day>/part-0.parquet`."""
    days = table["timestamp"].cast(pa.date32())
    for day in sorted(set(days.to_pylist())):
        write(table.filter(pc.equal(days, day)), folder / f"dt={day}" / "part-0.parquet")


def by_action(table, folder):
    """Hive's layout for a documented column, which the files then lack."""
    for action in ACTIONS:
        rows = table.filter(pc.equal(table["action"], action)).drop(["action"])
        write(rows, folder / f"action={action}" / "part-0.parquet")


def mixed(table, folder):
    """A first load beside later days."""
    third = table.num_rows // 3
    write(table[:third], folder / "part-0.parquet")
    write(table[third : 2 * third], folder / "ds=2024-05-01" / "part-1.parquet")
    write(table[2 * third :], folder / "year=2024" / "month=05" / "later" / "part-2.parquet")


def spark(table, folder):
    """Spark's folder `<table>.parquet/`, with its markers."""
    folder, half = folder.with_suffix(".parquet"), table.num_rows // 2
    write(table[:half], folder / "part-00000-8c7a49c.c000.snappy.parquet")
    write(table[half:], folder / "part-00001-8c7a49c.c000.snappy.parquet")
    for name in ("_SUCCESS", "._SUCCESS.crc", ".part-00000-8c7a49c.c000.snappy.parquet.crc"):
        (folder / name).write_bytes(b"")


def linked(table, folder):
    """A folder and a file that lie elsewhere."""
    elsewhere, half = folder.parent.parent / "elsewhere" / folder.name, table.num_rows // 2
    write(table[:half], elsewhere / "folder" / "part-0.parquet")
    write(table[half:], elsewhere / "file")
    folder.mkdir(parents=True)
    (folder / "part-0").symlink_to(elsewhere / "folder")
    (folder / "part-1.parquet").symlink_to(elsewhere / "file")


LAYOUTS = [by_day, by_action, mixed, spark, linked]


def in_order(table):
    """Returns the rows of a table, sorted."""
    return sorted(map(str, table.select(sorted(table.column_names)).to_pylist()))


@pytest.mark.parametrize("lay_out", LAYOUTS)
def test_every_layout_gives_the_rows_of_the_flat_one(small_marketplace, tmp_path, lay_out):
    table = schema.read_table(small_marketplace, "behaviors")
    lay_out(table, tmp_path / "data" / "behaviors")
    read = schema.read_table(tmp_path / "data", "behaviors")
    assert read.schema.field("action").type == pa.string()
    assert in_order(read) == in_order(table)
    assert schema.has_table(tmp_path / "data", "behaviors")


@pytest.fixture(scope="module")
def laid_out(small_marketplace, tmp_path_factory):
    """The small marketplace, with each table in another layout."""
    folder = tmp_path_factory.mktemp("laid_out") / "data"
    for name, lay_out in (("items", spark), ("searches", linked), ("behaviors", by_day), ("impressions", mixed)):
        lay_out(schema.read_table(small_marketplace, name), folder / name)
    return folder


def test_histories_are_those_of_the_flat_layout(small_marketplace, laid_out, tmp_path):
    found = []
    for name, folder in (("flat", small_marketplace), ("laid_out", laid_out)):
        join.write_examples(folder, CONFIG, FEATURES, tmp_path / name)
        columns = shards.read_columns(str(tmp_path / name / "*-of-*.npy"))
        order = np.lexsort((columns["label"], columns["item_id"], columns["user_id"], columns["timestamp"]))
        found.append({column: values[order] for column, values in columns.items()})
    assert (found[0]["behavior_item_ids"] != 0).sum(axis=1).mean() > 5
    for column, values in found[0].items():
        np.testing.assert_array_equal(found[1][column], values)


def test_pairs_stay_pairs_of_searches(small_marketplace, laid_out, tmp_path):
    flat, other = (
        pairs.build_pairs(folder, PairsConfig(), tmp_path / folder.name, CONFIG)
        for folder in (small_marketplace, laid_out)
    )
    for modality in ("image", "text"):
        assert flat[modality]["source"] == other[modality]["source"] == "search"
        for count in ("train", "heldout", "with_negative"):
            assert flat[modality][count] == other[modality][count] > 0


def test_a_table_that_is_there_twice_is_refused(tmp_path):
    write({"item_id": [1]}, tmp_path / "items.parquet")
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "notes.txt").write_text("of no table")
    assert schema.read_table(tmp_path, "items")["item_id"].to_pylist() == [1]
    write({"item_id": [2]}, tmp_path / "items" / "more" / "part-0.parquet")
    with pytest.raises(ValueError, match=r"must hold table 'items' once. Received: items.parquet and items/\. Take"):
        schema.read_table(tmp_path, "items")
    with pytest.raises(ValueError, match="must hold table 'items' once"):
        schema.has_table(tmp_path, "items")


def test_hidden_files_are_no_parts(tmp_path):
    write({"item_id": [1]}, tmp_path / "items" / "part-0.parquet")
    for name in ("._part-0.parquet", "_metadata", "_temporary/0/part-1.parquet", ".crc/part-0.parquet", ".a.crc"):
        path = tmp_path / "items" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"no parquet")
    assert schema.read_table(tmp_path, "items")["item_id"].to_pylist() == [1]


def test_links_in_a_circle_end(tmp_path):
    write({"item_id": [1]}, tmp_path / "items" / "a" / "part-0.parquet")
    (tmp_path / "items" / "a" / "again").symlink_to(tmp_path / "items")
    assert schema.read_table(tmp_path, "items")["item_id"].to_pylist() == [1]


@pytest.mark.parametrize("name", ["items.parquet", "items", "items/part-1.parquet", "items/dt=2"])
def test_a_broken_link_is_no_absence(tmp_path, name):
    if "/" in name:
        write({"item_id": [1]}, tmp_path / "items" / "part-0.parquet")
    (tmp_path / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"{name} must be readable Parquet. Received: .*No such file"):
        schema.read_table(tmp_path, "items")


def test_an_absent_table_says_what_lies_in_its_place(tmp_path):
    (tmp_path / "items").mkdir()
    (tmp_path / "items" / "000000_0").write_bytes(b"PAR1")
    with pytest.raises(FileNotFoundError, match=r"Not read: items/000000_0 \(the name does not end in \.parquet\)"):
        schema.modalities(tmp_path)


@pytest.mark.parametrize("log", ["_delta_log/00000000000000000000.json", ".hoodie/x", "metadata/v1.metadata.json"])
def test_a_table_format_that_keeps_old_rows_is_refused(tmp_path, log):
    write({"item_id": [1]}, tmp_path / "items" / "part-0.parquet")
    (tmp_path / "items" / log).parent.mkdir()
    (tmp_path / "items" / log).write_text("{}")
    with pytest.raises(ValueError, match=r"items must be plain Parquet. Received: a table of (Delta|Hudi|Iceberg)"):
        schema.read_table(tmp_path, "items")


@pytest.mark.parametrize(
    "table, column, folders, values, type_",
    [
        ("behaviors", "action", ["click", "__HIVE_DEFAULT_PARTITION__"], ["click", None], "string"),
        ("impressions", "label", ["0", "1"], [0, 1], "int64"),
        ("impressions", "label", ["false", "true"], [0, 1], "int64"),
        ("impressions", "split", ["eval", "train"], ["eval", "train"], "string"),
        ("items", "category", ["-3", "12"], [-3, 12], "int64"),
        ("items", "category", ["12", "__HIVE_DEFAULT_PARTITION__"], [12, None], "int64"),
        ("items", "category", ["007", "12"], ["007", "12"], "string"),
        ("items", "category", ["9223372036854775808"], ["9223372036854775808"], "string"),
        ("items", "category", ["shoes %26 socks", "a%2Fb"], ["shoes & socks", "a/b"], "string"),
        (
            "behaviors",
            "timestamp",
            ["2024-05-01", "2024-05-02"],
            [datetime.datetime(2024, 5, 1), datetime.datetime(2024, 5, 2)],
            "timestamp[us]",
        ),
        (
            "behaviors",
            "timestamp",
            ["2024-05-01", "2024-05-01 10%3A30%3A00+02%3A00"],
            [datetime.datetime(2024, 5, 1), datetime.datetime(2024, 5, 1, 8, 30)],
            "timestamp[us]",
        ),
    ],
)
def test_a_documented_key_becomes_its_column(tmp_path, table, column, folders, values, type_):
    for folder in folders:
        write({"other": [1, 2]}, tmp_path / table / "dt=1" / f"{column}={folder}" / "part-0.parquet")
    read = schema.read_table(tmp_path, table, [column])[column]
    assert str(read.type) == type_
    expected = [value for _, value in sorted(zip(folders, values)) for _ in range(2)]
    assert read.to_pylist() == expected


@pytest.mark.parametrize(
    "folder, message",
    [
        ("label=maybe", r"must name values of column 'label' \(integer\)\. Received: label=maybe"),
        ("timestamp=today", r"must name values of column 'timestamp' \(timestamp\)\. Received: timestamp=today"),
        ("split=train/split=eval", "must have one `split=` among its folders. Received: train and eval"),
    ],
)
def test_a_folder_name_that_is_no_value_is_refused(tmp_path, folder, message):
    write({"item_id": [1]}, tmp_path / "impressions" / folder / "part-0.parquet")
    with pytest.raises(ValueError, match=message):
        schema.read_table(tmp_path, "impressions", ["item_id"])


@pytest.mark.parametrize("stored", [["click", "cart"], ["click", None], pa.array(["cart", "cart"]).dictionary_encode()])
def test_a_folder_name_that_contradicts_the_file_is_refused(tmp_path, stored):
    write({"item_id": [1, 2], "action": stored}, tmp_path / "behaviors" / "action=click" / "part-0.parquet")
    with pytest.raises(ValueError, match=r"action=click/part-0\.parquet must hold in column 'action' what its folder"):
        schema.read_table(tmp_path, "behaviors", ["action"])


def test_a_folder_name_that_the_file_repeats_is_no_contradiction(tmp_path):
    times = pa.array([datetime.datetime(2024, 5, 1, 10)], pa.timestamp("us", "UTC"))
    folder = tmp_path / "behaviors" / "action=click" / "timestamp=2024-05-01"
    write({"action": ["click"], "timestamp": times}, folder / "part-0.parquet")
    read = schema.read_table(tmp_path, "behaviors", ["action", "timestamp"])
    assert read.to_pylist() == [{"action": "click", "timestamp": datetime.datetime(2024, 5, 1, 10)}]


def test_ids_that_are_all_null_in_one_part_take_the_type_of_the_others(tmp_path):
    write({"item_id": [1], "category": pa.nulls(1)}, tmp_path / "items" / "dt=1" / "part-0.parquet")
    write({"item_id": [2], "category": [3]}, tmp_path / "items" / "dt=2" / "part-0.parquet")
    assert schema.read_table(tmp_path, "items")["category"].to_pylist() == [None, 3]


def test_a_damaged_part_is_named(tmp_path):
    for part in range(3):
        write({"item_id": list(range(5000)), "title": ["text"] * 5000}, tmp_path / "items" / f"part-{part}.parquet")
    damaged = tmp_path / "items" / "part-1.parquet"
    content = damaged.read_bytes()
    for broken in (b"", content[:50], content[:4] + b"\xff" * 600 + content[604:]):
        damaged.write_bytes(broken)
        with pytest.raises(ValueError, match=r"items/part-1\.parquet must be readable Parquet\. Received: \S"):
            schema.read_table(tmp_path, "items")


def test_a_missing_column_is_told_with_all_that_the_file_has(tmp_path):
    write({"item_id": [1]}, tmp_path / "items" / "part-0.parquet")
    write({"Item_ID": [1], "title": ["a"]}, tmp_path / "items" / "part-1.parquet")
    with pytest.raises(ValueError, match=r"Received the columns \['Item_ID', 'title'\] in .*items/part-1\.parquet"):
        schema.read_table(tmp_path, "items")


def test_a_part_with_a_column_of_another_type_is_named(tmp_path):
    write({"item_id": [1]}, tmp_path / "items" / "part-0.parquet")
    write({"item_id": [1.5]}, tmp_path / "items" / "part-1.parquet")
    with pytest.raises(ValueError, match=r"Received: double .* In .*items/part-1\.parquet"):
        schema.read_table(tmp_path, "items")


NAMES = st.sampled_from(["a", "b.parquet", "dt=1", "dt=2", "_x=3", "action=click", "action=cart", "_tmp", ".tmp"])
FILES = st.dictionaries(
    st.tuples(st.lists(NAMES, max_size=3, unique_by=lambda name: name.split("=")[0]).map(tuple), st.sampled_from("pq")),
    st.integers(0, 3),
    min_size=1,
    max_size=6,
)


@settings(max_examples=60, deadline=None)
@given(files=FILES, suffix=st.sampled_from(["", ".parquet"]))
def test_all_rows_of_any_tree_are_read_once_in_the_order_of_paths(files, suffix):
    with tempfile.TemporaryDirectory() as name:
        folder, first, expected = pathlib.Path(name), 0, {}
        for (above, stem), count in files.items():
            ids = list(range(first, first + count))
            path = folder.joinpath(f"behaviors{suffix}", *above, f"{stem}.parquet")
            write({"item_id": pa.array(ids, pa.int64())}, path)
            if not any(part in ("_tmp", ".tmp") for part in above):
                keys = dict(part.split("=") for part in above if "=" in part)
                expected[path.parts] = [(one, keys.get("action")) for one in ids]
            first += count
        assert schema.has_table(folder, "behaviors") is bool(expected)
        for path in folder.rglob("*.parquet"):  # `action` is required: files without it carry their own
            if path.is_file() and not any(part.startswith("action=") for part in path.parts):
                table = pq.read_table(os.fspath(path), partitioning=None)
                write(table.append_column("action", pa.nulls(table.num_rows, pa.string())), path)
        if expected:
            read = schema.read_table(folder, "behaviors", ["item_id", "action"])
            rows = list(zip(read["item_id"].to_pylist(), read["action"].to_pylist()))
            assert rows == [row for path in sorted(expected) for row in expected[path]]
