"""What comes after a watermark: which rows are joined, and what is said of the others."""

import dataclasses
import datetime

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tfmm import preprocessing
from tfmm.config import DataConfig
from tfmm.ctr import lineage
from tfmm.data import beam as beam_lib
from tfmm.data import examples, instants, join, rules, schema, shards, spans
from tfmm.features import FeatureSet
from tfmm.training import sources

CONFIG = DataConfig(max_behaviors=5)
FEATURES = FeatureSet().resolved(max_behaviors=5, min_count=2)
HOUR = 3_600_000_000


def before(watermark, newest=None, seen=None, **held):
    return spans.Before(watermark, watermark if newest is None else newest, seen or {}, **held)


def test_late_rows_and_gaps_are_counted_by_hour():
    tally = spans.Tally(before(10 * HOUR + 5, seen={"9": 2, "10": 1}))
    at = np.array([9 * HOUR, 9 * HOUR + 1, 9 * HOUR + 2, 10 * HOUR + 5, 10 * HOUR + 6, 40 * HOUR, instants.NULL])
    assert tally.add(at).tolist() == [False] * 4 + [True, True, False]
    tally.hold_out(at[5:6])
    span = tally.span()
    assert (span.after, span.rows, span.late, span.gaps) == (10 * HOUR + 5, 2, 1, ((10, 40),))
    assert span.seen == {"9": 3, "10": 2}  # what was late is said once; what is held out comes again
    assert span.lines()[1:] == [
        "span: no impression from 1970-01-01T11:00:00 UTC to 1970-01-02T16:00:00 UTC",
        "span: 1 impressions came late, not after 1970-01-01T10:00:00.000005 UTC: they are not trained on",
    ]


def test_rows_that_are_no_longer_there_hide_no_late_ones():
    tally = spans.Tally(before(2 * HOUR, seen={"0": 50, "1": 3}))
    tally.add(np.array([HOUR, HOUR + 1, HOUR + 2, HOUR + 3, 3 * HOUR]))  # hour 0 has gone
    assert tally.span().late == 1


def test_what_its_parent_was_judged_by_is_no_new_span():
    tally = spans.Tally(before(HOUR, newest=2 * HOUR, seen={"1": 1}))
    tally.add(np.array([HOUR, HOUR + 1, 2 * HOUR]))
    with pytest.raises(spans.EmptySpan, match=r"needs impressions after 1970-01-01T02:00:00 UTC.*No new version"):
        tally.span()


@pytest.mark.parametrize("held", [{"heldout_rows": 3}, {"heldout_rows": 9}, {"heldout_s": 9}, {}])
def test_a_span_of_which_all_is_held_out_is_no_span(tmp_path, held):
    """Before anything is joined: 1 row, of which a share is at least that one; or fewer than are held out."""
    seconds = range(7 if held else 9, 11)
    at = pa.array([second * 1_000_000 for second in (1, 2, *seconds)], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"timestamp": at}), tmp_path / "impressions.parquet")
    known = before(6_000_000 if held else 9_000_000, **held)
    if held == {"heldout_rows": 3}:
        assert spans.require_new(tmp_path, CONFIG, FEATURES, known).rows == 4
        return
    with pytest.raises(spans.EmptySpan, match=r"after its parent's: [14], all held out\. No new version is made"):
        spans.require_new(tmp_path, CONFIG, FEATURES, known)


@pytest.mark.parametrize("is_cut", [True, False])
def test_a_split_must_be_one_cut_in_time_where_a_model_goes_on(tmp_path, is_cut):
    """What is held out at or before the watermark would never be trained on."""
    at = pa.array([second * 1_000_000 for second in range(1, 11)], pa.int64()).cast(pa.timestamp("us"))
    split = [*["train"] * 8, *["eval"] * 2] if is_cut else ["train", "eval"] * 5
    pq.write_table(pa.table({"timestamp": at, "split": split}), tmp_path / "impressions.parquet", row_group_size=3)
    known = before(4_000_000)
    if is_cut:
        assert spans.require_new(tmp_path, CONFIG, FEATURES, known).rows == 6
        return
    words = r"`impressions.split` to be one cut in time.*train row of 1970-01-01T00:00:09 UTC, and an eval row .*02 UTC"
    with pytest.raises(ValueError, match=words):
        spans.require_new(tmp_path, CONFIG, FEATURES, known)


def joined_by_both(data, folder, **options):
    """The span, the instants of the examples, and the dead letters, by the join on disk and by Beam."""
    join.write_examples(data, CONFIG, FEATURES, folder / "join", **options)
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", "--direct_num_workers=1"])) as root:
        beam_lib.write(root, data, CONFIG, FEATURES, folder / "beam", prefix="{split}", **options)
    spec = preprocessing.raw_spec(FEATURES)
    for name, columns in (
        ("join", shards.read_columns),
        ("beam", lambda pattern: examples.read_columns(pattern, spec)),
    ):
        at = [columns(str(folder / name / f"{split}-*"))["timestamp"] for split in schema.SPLITS]
        letters = pq.read_table(sorted((folder / name).glob("dead_letter-*"))).to_pylist()
        yield spans.read(folder / name), np.sort(np.concatenate(at)), letters


@pytest.fixture
def grown(small_marketplace, tmp_path):
    """Returns a function that appends the newest impression with other values, and returns the folder."""

    def write(**values):
        data = tmp_path / "data"
        data.mkdir()
        for name in ("items", "impressions", "behaviors"):
            table = pq.read_table(small_marketplace / f"{name}.parquet")
            if name == "impressions":
                row = table.take([int(np.argmax(table["timestamp"].cast("int64").to_numpy()))]).to_pylist()[0]
                table = pa.concat_tables([table, pa.Table.from_pylist([row | values], table.schema)])
            pq.write_table(table, data / f"{name}.parquet")
        return data, row["timestamp"]

    return write


def test_an_impression_of_the_future_is_left_out_and_is_not_the_newest(grown, tmp_path):
    data, newest = grown(timestamp=datetime.datetime(2099, 1, 1))
    newest = int(np.datetime64(newest, "us").astype(np.int64))
    for span, at, letters in joined_by_both(data, tmp_path):
        assert span.newest == at[-1] == newest
        assert [letter["reason"] for letter in letters] == [f"`timestamp` {rules.IN_FUTURE}"]
    with pytest.raises(spans.EmptySpan, match=r"trained on, and 1 of times that have not come yet\. No"):
        spans.require_new(data, CONFIG, FEATURES, before(newest - 1, newest, {}))


def test_what_has_not_come_is_told_by_the_clock_that_is_given(small_marketplace, tmp_path):
    at = np.sort(pq.read_table(small_marketplace / "impressions.parquet")["timestamp"].cast("int64").to_numpy())
    last = int(at[-50])
    for span, found, letters in joined_by_both(small_marketplace, tmp_path, newest_us=last):
        assert span.newest == found[-1] == last
        assert len(letters) == (at > last).sum()


def test_what_is_left_out_is_no_reason_for_a_new_model_twice(grown, tmp_path):
    data, newest = grown(item_id=2**40, timestamp=datetime.datetime(2024, 6, 1))
    newest = int(np.datetime64("2024-06-01", "us").astype(np.int64))
    for span, at, letters in joined_by_both(data, tmp_path):
        assert len(letters) == 1 and at[-1] < newest == span.newest
        rows = sources.InMemory({"timestamp": at, "item_id": at})
        facts = lineage.facts(rows, rows, None, None, (), None, span)
        assert facts["newest"] == newest and facts["lag"] == {"rows": 0, "seconds": 0.0}
        with pytest.raises(spans.EmptySpan, match="No new version is made"):
            spans.require_new(data, CONFIG, FEATURES, before(int(at[-200]), facts["newest"]))


@pytest.mark.parametrize(
    "held, number", [({}, 2), ({"heldout_rows": 4}, 4), ({"heldout_s": 3}, 3), ({"heldout_rows": 99}, 10)]
)
def test_the_newest_are_held_out_by_share_by_rows_or_by_seconds(held, number):
    at = np.arange(1, 11) * 1_000_000
    pieces = [(at[:4], None), (at[4:], None)]
    first = spans.first_held_out(lambda: pieces, 10, 0.2, before(0, **held))
    assert (at >= first).sum() == number


@pytest.mark.parametrize(
    "served, held, number", [(3, {}, 2), (7, {}, 2), (8, {}, 2), (9, {}, 1), (10, {}, 2), (7, {"heldout_rows": 6}, 3)]
)
def test_a_training_from_scratch_holds_out_nothing_that_the_model_in_service_was_trained_on(served, held, number):
    """Of 10 rows 2 are held out; where nothing is later than what that model saw, it was trained on other data."""
    at = np.arange(1, 11) * 1_000_000
    known = spans.Before(served_through=served * 1_000_000, **held)
    assert (at >= spans.first_held_out(lambda: [(at, None)], 10, 0.2, known)).sum() == number


@pytest.mark.parametrize(
    "held, served, is_told",
    [({}, 7, False), ({}, 8, False), ({}, 9, True), ({}, 10, False), ({"heldout_rows": 3}, 8, True),
     ({"heldout_rows": 2}, 8, False), ({"heldout_s": 3}, 8, True), ({"heldout_s": 2}, 8, False)],
)  # fmt: skip
def test_a_training_from_scratch_is_told_of_the_model_in_service_only_where_that_changes_what_is_held_out(
    tmp_path, held, served, is_told
):
    at = pa.array([*(second * 1_000_000 for second in range(1, 11)), None], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(pa.table({"timestamp": at}), tmp_path / "impressions.parquet", row_group_size=4)
    own = spans.Before(**held)
    found = spans.judged_alike(tmp_path, CONFIG, FEATURES, own, served * 1_000_000)
    assert found == (dataclasses.replace(own, served_through=served * 1_000_000) if is_told else own)


def test_what_is_held_out_is_said_in_rows_without_a_parent_too(small_marketplace, tmp_path):
    known = spans.Before(heldout_rows=100)
    join.write_examples(small_marketplace, CONFIG, FEATURES, tmp_path / "join", before=known)
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", "--direct_num_workers=1"])) as root:
        beam_lib.write(root, small_marketplace, CONFIG, FEATURES, tmp_path / "beam", prefix="{split}", before=known)
    held_out = shards.read_columns(str(tmp_path / "join" / "eval-*"))["timestamp"]
    spec = preprocessing.raw_spec(FEATURES)
    found = examples.read_columns(str(tmp_path / "beam" / "eval-*"), spec)["timestamp"]
    np.testing.assert_array_equal(np.sort(found), np.sort(held_out))
    assert len(found) == 100


@pytest.mark.parametrize("has_behaviors", [True, False])
def test_a_span_is_the_rows_after_the_watermark_with_the_histories_that_they_had(
    small_marketplace, tmp_path, has_behaviors
):
    """By hand and by Beam, in both the same rows as a join of everything has of them."""
    data = tmp_path / "data"
    for name in ("items", "impressions", *(["behaviors"] if has_behaviors else [])):
        (data / name).mkdir(parents=True)
        table = pq.read_table(small_marketplace / f"{name}.parquet")
        for part in range(3):  # grown by files
            start = table.num_rows * part // 3
            rows = table.slice(start, table.num_rows * (part + 1) // 3 - start)
            pq.write_table(rows, data / name / f"part-{part}.parquet", row_group_size=1000)
    join.write_examples(data, CONFIG, FEATURES, tmp_path / "all")
    whole = [shards.read_columns(str(tmp_path / "all" / f"{split}-*")) for split in schema.SPLITS]
    columns = {name: np.concatenate([part[name] for part in whole]) for name in whole[0]}
    after = before(int(columns["timestamp"][len(columns["timestamp"]) // 2]))
    is_new = columns["timestamp"] > after.watermark
    join.write_examples(data, CONFIG, FEATURES, tmp_path / "span", before=after)
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", "--direct_num_workers=1"])) as root:
        beam_lib.write(root, data, CONFIG, FEATURES, tmp_path / "beam", prefix="{split}", before=after)
    spec, cuts = preprocessing.raw_spec(FEATURES), []
    for folder, read in (
        ("span", shards.read_columns),
        ("beam", lambda pattern: examples.read_columns(pattern, spec)),
    ):
        parts = [read(str(tmp_path / folder / f"{split}-*")) for split in schema.SPLITS]
        parts = [{name: values[examples.time_order(part)] for name, values in part.items()} for part in parts]
        cuts.append(len(parts[0]["label"]))
        for name, values in columns.items():
            found = np.concatenate([part[name] for part in parts])
            np.testing.assert_array_equal(found, values[is_new], err_msg=f"{folder}: {name}")
    assert cuts[0] == cuts[1] == pytest.approx(0.8 * is_new.sum(), abs=2)
    assert spans.read(tmp_path / "span") == spans.read(tmp_path / "beam")
    assert spans.read(tmp_path / "span").rows == is_new.sum()
