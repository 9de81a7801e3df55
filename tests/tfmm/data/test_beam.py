import json
import logging

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing import util

from tfmm import preprocessing
from tfmm.config import DataConfig
from tfmm.data import beam as beam_lib
from tfmm.data import examples, join, rules, schema, times
from tfmm.features import FeatureSet

OPTIONS = ["--runner=FnApiRunner", "--direct_num_workers=1"]
CONFIG = DataConfig(max_behaviors=5)
FEATURES = FeatureSet().resolved(max_behaviors=5, min_count=2)


def run(data_dir, output_dir):
    """Runs the job in this process; returns the counts of train, eval and dead_letter rows."""
    pipeline = beam.Pipeline(options=PipelineOptions(OPTIONS))
    beam_lib.write(pipeline, data_dir, CONFIG, FEATURES, output_dir, prefix="{split}")
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(beam_lib.NAMESPACE))["counters"]
    counts = {"train": 0, "eval": 0, "dead_letter": 0}
    for counter in counters:
        counts[counter.key.metric.name] += counter.committed
    return counts


def test_records_are_laid_out_as_a_tfx_artifact(small_marketplace, tmp_path):
    with beam.Pipeline(options=PipelineOptions(OPTIONS)) as root:
        beam_lib.write(root, small_marketplace, CONFIG, FEATURES, tmp_path)
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"Split-train", "Split-eval"}
    spec = preprocessing.raw_spec(FEATURES)
    rows = [
        len(examples.read_columns(str(tmp_path / f"Split-{split}/data_tfrecord-*.gz"), spec)["label"])
        for split in ("train", "eval")
    ]
    assert sum(rows) == schema.read_table(small_marketplace, "impressions", ["label"]).num_rows


@pytest.mark.slow
@pytest.mark.parametrize("with_behaviors", [True, False])
def test_many_shards_give_what_one_gives(small_marketplace, tmp_path, monkeypatch, with_behaviors):
    for name in ("items", "impressions") + (("behaviors",) if with_behaviors else ()):
        table = schema.read_table(small_marketplace, name)
        (tmp_path / "data" / name).mkdir(parents=True)
        half = table.num_rows // 2
        for part, rows in enumerate((table[:half], table[half:])):  # parts, each of several row groups
            pq.write_table(rows, tmp_path / "data" / name / f"part-{part}.parquet", row_group_size=1000)
    found = []
    for rows_per_shard in (10**9, 500):
        monkeypatch.setattr(join, "ROWS_PER_PARTITION", rows_per_shard)
        folder = tmp_path / str(rows_per_shard)
        run(tmp_path / "data", folder)
        columns = examples.read_columns(str(folder / "train-*.tfrecord.gz"), preprocessing.raw_spec(FEATURES))
        order = np.lexsort((columns["item_id"], columns["user_id"], columns["timestamp"]))
        found.append({name: values[order] for name, values in columns.items()})
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_shards_are_as_many_as_their_behaviors_need_where_few_impressions_are_of_the_span(
    small_marketplace, monkeypatch
):
    found, make = [], beam_lib._ReadLogs
    monkeypatch.setattr(beam_lib, "_ReadLogs", lambda number, *rest: found.append(number) or make(number, *rest))
    rows = schema.read_table(small_marketplace, "behaviors", ["user_id"]).num_rows
    monkeypatch.setattr(join, "LOG_ROWS_PER_PARTITION", rows // 7)
    beam.Pipeline(options=PipelineOptions(OPTIONS)) | beam_lib.BuildExamples(small_marketplace, CONFIG, FEATURES)
    assert found == [7]


def test_no_column_of_impressions_is_read_whole_before_the_job(small_marketplace, monkeypatch):
    read_table = schema.read_table

    def refuse(data_dir, name, *arguments, **options):
        assert name != "impressions", "the driver read a whole column"
        return read_table(data_dir, name, *arguments, **options)

    monkeypatch.setattr(schema, "read_table", refuse)
    monkeypatch.setattr(times, "read_bounds", lambda *_: pytest.fail("the driver read all times"))
    with beam.Pipeline(options=PipelineOptions(OPTIONS)) as root:
        root | beam_lib.BuildExamples(small_marketplace, CONFIG, FEATURES)


def test_row_numbers_of_dead_letters_run_over_all_parts(small_marketplace, tmp_path):
    table = schema.read_table(small_marketplace, "impressions").slice(0, 40)
    (tmp_path / "impressions").mkdir()
    labels = np.zeros(40, int)
    labels[33] = 9
    table = table.set_column(table.schema.get_field_index("label"), "label", [labels])
    pq.write_table(table.slice(0, 25), tmp_path / "impressions" / "a.parquet", row_group_size=10)
    pq.write_table(table.slice(25), tmp_path / "impressions" / "b.parquet", row_group_size=10)
    pq.write_table(schema.read_table(small_marketplace, "items"), tmp_path / "items.parquet")
    with beam.Pipeline(options=PipelineOptions(OPTIONS)) as root:
        built = root | beam_lib.BuildExamples(tmp_path, CONFIG, FEATURES)
        letters = built["dead_letter"] | beam.Map(lambda letter: (letter["table"], letter["row"], letter["reason"]))
        util.assert_that(letters, util.equal_to([("impressions", 33, "`label` must be 0 or 1")]))


def test_times_beyond_the_calendar_are_dead_letters(small_marketplace, tmp_path):
    table = schema.read_table(small_marketplace, "impressions").slice(0, 40)
    times = table["timestamp"].cast("int64").to_numpy().copy()
    times[7] *= 1_000  # nanoseconds, say
    place = table.column_names.index("timestamp")
    pq.write_table(
        table.set_column(place, "timestamp", pa.array(times, pa.timestamp("us"))), tmp_path / "impressions.parquet"
    )
    pq.write_table(schema.read_table(small_marketplace, "items"), tmp_path / "items.parquet")
    assert run(tmp_path, tmp_path / "out") == {"train": 31, "eval": 8, "dead_letter": 1}  # of the 39
    (letter,) = pq.read_table(next((tmp_path / "out").glob("dead_letter-*"))).to_pylist()
    assert (letter["row"], letter["reason"]) == (7, f"`timestamp` {rules.OUTSIDE_YEARS}")
    assert int(json.loads(letter["content"])["timestamp"].split("-")[0]) > 50_000


def test_what_was_seen_of_coarse_times_is_logged(small_marketplace, tmp_path, caplog):
    for name in ("items", "impressions", "behaviors"):
        table = schema.read_table(small_marketplace, name)
        if name == "behaviors":
            days = table["timestamp"].cast(pa.date32(), safe=False)
            table = table.set_column(table.column_names.index("timestamp"), "timestamp", days)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with caplog.at_level(logging.WARNING, "tfmm.data.beam"), beam.Pipeline(options=PipelineOptions(OPTIONS)) as root:
        root | beam_lib.BuildExamples(tmp_path, CONFIG, FEATURES)
    assert "behaviors.timestamp is known to the day: a behavior counts from the next midnight" in caplog.text


def test_ids_of_two_types_stop_the_job_before_it_starts(small_marketplace, tmp_path):
    for name in ("items", "impressions"):
        table = schema.read_table(small_marketplace, name)
        if name == "items":
            ids = table["item_id"].cast("string")
            table = table.set_column(0, "item_id", ids)
        pq.write_table(table, tmp_path / f"{name}.parquet")
    with pytest.raises(ValueError, match="`item_id` must have one type in all tables"):
        run(tmp_path, tmp_path / "out")
