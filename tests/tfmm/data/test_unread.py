"""Tests of what is said of a data folder's files, tables and columns that are not read."""

import pyarrow as pa
import pyarrow.parquet as pq

from tfmm.data import unread


def lines(folder):
    said = []
    unread.say(folder, said.append)
    return said


def write(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


def test_nothing_is_said_where_all_is_read(tmp_path):
    write(tmp_path / "items.parquet", item_id=[1], title=["a"])
    write(tmp_path / "behaviors" / "action=click" / "part-0.parquet", user_id=[1])
    for name in ("manifest.json", ".DS_Store", "_SUCCESS", "behaviors/_SUCCESS", "behaviors/.part-0.parquet.crc"):
        (tmp_path / name).write_bytes(b"")
    assert lines(tmp_path) == []


def test_columns_and_keys_outside_the_schema_are_named(tmp_path):
    write(tmp_path / "items.parquet", item_id=[1], price=[1.5], brand=["x"])
    write(tmp_path / "behaviors" / "dt=1" / "action=click" / "a.parquet", user_id=[1], hour=[3])
    write(tmp_path / "behaviors" / "dt=2" / "action=cart" / "a.parquet", user_id=[1], hour=[3])
    assert lines(tmp_path) == [
        "not used: items.price, items.brand, behaviors.hour (not a column of the schema)",
        "not used: behaviors.dt (a partition key that is not a column of the schema)",
    ]


def test_tables_and_files_outside_the_schema_are_named(tmp_path):
    write(tmp_path / "users.parquet", user_id=[1])
    write(tmp_path / "truth" / "items.parquet", item_id=[1])
    (tmp_path / "items.csv").write_text("item_id\n1\n")
    (tmp_path / "behaviors").write_text("no folder")
    (tmp_path / "Items.parquet").write_bytes(b"")
    assert lines(tmp_path) == [
        "not used: Items.parquet, truth/, users.parquet (not a table of the schema)",
        "not used: behaviors, items.csv (the name does not end in .parquet)",
    ]


def test_files_of_a_table_that_are_no_parts_are_named_and_counted(tmp_path):
    write(tmp_path / "items" / "part-0.parquet", item_id=[1])
    for name in ("a.csv", "b.parquet.gz", "c.PARQUET", "._p.parquet", "_tmp/q.parquet"):
        (tmp_path / "items" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "items" / name).write_bytes(b"x")
    (tmp_path / "items" / "again").symlink_to(tmp_path / "items")
    assert lines(tmp_path) == [
        "not used: items/._p.parquet and 1 more (hidden: the name begins with . or _)",
        "not used: items/a.csv and 2 more (the name does not end in .parquet)",
        "not used: items/again/ (a link to a folder above it)",
    ]


def test_a_table_without_parts_or_rows_is_named(tmp_path):
    (tmp_path / "behaviors").mkdir()
    (tmp_path / "behaviors" / "000000_0").write_bytes(b"PAR1")
    write(tmp_path / "searches.parquet", search_id=pa.array([], pa.int64()))
    assert lines(tmp_path) == [
        "not used: searches (no rows)",
        "not used: behaviors/ (a folder without a file *.parquet to read)",
        "not used: behaviors/000000_0 (the name does not end in .parquet)",
    ]
