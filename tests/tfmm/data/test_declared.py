"""Tests of declared features in the data: names, times, what is missing, what the data must be like."""

import datetime
import zoneinfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import preprocessing
from tfmm.config import DataConfig
from tfmm.data import checks, declared, join, shards
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Label, Sequence

BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")
START = datetime.datetime(2024, 6, 5, 12)
ROWS = 12


@pytest.fixture
def folder(tmp_path):
    """Returns a function that writes a shop of 12 impressions with more columns by table, and returns its folder."""

    def write(with_behaviors=True, **more):
        users, items = [1 + i % 3 for i in range(ROWS)], [1 + i % 4 for i in range(ROWS)]
        times = [START + datetime.timedelta(minutes=i) for i in range(ROWS)]
        rows = {
            "items": {"item_id": [1, 2, 3, 4], "title": ["a", "b", "c", "d"], "category": [1, 2, 1, 2]},
            "impressions": {"user_id": users, "item_id": items, "timestamp": times,
                            "label": [i % 2 for i in range(ROWS)]},
            "users": {"user_id": [1, 2, 3]},
        }  # fmt: skip
        if with_behaviors:
            at = [START - datetime.timedelta(days=1, minutes=i) for i in range(6)]
            rows["behaviors"] = {"user_id": [1, 2, 3] * 2, "item_id": [1, 2, 3, 4, 1, 2], "timestamp": at,
                                 "action": ["click", "cart"] * 3}  # fmt: skip
        (tmp_path / "data").mkdir()
        for name, columns in rows.items():
            pq.write_table(pa.table(columns | more.get(name, {})), tmp_path / "data" / f"{name}.parquet")
        return tmp_path / "data"

    return write


def declare(*features, riding=()):
    sequence = Sequence("acts", features=("item_id", *riding))
    return FeatureSet((*DEFAULT_FEATURES, *features), (sequence,)).resolved(4, 1)


def built(data, feature_set, output_dir, **config):
    """Returns the examples of both splits, by time, and how many rows were left out."""
    counts = join.write_examples(data, DataConfig(4, max_bad_fraction=1.0, **config), feature_set, output_dir)
    parts = [shards.read_columns(str(output_dir / f"{split}-*")) for split in ("train", "eval")]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in preprocessing.raw_spec(feature_set)}
    order = np.argsort(columns["timestamp"], kind="stable")
    return {name: values[order] for name, values in columns.items()}, counts["dead_letter"]


def us(time):
    """Returns the microseconds of a time with a zone."""
    return int(time.timestamp()) * 1_000_000


@pytest.mark.parametrize("name", ["row", "latest", "is_eval", "action", "order_line"])
def test_features_have_any_name_that_the_join_may_use_itself(folder, tmp_path, name):
    features = declare(Feature(name, "context", "number"), Feature(f"own_{name}", "behavior", "number",
                       source=f"behaviors.dwell_{name}"), riding=[f"own_{name}"])  # fmt: skip
    shown, dwell = np.arange(ROWS) * 10.0 + 5, [100.0 + i for i in range(6)]
    data = folder(impressions={name: shown}, behaviors={f"dwell_{name}": dwell})
    found, dead_letters = built(data, features, tmp_path / "out")
    assert found[name].tolist() == shown.tolist() and dead_letters == 0
    assert found[f"acts_own_{name}"][0].tolist()[:2] == [103.0, 100.0]  # of user 1, oldest first


@pytest.mark.parametrize("name", ["row", "latest", "is_eval", "action", "order_line"])
def test_so_have_those_of_behaviors(folder, tmp_path, name):
    features = declare(Feature(name, "behavior", "number", source="behaviors.dwell"), riding=[name])
    found, _ = built(folder(behaviors={"dwell": [100.0 + i for i in range(6)]}), features, tmp_path / "out")
    assert found[f"acts_{name}"][0].tolist()[:2] == [103.0, 100.0]
    assert found["acts_item_id"][0].tolist() == [4, 1, 0, 0]


NAIVE = datetime.datetime(2024, 3, 31, 23, 30)  # summer time began that morning
TIMES = {
    "timestamp": (pa.array([NAIVE], pa.timestamp("us")), us(NAIVE.replace(tzinfo=BERLIN))),
    "seconds": (pa.array([NAIVE], pa.timestamp("s")), us(NAIVE.replace(tzinfo=BERLIN))),
    "with a zone": (
        pa.array([NAIVE], pa.timestamp("us", "America/New_York")),
        us(NAIVE.replace(tzinfo=datetime.timezone.utc)),
    ),
    "date": (
        pa.array([NAIVE.date()], pa.date32()),
        us(datetime.datetime(2024, 3, 31, tzinfo=BERLIN)),
    ),
    "null": (pa.array([None], pa.timestamp("us")), 0),
    "no type": (pa.nulls(1), 0),
    "beyond the calendar": (pa.array([2**62], pa.timestamp("us")), 0),
}


@pytest.mark.parametrize("kind", TIMES)
def test_times_without_a_zone_are_read_on_the_clocks_of_the_run(folder, tmp_path, kind):
    """Of every table, as the join reads its own times."""
    stored, instant = TIMES[kind]

    def column(rows):
        return {"at": stored.take(pa.array([0] * rows))}

    data = folder(items=column(4), users=column(3), impressions=column(ROWS), behaviors=column(6))
    if kind == "beyond the calendar":  # elsewhere it is a fault of the row
        data = folder_without(data, "impressions", "behaviors", "users")
        features = [Feature("of_items", "item", "time", source="items.at")]
    else:
        places = (("items", "item"), ("users", "user"), ("impressions", "context"), ("behaviors", "behavior"))
        features = [Feature(f"of_{table}", role, "time", source=f"{table}.at") for table, role in places]
    riding = [feature.name for feature in features if feature.role in ("item", "behavior")]
    found, _ = built(data, declare(*features, riding=riding), tmp_path / "out", time_zone="Europe/Berlin")
    for feature in features:
        if feature.role != "behavior":
            assert set(found[feature.name].tolist()) == {instant}, feature.name
    for name in riding:
        assert set(found[f"acts_{name}"].ravel().tolist()) == {instant, 0}, name


def folder_without(data, *names):
    """Returns a data folder whose tables of these names have lost their column `at`."""
    for name in names:
        table = pq.read_table(data / f"{name}.parquet").drop(["at"])
        pq.write_table(table, data / f"{name}.parquet")
    return data


@pytest.mark.parametrize("dates", [False, True], ids=["times", "dates"])
def test_the_hour_of_an_impression_is_that_of_its_time(folder, tmp_path, dates):
    features = declare(Feature("hour", "context", "time", source="impressions.timestamp"))
    more = {"impressions": {"timestamp": pa.array([START.date()] * ROWS)}} if dates else {}
    data = folder(**more)
    if dates:
        table = pq.read_table(data / "impressions.parquet")
        split = pa.array(["train"] * 6 + ["eval"] * 6)
        pq.write_table(table.append_column("split", split), data / "impressions.parquet")
    found, _ = built(data, features, tmp_path / "out", time_zone="America/Sao_Paulo")
    np.testing.assert_array_equal(found["hour"], found["timestamp"])
    assert found["hour"][0] == us(datetime.datetime(2024, 6, 5, 3 if dates else 15, tzinfo=datetime.timezone.utc))


@pytest.mark.parametrize("ids", [[0, 5], ["", "x"]], ids=["int64", "string"])
def test_an_id_of_zero_or_nothing_is_missing_and_the_row_stays(folder, tmp_path, ids):
    """Of declared features; ids that name a row or refer to one are refused."""

    def column(name, rows):
        return {name: [ids[i % 2] for i in range(rows)]}

    features = declare(
        Feature("page", "context"), Feature("city", "user"), Feature("brand", "item"), Feature("shelf", "behavior"),
        riding=["shelf"],
    )  # fmt: skip
    data = folder(impressions=column("page", ROWS), users=column("city", 3), items=column("brand", 4),
                  behaviors=column("shelf", 6))  # fmt: skip
    found, dead_letters = built(data, features, tmp_path / "out")
    assert dead_letters == 0 and len(found["page"]) == ROWS
    assert (found["page"] == 0).tolist() == [True, False] * (ROWS // 2)
    assert (found["city"] == 0).tolist() == [user != 2 for user in found["user_id"].tolist()]
    assert (found["brand"] == 0).tolist() == [item % 2 == 1 for item in found["item_id"].tolist()]
    assert (found["acts_shelf"][0] != 0).tolist() == [True, False, False, False]
    report = checks.check(data, DataConfig(max_behaviors=4), features)
    assert report.ok, report.faults
    notes = {'impressions.page is 0 or "" in 6 rows, which stands for missing.',
             'users.city is 0 or "" in 2 rows, which stands for missing.'}  # fmt: skip
    assert notes <= set(report.notes)


def test_a_number_that_is_not_finite_is_missing(folder, tmp_path):
    features = declare(Feature("price", "item", "number"), Feature("load", "context", "number"), riding=["price"])
    loads = [float("inf"), float("-inf"), float("nan"), -1e31, 1e300, 2.0] * 2
    data = folder(items={"price": [1.0, float("inf"), 3.0, None]}, impressions={"load": loads})
    found, _ = built(data, features, tmp_path / "out")
    np.testing.assert_array_equal(found["load"], [*[np.nan] * 5, 2.0] * 2)
    np.testing.assert_array_equal(np.isfinite(found["price"]), np.isin(found["item_id"], [1, 3]))
    np.testing.assert_array_equal(np.isfinite(found["acts_price"]), np.isin(found["acts_item_id"], [1, 3]))


@pytest.mark.parametrize(("values", "served", "kind"), [([1, 2], "home", "int64"), (["a", "b"], 7, "string")])
def test_serving_value_of_another_type_than_the_data_is_refused(folder, values, served, kind):
    """It would be an id that nobody has."""
    data = folder(impressions={"page": [values[i % 2] for i in range(ROWS)]})
    (fault,) = declared.faults(data, declare(Feature("page", "context", serving_value=served)))
    assert fault == (
        f"feature 'page': `serving_value` must be of type {kind}, not {served!r}, as impressions.page is"
    )
    for fine in (values[0], 0, ""):
        assert not declared.faults(data, declare(Feature("page", "context", serving_value=fine)))


def test_ids_of_one_vocabulary_have_one_type_and_it_is_said_with_all_else(folder):
    data = folder(users={"liked": ["a", "b", "c"]}, items={"brand": [1, 2, 3, 4]})
    features = declare(Feature("brand", "item"), Feature("liked", "user", vocabulary="brand"), Feature("city", "user"))
    first, second = declared.faults(data, features)
    assert first.startswith("feature 'city': column users.city must be there")
    assert second.startswith("Features of vocabulary 'brand' must have ids of one type. Received: int64 and string")


def test_ids_of_one_column_have_one_type_in_all_files(folder):
    data = folder(items={"brand": [1, 2, 3, 4]})
    table = pq.read_table(data / "items.parquet")
    (data / "items.parquet").unlink()
    (data / "items").mkdir()
    texts = table.column("brand").cast(pa.string())
    pq.write_table(table.slice(0, 2), data / "items" / "a.parquet")
    pq.write_table(table.set_column(3, "brand", texts).slice(2), data / "items" / "b.parquet")
    (fault,) = declared.faults(data, declare(Feature("brand", "item")))
    assert fault == "feature 'brand': items.brand must have ids of one type in all files. Received: int64 and string"


def test_the_type_of_an_id_is_that_of_its_own_source(folder):
    data = folder(impressions={"aisle": ["x"] * ROWS})
    category = Feature("category", "item", source="impressions.aisle")
    assert declared.id_types(data, FeatureSet((*DEFAULT_FEATURES[:2], category), ()))["category"] == "string"


def test_whole_numbers_beyond_those_of_floats_are_read(folder, tmp_path):
    features = declare(Feature("size", "context", "number"))
    found, _ = built(folder(impressions={"size": [2**63 - 1, -(2**63), 2**53 + 1, 7] * 3}), features, tmp_path / "out")
    np.testing.assert_array_equal(found["size"], np.array([2.0**63, -(2.0**63), 2.0**53, 7] * 3, np.float32))


def test_one_column_of_two_kinds_is_refused_with_the_way_out(folder):
    data = folder(items={"price": [1.0, 2.0, 3.0, 4.0]})
    features = declare(Feature("price", "item", "number"), Feature("cost", "item", source="items.price"))
    (fault,) = declared.faults(data, features)
    assert fault.startswith("feature 'cost': items.price is read as number, by another feature")
    assert fault.endswith("Declare another `kind`, or copy the column under another name")


@pytest.mark.parametrize("actions", [None, [1, 2, 3, 4, 5, 6]], ids=["no column", "numbers"])
def test_an_action_that_cannot_be_read_hides_no_other_fault(folder, actions):
    data = folder()
    table = pq.read_table(data / "behaviors.parquet").drop(["action"])
    if actions:
        table = table.append_column("action", pa.array(actions, pa.int64()).cast(pa.timestamp("us")))
    pq.write_table(table, data / "behaviors.parquet")
    clicks = (Sequence("clicks", ("click",)),)
    features = FeatureSet((*DEFAULT_FEATURES, Feature("city", "user")), clicks).resolved(4, 1)
    report = checks.check(data, DataConfig(max_behaviors=4), features)
    found = {(fault.table, fault.column) for fault in report.faults}
    assert {("behaviors", "action"), ("declaration", "")} <= found


def test_an_action_that_nobody_did_is_said_of_each_sequence(folder):
    sequences = (Sequence("buys", ("purchase",)), Sequence("all_buys", ("purchase", "click")))
    said = declared.faults(folder(), FeatureSet(DEFAULT_FEATURES, sequences).resolved(4, 1))
    assert [fault.split(":")[0] for fault in said] == ["sequence 'buys'", "sequence 'all_buys'"]
    assert all(fault.endswith("Leave it out of `actions`, or the sequence out") for fault in said)


def test_a_label_that_cannot_be_read_hides_no_other_fault(folder):
    data = folder(impressions={"label": ["yes", "no"] * 6, "rate": [0.5] * 12})
    label = Label(negative_rate_column="rate")
    features = FeatureSet((*DEFAULT_FEATURES, Feature("city", "user")), label=label).resolved(4, 1)
    found = {(fault.table, fault.column) for fault in checks.check(data, DataConfig(max_behaviors=4), features).faults}
    assert {("impressions", "label"), ("declaration", "")} <= found
