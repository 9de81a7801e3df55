import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import config as config_lib
from tfmm import presets
from tfmm.config import GateConfig
from tfmm.data import declared as declared_lib
from tfmm.data import join
from tfmm.evaluate import slices, wording
from tfmm.features import Feature, FeatureSet
from tfmm.training.examples import example_files, read_columns

HOUR_US = 3_600_000_000
START = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def declared():
    features = (
        *presets.small().features,
        Feature("city", "context"),
        Feature("paid", "context", "number"),
        Feature("member", "context", "boolean"),
    )
    return dataclasses.replace(presets.small(), features=features, gate=GateConfig(slices=("city", "paid", "member")))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """400 impressions of 20 users; item 1 entered with the first of them, 2 long before, 3 never told."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    count = 400
    rows = {
        "user_id": rng.integers(1, 21, count),
        "item_id": rng.integers(1, 4, count),
        "timestamp": pa.array(START + np.arange(count) * HOUR_US // 10, pa.timestamp("us")),
        "label": rng.integers(0, 2, count),
        "city": [None if n % 10 == 0 else ["Lyon", "Oslo"][n % 2] for n in range(count)],
        "paid": [None if n % 7 == 0 else float(n % 4) for n in range(count)],
        "member": [None if n % 9 == 0 else n % 2 == 0 for n in range(count)],
    }
    pq.write_table(pa.table(rows), folder / "impressions.parquet")
    created = pa.array([START + 12 * HOUR_US, START - 90 * 24 * HOUR_US, None], pa.timestamp("us"))
    items = {"item_id": [1, 2, 3], "category": ["a", "b", "c"], "created_at": created}
    pq.write_table(pa.table(items), folder / "items.parquet")
    return folder


@pytest.fixture(scope="module")
def files(data, declared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    join.write_examples(data, declared.data, declared.feature_set, folder, lambda line: None)
    return example_files(f"{folder}/eval-*")


@pytest.fixture(scope="module")
def found(files, declared, data):
    return slices.masks(files, declared.feature_set, slices.Sliced(declared.gate.slices, data))


def test_the_slices_of_a_thing_divide_the_rows(found, files, declared):
    rows = len(read_columns(files, declared.feature_set, ("item_id",))["item_id"])
    assert set(found) == {slices.AGE, slices.HISTORY, "city", "paid", "member"}
    for name, parts in found.items():
        assert (np.sum(list(parts.values()), axis=0) == np.ones(rows)).all(), name


@pytest.mark.parametrize(
    ("created_at", "zone", "expected"),
    [
        (pa.array([START], pa.timestamp("us")), "Asia/Tokyo", START - 9 * HOUR_US),
        (pa.array([START], pa.timestamp("us", "UTC")), "Asia/Tokyo", START),
        (pa.array([19_675], pa.date32()), "Asia/Tokyo", 19_675 * 24 * HOUR_US - 9 * HOUR_US),
        (pa.array([START], pa.timestamp("us")), "UTC", START),
    ],
)
def test_births_are_read_on_the_clocks_of_the_zone(tmp_path, created_at, zone, expected):
    pq.write_table(pa.table({"item_id": [1], "title": ["a"], "created_at": created_at}), tmp_path / "items.parquet")
    born = slices.births(tmp_path, declared_lib.tables(FeatureSet()), zone)
    assert (born.ids.tolist(), born.created_us.tolist()) == ([1], [expected])


def test_ages_are_those_of_the_catalog_at_the_impression(found, files, declared):
    columns = read_columns(files, declared.feature_set, ("item_id", "timestamp"))
    entered = {1: START + 12 * HOUR_US, 2: START - 90 * 24 * HOUR_US}
    for part, wanted in (("< 24 h", lambda age: age < 24 * HOUR_US), (">= 24 h", lambda age: age >= 24 * HOUR_US)):
        by_hand = [item in entered and bool(wanted(at - entered[item])) for item, at in zip(*columns.values())]
        if part in found[slices.AGE]:
            assert found[slices.AGE][part].tolist() == by_hand
        else:
            assert not any(by_hand)
    assert (found[slices.AGE]["unknown"] == (columns["item_id"] == 3)).all()


def test_values_are_told_in_the_words_of_the_tables_and_missing_is_a_slice(found):
    assert set(found["city"]) == {"Lyon", "Oslo", slices.MISSING}
    edges = [float(name.split()[-1]) for name in found["paid"] if name != slices.MISSING]
    assert slices.MISSING in found["paid"] and len(edges) >= 3 and set(edges) <= {0.0, 1.0, 2.0, 3.0}
    assert slices.MISSING in found["member"] and len(found["member"]) == 3


def test_without_tables_there_is_no_age_and_ids_are_as_they_lie(files, declared):
    found = slices.masks(files, declared.feature_set, slices.Sliced(("city",)))
    assert slices.AGE not in found and slices.MISSING in found["city"] and "Lyon" not in found["city"]


def test_figures_of_a_slice_are_those_of_its_rows_alone():
    rng = np.random.default_rng(1)
    labels, users = rng.integers(0, 2, 2000), rng.integers(0, 60, 2000)
    scores = {"id": rng.random(2000), "multimodal": np.clip(labels * 0.3 + rng.random(2000) * 0.7, 0, 1)}
    mask = rng.random(2000) < 0.5
    few = np.zeros(2000, bool)
    few[np.flatnonzero(labels == 1)[:3]] = True
    report = slices.report({"x": {"half": mask, "few": few}}, scores, labels, users, "id")["x"]
    alone = slices.report({"x": {"all": np.ones(mask.sum(), bool)}}, {n: s[mask] for n, s in scores.items()},
                          labels[mask], users[mask], "id")["x"]["all"]  # fmt: skip
    assert report["half"] == alone and alone["rows"] == mask.sum() and alone["clicks"] == labels[mask].sum()
    gain = alone["models"]["multimodal"]["gauc_gain"]
    assert 0.0 < gain["low"] < gain["value"] < gain["high"]
    few = report["few"]["models"]["multimodal"]
    assert few["auc"] is few["gauc"] is few["gauc_gain"] is None and few["logloss"] is not None
    json.dumps(report, allow_nan=False)
    line = wording.sliced_lines({"slices": {"x": report}})[0]
    assert line.startswith(f"multimodal by x: half: {mask.sum():,} rows, gauc 0.") and "few: 3 rows" in line


def test_it_is_said_that_no_row_tells_of_users_without_behaviors():
    """A model that never saw an empty history may score them far too high."""
    some, none = slices._by_length(np.array([3, 1])), slices._by_length(np.array([3, 0]))
    (line,) = wording.unseen_lines({"slices": {slices.HISTORY: some}})
    assert "no held-out row has an empty history" in line
    assert wording.unseen_lines({"slices": {slices.HISTORY: none}}) == wording.unseen_lines({}) == []


def test_a_slice_by_what_is_no_feature_of_one_value_is_refused_before_any_work():
    with pytest.raises(ValueError, match=r"`gate.slices` must name features .*: user_id, item_id, category. Rec"):
        dataclasses.replace(presets.small(), gate=GateConfig(slices=("clicks", "city")))
    run = dataclasses.replace(presets.small(), gate=GateConfig(slices=("category",)))
    assert config_lib.from_dict(config_lib.RunConfig, config_lib.to_dict(run)) == run
