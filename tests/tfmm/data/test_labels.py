"""Tests of declared labels in the data: another column, weights and rates, what becomes of bad ones, faults."""

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import preprocessing
from tfmm.config import DataConfig
from tfmm.data import checks, declared, join, pairs, schema, shards
from tfmm.features import FeatureSet, Label

CONFIG = DataConfig(max_behaviors=5)
LABEL = Label("clicked", weight="importance", negative_rate_column="rate")
FEATURES = FeatureSet(label=LABEL).resolved(max_behaviors=5, min_count=2)


def rows(**changes):
    """Returns columns of 40 impressions, those of `changes` by row put in."""
    generator = np.random.default_rng(0)
    columns = {
        "clicked": [i % 2 for i in range(40)],
        "importance": generator.integers(1, 4, 40).astype(float).tolist(),
        "rate": [0.25 if i % 3 else 0.5 for i in range(40)],
    }
    for name, values in changes.items():
        for row, value in values.items():
            columns[name][row] = value
    return columns


@pytest.fixture
def folder(small_marketplace, tmp_path):
    """Returns a function that writes a small log with columns of its own in the place of `label`."""

    def write(columns):
        shown = schema.read_table(small_marketplace, "impressions").slice(0, 40)
        kept = {name: shown[name] for name in ("user_id", "item_id", "timestamp")}
        pq.write_table(pa.table(kept | columns), tmp_path / "impressions.parquet")
        pq.write_table(schema.read_table(small_marketplace, "items"), tmp_path / "items.parquet")
        return tmp_path

    return write


def test_examples_carry_label_weight_and_rate(folder, tmp_path):
    columns = rows()
    join.write_examples(folder(columns), CONFIG, FEATURES, tmp_path / "out")
    found = [shards.read_columns(str(tmp_path / f"out/{split}-*")) for split in ("train", "eval")]
    for name, column in LABEL.sources.items():
        values = np.concatenate([part[name] for part in found])
        assert values.dtype == (np.int64 if name == "label" else np.float32)
        assert sorted(values.tolist()) == sorted(columns[column])
    shown = pq.read_table(tmp_path / "impressions.parquet").to_pydict()
    of_row = {key: row for *key, row in zip(shown["user_id"], shown["item_id"], range(40)) for key in [tuple(key)]}
    for part in found:
        for i, key in enumerate(zip(part["user_id"].tolist(), part["item_id"].tolist())):
            assert part["sample_weight"][i] == shown["importance"][of_row[key]]
            assert part["label"][i] == shown["clicked"][of_row[key]]


def test_without_a_declaration_examples_have_no_such_column():
    assert set(preprocessing.raw_spec(FeatureSet())) & {"sample_weight", "negative_rate"} == set()
    spec = preprocessing.raw_spec(FeatureSet(label=Label(negative_rate=0.1)))  # of the run: no row needs to say it
    assert "negative_rate" not in spec


BAD = {
    "importance": {3: -1.0, 5: float("inf"), 7: float("nan"), 9: None},
    "rate": {11: 0.0, 13: 1.5, 15: None},
    "clicked": {17: 2},
}
REASONS = {
    3: "`importance` must be a finite number of at least 0",
    5: "`importance` must be a finite number of at least 0",
    7: "`importance` must not be null",
    9: "`importance` must not be null",
    11: "`rate` must be a share in (0, 1]",
    13: "`rate` must be a share in (0, 1]",
    15: "`rate` must not be null",
    17: "`clicked` must be 0 or 1",
}


def test_rows_with_bad_weights_and_rates_are_dead_letters(folder, tmp_path):
    config = DataConfig(max_behaviors=5, max_bad_fraction=0.1)
    counts = join.write_examples(folder(rows(**BAD)), config, FEATURES, tmp_path / "out")
    assert counts["dead_letter"] == len(REASONS) and counts["train"] + counts["eval"] == 40 - len(REASONS)
    letters = pq.read_table(next((tmp_path / "out").glob("dead_letter-*"))).to_pylist()
    assert {letter["row"]: letter["reason"] for letter in letters} == REASONS
    assert json.loads(letters[0]["content"])["importance"] == -1.0


def test_check_reports_what_the_job_leaves_out(folder):
    report = checks.check(folder(rows(**BAD)), CONFIG, FEATURES)
    found = {row: f"`{fault.column}` {fault.rule}" for fault in report.faults for row in fault.rows}
    assert found == REASONS
    assert checks.check(folder(rows()), CONFIG, FEATURES).ok


def test_weight_of_zero_is_no_fault(folder):
    assert checks.check(folder(rows(importance={0: 0.0})), CONFIG, FEATURES).ok


def test_columns_that_the_data_lacks_are_all_named(folder, tmp_path):
    data = folder({name: values for name, values in rows().items() if name == "clicked"})
    label = Label("bought", weight="importance", negative_rate_column="rate")
    found = declared.faults(data, FeatureSet(label=label))
    assert [text.partition(" must")[0] for text in found] == [
        f"label: column impressions.{name}" for name in ("bought", "importance", "rate")
    ]
    assert all("Received the columns user_id, item_id, timestamp, clicked" in text for text in found)
    with pytest.raises(ValueError, match=r"(?s)impressions.bought must be there.*impressions.rate must be there"):
        join.write_examples(data, CONFIG, FeatureSet(label=label).resolved(5, 2), tmp_path / "out")


def test_weights_that_are_no_numbers_are_a_fault(folder):
    columns = rows() | {"importance": ["much"] * 40}
    (found,) = declared.faults(folder(columns), FEATURES)
    assert "'importance' of table 'impressions' must be a number" in found and "as its weight" in found


def test_rates_of_1_beside_all_clicks_are_refused(folder):
    columns = rows()
    columns["rate"] = [1.0 if clicked else 0.1 for clicked in columns["clicked"]]
    (found,) = declared.faults(folder(columns), FEATURES)
    assert "Received: 1 for all clicks, less for all negatives. Write the negatives' rate beside clicks" in found
    columns["rate"] = [1.0] * 40
    assert not declared.faults(folder(columns), FEATURES)


def test_histories_and_pairs_follow_the_declared_label(folder, tmp_path):
    columns = rows() | {"clicked": [1] * 40}
    data = folder(columns)
    counts = pairs.build_pairs(data, dataclasses.replace(pairs.PairsConfig(), heldout_fraction=0.5), tmp_path / "pairs",
                               CONFIG, feature_set=FEATURES)  # fmt: skip
    assert counts["text"]["source"] == "co-click"


def test_unused_columns_are_still_named(folder):
    found = checks.check(folder(rows() | {"brand": [1] * 40}), CONFIG, FEATURES).unread
    assert "brand" in str(found) and "importance" not in str(found)
