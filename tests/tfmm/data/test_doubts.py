"""What `data check` notes of times that can hardly be meant."""

import datetime

import numpy as np
import pyarrow as pa
import pytest

from tfmm.data import checks, doubts, rules

START = datetime.datetime(2024, 3, 4)
NEXT_YEAR = datetime.datetime.now() + datetime.timedelta(days=365)


def shown(second=0.0, **changes):
    time = START + datetime.timedelta(seconds=second)
    return {"user_id": 1, "item_id": 1, "timestamp": time, "label": int(second) % 2} | changes


def data(impressions=(), **item):
    rows = [shown(7.5 * n, user_id=n + 1) for n in range(20)]
    return {"items": [{"item_id": 1, "title": "t"} | item], "impressions": [*rows, *impressions]}


def notes(tables, rows):
    return [note for note in checks.check(tables(**rows)).notes if "known to" not in note]


def test_sound_times_are_not_doubted(tables):
    sound = data([shown(180, split=None)], created_at=START - datetime.timedelta(days=1))
    assert notes(tables, sound) == []


def test_times_of_1970_and_of_the_future_are_noted_with_their_rows(tables):
    odd = [shown(timestamp=datetime.datetime(1970, 1, 1, 0, 0, 1)), shown(timestamp=datetime.datetime(2124, 3, 4))]
    assert notes(tables, data(odd)) == [
        "impressions.timestamp lies before 1995: is 0 written for a time that is missing, or another unit? (1 of 22 "
        "rows, first rows 20).",
        "impressions.timestamp lies in the future: is another unit, or a date for `never`, written? (1 of 22 rows, "
        "first rows 21).",
    ]
    (fault,) = checks.check(tables(**data(odd))).faults  # which it is, of what is shown
    assert (fault.column, fault.rule, fault.rows) == ("timestamp", rules.IN_FUTURE, (21,))


def test_end_of_days_as_created_at_is_read_and_noted(tables):
    rows = data(created_at=datetime.datetime(9999, 12, 31))
    report = checks.check(tables(**rows))
    assert report.ok
    text = "items.created_at lies in the future: is another unit, or a date for `never`, written? (1 of 1 rows, "
    assert text + "first rows 0)." in report.notes


def test_time_that_is_a_fault_is_not_doubted_too(tables):
    rows = data()
    rows["items"] = pa.table({
        "item_id": [1], "title": ["t"], "created_at": pa.array([1_709_510_400_000_000], pa.timestamp("s"))
    })  # fmt: skip
    report = checks.check(tables(**rows))
    assert [(fault.table, fault.column, fault.rows) for fault in report.faults] == [("items", "created_at", (0,))]
    assert not any("future" in note for note in report.notes)


def test_doubled_impressions_are_counted(tables):
    rows = data()
    rows["impressions"] += rows["impressions"][3:6]
    assert notes(tables, rows) == [
        "impressions repeat user, item and time of an earlier row: were they logged twice? Each counts. (3 of 23 rows, "
        "first rows 20, 21, 22)."
    ]


def test_one_item_shown_twice_on_one_day_is_no_doubled_impression(tables):
    rows = data()
    for row in rows["impressions"]:
        row["timestamp"], row["user_id"] = START.date(), 1
    rows["impressions"][0]["timestamp"] -= datetime.timedelta(days=1)
    assert notes(tables, rows) == []


def test_impressions_before_the_item_was_there_are_counted(tables):
    rows = data(created_at=START + datetime.timedelta(seconds=20))
    assert notes(tables, rows) == [
        "impressions are earlier than `created_at` of their items: is it when these were last changed? (3 of 20 rows, "
        "first rows 0, 1, 2)."
    ]


@pytest.mark.parametrize(("splits", "late"), [("te" * 10, 9), ("t" * 16 + "e" * 4, 0)])
def test_split_that_is_no_cut_in_time_is_noted(tables, splits, late):
    rows = data()
    for place, (row, letter) in enumerate(zip(rows["impressions"], splits)):
        row["split"], row["label"] = {"t": "train", "e": "eval"}[letter], place // 2 % 2
    found = notes(tables, rows)
    assert len(found) == bool(late)
    if late:
        assert found[0].startswith(
            f"impressions.split is no cut in time: {late} of 10 train rows are not earlier than the first eval row "
            "(2024-03-04T00:00:07.500000)."
        )


def test_next_year_is_in_the_future_whatever_the_type(tables):
    rows = data()
    rows["items"] = pa.table({"item_id": [1], "title": ["t"], "created_at": [NEXT_YEAR.date()]})
    assert any(note.startswith("items.created_at lies in the future") for note in notes(tables, rows))


def test_vectors_of_one_fixed_length_are_read(tables):
    rows = data()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(1, 7), pa.float64()), 2)
    rows["items"] = pa.table({"item_id": [1, 2, 3], "vector": vectors})
    assert checks.check(tables(**rows)).ok


def test_type_that_was_received_is_told_whole(tables):
    rows = data()
    rows["items"] = pa.table({"item_id": [1], "vector": [{"values": [1.0], "the_name_of_a_model_that_made_them": 2}]})
    told = [fault.values for fault in checks.check(tables(**rows)).faults if fault.column == "vector"]
    assert "the_name_of_a_model_that_made_them: int64" in told[0][0] and "items.parquet" in told[0][0]


def test_column_that_stands_twice_in_a_file_is_named(tables):
    rows = data()
    rows["items"] = pa.table([[1], ["t"], ["u"]], names=["item_id", "title", "title"])
    (fault, *_) = checks.check(tables(**rows)).faults
    assert "must have each column once. Received more than once: title. Rename or drop one" in fault.rule


def test_type_that_arrow_cannot_cast_at_all_is_a_fault(tables):
    rows = data()
    rows["items"] = pa.table({"item_id": [1], "vector": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))})
    assert ("items", "vector", "must be list of float32") in [
        (fault.table, fault.column, fault.rule) for fault in checks.check(tables(**rows)).faults
    ]


def test_catalog_of_null_ids_is_told_as_such(tables):
    rows = data()
    rows["items"] = pa.table({"item_id": pa.nulls(2), "title": ["t", "u"]})
    found = [(fault.column, fault.rule, fault.count) for fault in checks.check(tables(**rows)).faults]
    assert ("item_id", "must not be null", 2) in found


def acted(minute, user_id):
    time = START + datetime.timedelta(minutes=minute, seconds=0.5)
    return {"user_id": user_id, "item_id": 1, "timestamp": time, "action": "click"}


def test_histories_that_are_empty_for_most_impressions_are_noted(tables):
    text = (
        "impressions have no behavior of their user before them, so their histories are empty; of {} the user has none "
        "at all. Do both tables have the same `user_id`, and do behaviors begin before impressions? ({} of 20 rows, "
        "first rows {})."
    )
    others = {**data(), "behaviors": [acted(-60 - n, 1000 + n) for n in range(9)]}
    assert notes(tables, others) == [text.format(20, 20, "0, 1, 2, 3, 4")]
    late = {**data(), "behaviors": [acted(60 + n, n + 1) for n in range(20)]}
    assert notes(tables, late) == [text.format(0, 20, "0, 1, 2, 3, 4")]
    most = {**data(), "behaviors": [acted(-60 - n, n + 1) for n in range(9)]}
    assert notes(tables, most) == [text.format(11, 11, "9, 10, 11, 12, 13")]
    half = {**data(), "behaviors": [acted(-60 - n, n + 1) for n in range(10)]}
    assert notes(tables, half) == []


def test_behavior_at_the_time_of_the_impression_is_no_history(tables, monkeypatch):
    monkeypatch.setattr(doubts, "_SLICE", 3)
    microsecond = datetime.timedelta(microseconds=1)
    rows = data()
    for row in rows["impressions"]:
        row["timestamp"] += microsecond  # so it is known to the microsecond
    rows["behaviors"] = [row | {"action": "click"} for row in rows["impressions"]]
    (note,) = notes(tables, rows)
    assert note.startswith("impressions have no behavior of their user before them") and "(20 of 20 rows" in note
    rows["behaviors"] += [row | {"timestamp": row["timestamp"] - 2 * microsecond} for row in rows["behaviors"]]
    assert notes(tables, rows) == []
