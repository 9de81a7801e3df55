"""What Beam's join of a span may lose: a reason's share of the rows that were read, and no split whole."""

import apache_beam as beam
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from tfmm.config import DataConfig
from tfmm.data import beam as beam_lib
from tfmm.data import join, schema, spans, times
from tfmm.features import FeatureSet

CONFIG = DataConfig(max_behaviors=5)
FEATURES = FeatureSet().resolved(max_behaviors=5, min_count=2)


def by_beam(data_dir, output_dir, config, before=spans.FROM_SCRATCH):
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"]))
    return beam_lib.generate(pipeline, data_dir, config, FEATURES, output_dir, before)


def on_disk(data_dir, output_dir, config, before=spans.FROM_SCRATCH):
    return join.write_examples(data_dir, config, FEATURES, output_dir, before=before)


@pytest.fixture(params=[by_beam, on_disk])
def generate(request):
    return request.param


@pytest.fixture
def days(small_marketplace, tmp_path):
    """Returns a function that makes a data folder of two days: the first is good, of the second so many are unlisted.

    It returns the folder, and what a model knows that saw the first.
    """

    def days(share_unlisted, num_second=200):
        folder = tmp_path / "data"
        (folder / "impressions").mkdir(parents=True)
        for name in ("items", "behaviors"):
            pq.write_table(schema.read_table(small_marketplace, name), folder / f"{name}.parquet")
        table = pq.read_table(small_marketplace / "impressions.parquet").sort_by("timestamp")
        first, second = table[:-num_second], table[-num_second:]
        ids = second["item_id"].to_pylist()
        unlisted = [2**40 + place if place < share_unlisted * num_second else own for place, own in enumerate(ids)]
        second = second.set_column(second.column_names.index("item_id"), "item_id", pa.array(unlisted, pa.int64()))
        for day, rows in enumerate((first, second)):
            pq.write_table(rows, folder / "impressions" / f"day-{day}.parquet")
        seen = times.resolutions(folder, CONFIG.time_zone, ["impressions"])["impressions"]
        at = times.read_bounds(folder, "impressions", seen)[0]
        watermark = int(sorted(at)[len(first) - 1])
        return folder, spans.Before(watermark, watermark, {})

    return days


def test_a_span_that_is_nearly_lost_stops_though_the_table_is_mostly_good(days, generate, tmp_path):
    folder, before = days(0.9)
    config = DataConfig(max_behaviors=5, max_bad_fraction=0.5)
    generate(folder, tmp_path / "all", config)
    with pytest.raises(ValueError, match=r"than 50 % of a table's rows.*\n- 180 of 200 of impressions: `item_id`"):
        generate(folder, tmp_path / "span", config, before)


def test_a_span_with_few_lost_rows_passes_and_counts_them(days, tmp_path):
    folder, before = days(0.1)
    span, lost = by_beam(folder, tmp_path / "span", DataConfig(max_behaviors=5, max_bad_fraction=0.5), before)
    assert span.rows == 200 and [(one.source, one.count) for one in lost] == [("impressions", 20)]


def test_a_split_that_came_out_empty_stops(days, generate, tmp_path):
    folder, before = days(1.0)
    config = DataConfig(max_behaviors=5, max_bad_fraction=1.0)
    with pytest.raises(spans.EmptySpan, match=r"(?s)none to be trained on.*No new version is made"):
        generate(folder, tmp_path / "span", config, before)
    for path in (folder / "impressions").iterdir():
        rows = pq.read_table(path)
        rows = rows.select([name for name in rows.column_names if name != "split"])
        pq.write_table(rows.append_column("split", pa.array(["train"] * len(rows))), path)
    with pytest.raises(ValueError, match=r"Both splits must have rows\. Received: .*eval"):
        generate(folder, tmp_path / "all", config)
