"""What `data check` says of tables with several rows per id, told apart by `updated_at`."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm.data import as_known, checks, declared, schema, unread
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet

START = datetime.datetime(2024, 3, 4)
FEATURES = FeatureSet((*DEFAULT_FEATURES, Feature("income", "user", "number")))


def at(second):
    return START + datetime.timedelta(seconds=second)


def data(items=(), users=()):
    """Impressions of item 1 at seconds 0, 7.5, ...; versions by (id, time)."""
    shown = [{"user_id": 1, "item_id": 1, "timestamp": at(7.5 * n), "label": n % 2} for n in range(20)]
    rows = {"items": [{"item_id": item, "title": "t", "updated_at": time} for item, time in items]}
    rows["users"] = [{"user_id": user, "income": 1.0, "updated_at": time} for user, time in users or [(1, None)]]
    return {"impressions": shown} | rows


def check(tables, rows):
    return checks.check(tables(**rows), feature_set=FEATURES)


def notes(report):
    return tuple(note for note in report.notes if not note.startswith("impressions.timestamp is known to"))


def test_versions_are_no_fault_and_the_column_is_used(tables):
    folder = tables(**data([(1, at(-9)), (1, at(20)), (2, at(-9))], [(1, at(-1)), (1, at(30))]))
    report = checks.check(folder, feature_set=FEATURES)
    assert report.ok and notes(report) == () and report.unread == ()
    assert not unread.of_table(folder, "items", declared.tables(FEATURES))
    for text in ("items", "users"):
        assert "updated_at" in schema.schema_text({text: declared.tables(FEATURES)[text]})


@pytest.mark.parametrize("table, key", [("items", "item_id"), ("users", "user_id")])
@pytest.mark.parametrize("time", [at(-9), None])
def test_two_rows_of_one_id_and_instant_are_a_fault_that_stops(tables, table, key, time):
    versions = [(1, at(-30)), (1, time), (2, time), (1, time)]
    rows = data(**({"items": [(1, None)]} | {table: versions}))
    (fault,) = check(tables, rows).faults
    assert (fault.table, fault.column, fault.rule, fault.count, fault.rows, fault.values) == (
        table, key, "must have one row per instant of `updated_at`", 1, (3,), ("1",)
    )  # fmt: skip
    assert checks.CheckReport({table: 10**6}, (fault,)).stopping(0.5) == (fault,)


def test_one_instant_told_in_two_zones_is_one(tables):
    folder = tables(**data([(2, at(0))]))
    (folder / "items").mkdir()
    (folder / "items.parquet").rename(folder / "items" / "0.parquet")
    for number, (zone, hours) in enumerate((("UTC", 0), ("+05:30", 0), ("UTC", 1)), start=1):
        times = pa.array([at(3600 * hours)], pa.timestamp("us")).cast(pa.timestamp("us", zone))
        pq.write_table(pa.table({"item_id": [1], "title": ["t"], "updated_at": times}),
                       folder / "items" / f"{number}.parquet")  # fmt: skip
    (fault,) = checks.check(folder).faults
    assert (fault.rule, fault.rows) == (as_known.ONE_PER_TIME, (2,))


def test_a_time_that_is_none_is_a_fault_of_its_row(tables):
    rows = data([(1, None)])
    seconds = pa.array([1_709_510_400, 1_709_510_400_000_000, 1_709_510_400_000_000], pa.timestamp("s"))
    rows["items"] = pa.table({"item_id": [1, 1, 1], "title": ["t"] * 3, "updated_at": seconds})
    (fault,) = check(tables, rows).faults
    assert (fault.column, fault.rows) == ("updated_at", (1, 2)) and fault.rule.startswith("must lie in the years")


def test_an_item_whose_only_version_is_a_fault_is_no_item(tables):
    rows = data([(1, None)])
    rows["items"] = pa.table({
        "item_id": [1, 2], "title": ["t"] * 2, "updated_at": pa.array([2**55, 5], pa.timestamp("s"))
    })  # fmt: skip
    found = {(fault.table, fault.column): fault.count for fault in check(tables, rows).faults}
    assert found == {("items", "updated_at"): 1, ("impressions", "item_id"): 20}


def test_integers_are_refused_with_the_way_out(tables):
    rows = data()
    rows["items"] = pa.table({"item_id": [1], "title": ["t"], "updated_at": [1_709_510_400]})
    (fault,) = check(tables, rows).faults
    assert (fault.table, fault.column) == ("items", "updated_at") and "is no timestamp type. Write" in fault.values[0]


def test_what_is_missing_by_time_and_known_from_the_beginning_is_noted(tables):
    rows = data([(1, at(20)), (1, at(60)), (2, None)], [(1, at(5))])
    assert notes(check(tables, rows)) == (
        "items.updated_at is null: such rows count as known from the beginning (1 of 3 rows, first rows 2).",
        "impressions are not later than any `updated_at` of their items, so features of these are missing there: are "
        "the rows of before gone, or is it no time of change? (3 of 20 rows, first rows 0, 1, 2).",
        "impressions are not later than any `updated_at` of their users, so features of these are missing there: are "
        "the rows of before gone, or is it no time of change? (1 of 20 rows, first rows 0).",
    )


def test_days_and_odd_years_of_versions_are_noted(tables):
    rows = data()
    days = [datetime.date(1970, 1, 1), datetime.date(2024, 3, 1), datetime.date(2024, 3, 2)]
    rows["items"] = pa.table({"item_id": [1, 1, 2], "title": ["t"] * 3, "updated_at": days})
    coarse, odd = notes(check(tables, rows))
    assert coarse.startswith("items.updated_at is known to the day: a row counts from the next midnight. Days are")
    assert odd.startswith("items.updated_at lies before 1995:")
