import datetime
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm import extras
from tfmm.config import DataConfig
from tfmm.data import checks, layout, rules, schema, unread
from tfmm.modalities import Modality, ModalitySet

PNG = tf.io.encode_png(np.zeros((4, 4, 3), np.uint8)).numpy()
DAYS = "Days are those of UTC (`data.time_zone`), where the column's type names no zone."
JPEG = tf.io.encode_jpeg(np.zeros((4, 4, 3), np.uint8)).numpy()


def good(at):
    return {
        "items": [
            {"item_id": k, "title": "t", "image": image, "vector": [1.0, 0.5], "category": 1}
            for k, image in ((1, PNG), (2, JPEG), (3, None))
        ],
        "searches": [{"search_id": 5, "user_id": 1, "timestamp": at(0), "query_text": "t", "query_image": PNG}],
        "behaviors": [
            {"user_id": 1, "item_id": 1, "timestamp": at(0), "action": "click", "search_id": 5, "trigger_item_id": 2},
            {
                "user_id": 1,
                "item_id": 1,
                "timestamp": at(0),
                "action": "cart",
                "search_id": None,
                "trigger_item_id": None,
            },
        ],
        "impressions": [{"user_id": 1, "item_id": 1, "timestamp": at(m), "label": m % 2} for m in range(20)],
    }


def faults(report):
    return {(fault.table, fault.column, fault.rule): fault for fault in report.faults}


def test_good_tables_have_no_fault(tables, at):
    report = checks.check(tables(**good(at)))
    assert report.ok and report.faults == ()
    assert report.counts == {"items": 3, "searches": 1, "behaviors": 2, "impressions": 20}


CORRUPT = PNG[:40]
CASES = [
    ("items", {"item_id": 2}, "item_id", "must be unique", 1),
    ("items", {"item_id": 0}, "item_id", "must not be 0 or empty", 1),
    ("items", {"item_id": None}, "item_id", "must not be null", 1),
    ("items", {"image": b"GIF89a"}, "image", "must be a PNG or JPEG that can be decoded", 1),
    ("items", {"image": CORRUPT}, "image", "must be a PNG or JPEG that can be decoded", 1),
    ("items", {"image": b""}, "image", "must be a PNG or JPEG that can be decoded", 1),
    ("items", {"vector": [1.0]}, "vector", "must have 2 values, as most have", 1),
    ("items", {"vector": [1.0, float("nan")]}, "vector", "must hold finite numbers only", 1),
    ("items", {"vector": [1.0, float("inf")]}, "vector", "must hold finite numbers only", 1),
    ("items", {"vector": [1.0, None]}, "vector", "must hold finite numbers only", 1),
    ("items", {"vector": [0.0, 0.0]}, "vector", "must not be all zeros", 1),
    ("searches", {"search_id": None}, "search_id", "must not be null", 1),
    ("searches", {"query_image": CORRUPT}, "query_image", "must be a PNG or JPEG that can be decoded", 1),
    ("behaviors", {"item_id": 77}, "item_id", "must be in the items table", 1),
    ("behaviors", {"trigger_item_id": 77}, "trigger_item_id", "must be in the items table", 1),
    ("behaviors", {"search_id": 77}, "search_id", "must be in the searches table", 1),
    ("behaviors", {"action": "stare"}, "action", "must be one of click, cart, favorite, purchase", 1),
    ("behaviors", {"action": None}, "action", "must not be null", 1),
    ("behaviors", {"timestamp": None}, "timestamp", "must not be null", 1),
    ("impressions", {"item_id": 77}, "item_id", "must be in the items table", 1),
    ("impressions", {"label": 2}, "label", "must be 0 or 1", 1),
    ("impressions", {"label": None}, "label", "must not be null", 1),
    ("impressions", {"user_id": 0}, "user_id", "must not be 0 or empty", 1),
    ("impressions", {"split": "test"}, "split", "must be train or eval", 1),
    ("impressions", {"split": "eval"}, "split", "must not be null where other rows have a split", 20),
]


@pytest.mark.parametrize(
    "table, change, column, rule, count", CASES, ids=[f"{c[0]}-{c[2]}-{k}" for k, c in enumerate(CASES)]
)
def test_each_fault_is_reported_with_its_place(tables, at, table, change, column, rule, count):
    data = good(at)
    bad = {**data[table][-1], **change}
    if "search_id" in change and table == "searches":
        bad["query_text"] = "another"
    data[table] = [{**dict.fromkeys(bad), **row} for row in data[table]] + [bad]
    found = faults(checks.check(tables(**data)))
    assert (table, column, rule) in found, list(found)
    fault = found[table, column, rule]
    assert fault.count == count
    if count == 1:
        assert fault.rows == (len(data[table]) - 1,)
        assert len(fault.values) == 1


def test_many_faults_are_counted_and_few_are_quoted(tables, at):
    data = good(at)
    data["impressions"] += [{**data["impressions"][0], "label": 5} for _ in range(40)]
    (fault,) = checks.check(tables(**data)).faults
    assert fault.count == 40 and fault.rows == (20, 21, 22, 23, 24) and fault.values == ("5",) * 5
    assert str(fault) == "impressions.label must be 0 or 1 (40, first rows 20, 21, 22, 23, 24)"


def test_missing_tables_and_columns_are_faults(tables, at):
    data = good(at)
    del data["impressions"]
    data["items"] = [{"title": "t"}]
    found = faults(checks.check(tables(**data)))
    assert ("impressions", "", "must be there") in found
    assert ("items", "item_id", "must be a column (int64 or string)") in found


def test_a_column_of_another_type_is_a_fault(tables, at):
    data = good(at)
    for row in data["impressions"]:
        row["timestamp"] = str(row["timestamp"])
    found = faults(checks.check(tables(**data)))
    assert list(found) == [("impressions", "timestamp", "must be timestamp[us]")]


def test_a_column_of_integers_is_answered_with_the_way_out(tables, at):
    data = good(at)
    for row in data["impressions"]:
        row["timestamp"] = 1_700_000_000
    (fault,) = checks.check(tables(**data)).faults
    assert fault.rule == "must be timestamp[us]"
    with pytest.raises(ValueError, match=r"int64 is no timestamp type. Write it as a date or a timestamp, in the unit"):
        schema.read_table(tables(**data), "impressions")


@pytest.mark.parametrize("kind", [pa.timestamp("s"), pa.timestamp("ms"), pa.timestamp("us")], ids=str)
def test_times_beyond_the_calendar_are_faults_with_their_rows(tables, at, kind):
    """Microseconds in a column that says that it holds seconds, say."""
    data = good(at)
    behaviors = pa.Table.from_pylist(data["behaviors"])
    place = behaviors.column_names.index("timestamp")
    stored = pa.array([0, 1_700_000_000_000_000_000], kind)
    data["behaviors"] = behaviors.set_column(place, "timestamp", stored)
    (fault,) = checks.check(tables(**data)).faults
    assert (fault.table, fault.column, fault.rule) == ("behaviors", "timestamp", rules.OUTSIDE_YEARS)
    assert fault.rows == (1,) and int(fault.values[0].split("-")[0]) > 50_000


def test_items_of_the_last_day_of_the_calendar_are_no_fault(tables, at):
    data = good(at)
    for row, year in zip(data["items"], (1, 2024, 9999)):
        row["created_at"] = datetime.date(year, 12, 31)
    report = checks.check(tables(**data))
    assert report.ok and report.notes[0] == "items.created_at is known to the day. " + DAYS


def test_behaviors_by_date_are_noted_and_no_fault(tables, at):
    data = good(at)
    for row in data["behaviors"]:
        row["timestamp"] = at(0).date()
    report = checks.check(tables(**data))
    assert report.ok and set(report.notes) == {
        "behaviors.timestamp is known to the day: a behavior counts from the next midnight. " + DAYS,
        "impressions.timestamp is known to the minute: an impression sees what was known when its minute began.",
        "searches.timestamp is known to the day. " + DAYS,  # one, at midnight
        "impressions have no behavior of their user before them, so their histories are empty; of 0 the user has none "
        "at all. Do both tables have the same `user_id`, and do behaviors begin before impressions? (20 of 20 rows, "
        "first rows 0, 1, 2, 3, 4).",
    }
    (note,) = (n for n in checks.check(tables(), DataConfig(time_zone="Asia/Tokyo")).notes if n.startswith("behav"))
    assert "Days are those of Asia/Tokyo" in note


def test_a_table_with_a_faulty_time_is_not_noted(tables, at):
    data = good(at)
    for row in data["behaviors"]:
        row["timestamp"] = str(row["timestamp"])
    assert not any(note.startswith("behaviors") for note in checks.check(tables(**data)).notes)


def test_ids_of_two_types_are_a_fault(tables, at):
    data = good(at)
    for row in data["impressions"]:
        row["item_id"] = str(row["item_id"])
    found = faults(checks.check(tables(**data)))
    assert any("ids of one type" in rule for _, _, rule in found)


def test_a_file_that_is_no_parquet_is_a_fault(tables, at, tmp_path):
    tables(**good(at))
    (tmp_path / "items.parquet").write_bytes(b"no parquet")
    (fault,) = checks.check(tmp_path).faults
    assert (fault.table, fault.column, fault.count) == ("items", "", 1)
    assert f"{tmp_path / 'items.parquet'} must be readable Parquet. Received: " in fault.rule


def test_a_damaged_column_is_a_fault_that_names_the_part(tables, at, tmp_path):
    folder = tables(**{**good(at), "items": [{"item_id": k, "title": f"title {k}" * 50} for k in range(1, 500)]})
    (folder / "items").mkdir()
    part = (folder / "items.parquet").rename(folder / "items" / "part-0.parquet")
    content = part.read_bytes()
    part.write_bytes(content[:4] + b"\xff" * 500 + content[504:])
    found = [fault for fault in checks.check(folder).faults if f"{part} must be readable Parquet" in fault.rule]
    assert [fault.column for fault in found] == ["item_id", "title"]


def test_a_table_that_is_there_twice_is_a_fault(tables, at, tmp_path):
    folder = tables(**good(at))
    (folder / "behaviors").mkdir()
    (folder / "behaviors" / "part-0.parquet").write_bytes((folder / "behaviors.parquet").read_bytes())
    report = checks.check(folder)
    (fault,) = report.faults
    assert (fault.table, fault.column) == ("behaviors", "")
    assert "must hold table 'behaviors' once. Received: behaviors.parquet and behaviors/" in fault.rule
    assert report.stopping(1.0) == (fault,)


def test_a_folder_that_contradicts_its_files_is_a_fault(tables, at):
    folder = tables(**good(at))
    (folder / "behaviors" / "action=purchase").mkdir(parents=True)
    (folder / "behaviors.parquet").rename(folder / "behaviors" / "action=purchase" / "part-0.parquet")
    (fault,) = checks.check(folder).faults
    assert (fault.table, fault.column) == ("behaviors", "action")
    assert "action=purchase/part-0.parquet must hold in column 'action' what its folder's name says" in fault.rule


def test_rows_are_numbered_over_parts_at_all_depths(tables, at):
    folder = tables(**good(at))
    whole = pq.read_table(folder / "impressions.parquet")
    (folder / "impressions.parquet").unlink()
    bad = whole.set_column(whole.column_names.index("label"), "label", pa.array([7] + [1] * 19))
    for name, rows in (("a/b/part-0", whole), ("dt=1/part-0", bad), ("part-9", whole)):
        (folder / "impressions" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, folder / "impressions" / f"{name}.parquet", row_group_size=7)
    report = checks.check(folder)
    assert report.counts["impressions"] == 60
    (fault,) = report.faults
    assert (fault.column, fault.rows, fault.values) == ("label", (20,), ("7",))


def test_a_required_column_that_one_part_lacks_is_named_with_the_part(tables, at):
    folder = tables(**good(at))
    (folder / "impressions").mkdir()
    (folder / "impressions.parquet").rename(folder / "impressions" / "part-0.parquet")
    pq.write_table(pa.table({"user_id": [1]}), folder / "impressions" / "part-1.parquet")
    found = faults(checks.check(folder))
    fault = found["impressions", "label", "must be a column (int64)"]
    assert (fault.count, fault.values) == (1, ("impressions/part-1.parquet with user_id",))


def test_what_is_not_read_is_reported_and_is_no_fault(tables, at):
    data = good(at)
    data["items"] = [{**row, "brand": "b"} for row in data["items"]]
    report = checks.check(tables(**data, users=[{"user_id": 1}]))
    assert report.ok
    assert report.unread == (
        layout.Unread("users.parquet", layout.NOT_A_TABLE),
        layout.Unread("items.brand", unread.NOT_A_COLUMN),
    )


@pytest.mark.parametrize(
    "split, label, rule",
    [
        ("train", None, "must leave rows in the eval split"),
        ("eval", None, "must leave rows in the train split"),
        (None, 0, "must be both 0 and 1 in the eval split"),
    ],
)
def test_a_split_that_cannot_be_learned_or_judged_is_a_fault(tables, at, split, label, rule):
    data = good(at)
    for row in data["impressions"][15:] if label is not None else data["impressions"]:
        row.update({} if split is None else {"split": split}, **({} if label is None else {"label": label}))
    assert rule in {key[2] for key in faults(checks.check(tables(**data)))}


def test_a_fingerprint_collision_is_told_from_a_duplicate(tables, at, monkeypatch):
    data = good(at)
    data["items"] = [{"item_id": name, "title": "t"} for name in ("a", "b", "a")]
    for name in ("behaviors", "searches"):
        del data[name]
    for row in data["impressions"]:
        row["item_id"] = "a"
    monkeypatch.setattr(schema, "fingerprint", lambda values: np.array([9 if v else 0 for v in values]))
    found = faults(checks.check(tables(**data)))
    assert ("items", "item_id", "must not share its 64-bit fingerprint with another id") in found


def test_rows_are_numbered_over_all_parts(tables, at, tmp_path):
    folder = tables(**good(at))
    part = tmp_path / "behaviors"
    part.mkdir()
    (tmp_path / "behaviors.parquet").rename(part / "part-0.parquet")
    pa.parquet.write_table(
        pa.table({"user_id": [1], "item_id": [88], "timestamp": [at(0)], "action": ["click"]}), part / "part-1.parquet"
    )
    (fault,) = checks.check(folder).faults
    assert fault.rows == (2,) and fault.values == ("88",)


def test_without_pandera_the_line_that_installs_it_is_shown(tables, at, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandera", None)
    with pytest.raises(extras.MissingExtraError, match=r'pip install "tfmm\[pipeline\]"'):
        checks.check(tables(**good(at)))


def test_the_report_turns_to_plain_data(tables, at):
    data = good(at)
    data["impressions"][0]["label"] = 3
    plain = checks.dataclasses.asdict(checks.check(tables(**data)))
    assert plain["faults"][0]["rows"] == (0,) and plain["counts"]["items"] == 3


def test_few_bad_rows_do_not_stop_a_run_and_many_do(tables, at):
    data = good(at)
    data["impressions"] += [{**data["impressions"][0], "label": 5}]
    report = checks.check(tables(**data))
    assert report.stopping(0.05) == ()
    assert [fault.column for fault in report.stopping(0.04)] == ["label"]


def test_histories_of_delisted_items_do_not_stop_a_run(tables, at):
    data = good(at)
    for act in data["behaviors"]:
        act |= {"item_id": 77, "trigger_item_id": 78}
    report = checks.check(tables(**data))
    assert {fault.column: fault.count for fault in report.faults} == {"item_id": 2, "trigger_item_id": 2}
    assert report.stopping(0.0) == ()
    for row in data["impressions"]:
        row["item_id"] = 77
    (fault,) = checks.check(tables(**data)).stopping(0.01)
    assert (fault.table, fault.column, fault.count) == ("impressions", "item_id", 20)


def test_a_search_id_of_another_type_is_told_as_such(tables, at):
    data = good(at)
    data["behaviors"][0]["search_id"] = "5"
    report = checks.check(tables(**data))
    assert any("`search_id` must have one type in all tables" in fault.rule for fault in report.stopping(1.0))


@pytest.mark.parametrize("change", [{"items": None}, {"items": "twice"}])
def test_faults_of_tables_and_ids_stop_a_run_however_few(tables, at, change):
    data = good(at)
    if change["items"] is None:
        del data["items"]
    else:
        data["items"] *= 2
    assert checks.check(tables(**data)).stopping(1.0)


def test_what_declared_modalities_lack_is_told_at_once(tables, at):
    data = good(at)
    vectors = [[0.5, 1.0], [1.0, 0.0, 2.0], [0.0, 0.0]]
    for row, vector in zip(data["items"], vectors, strict=False):
        row |= {"clip": vector, "empty": None, "broken": b"no picture", "wide": [1.0] * 1041}
    folder = tables(**data)
    declared = ModalitySet(
        (
            Modality("clip", "vector"),
            Modality("absent", "vector"),
            Modality("empty", "image"),
            Modality("broken", "image"),
            Modality("wide", "vector"),
            Modality("words", "vector", column="title"),
            Modality("kind", "team:Kind", column="category"),
            Modality("sound", "team:Sound", column="title", query_column="query_sound"),
        )
    )
    said = [str(fault) for fault in checks.check(folder, modality_set=declared).faults]
    for start in (
        "declaration modality 'absent': column items.absent must be there. Received the columns item_id",
        "declaration modality 'empty': items.empty must hold something in at least one row",
        "items.broken must be a PNG or JPEG that can be decoded",
        "declaration modality 'wide': items.wide must have 1 to 1040 values, not 1041 as most have",
        "declaration modality 'words': Column 'title' of table 'items' must be list of float32",
        "declaration modality 'kind': items.category is id, so no content of team:Kind",
        "declaration modality 'sound': column searches.query_sound must be there",
    ):
        assert any(text.startswith(start) for text in said), start
    assert not any(text.startswith("declaration modality 'clip'") for text in said)
