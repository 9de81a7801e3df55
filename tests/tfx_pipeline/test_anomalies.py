"""Anomalies of examples, by TFDV, against the declaration's schema and against other rows."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

import apache_beam as beam
import tensorflow_data_validation as tfdv
from apache_beam.options import pipeline_options
from tensorflow_data_validation.statistics import stats_impl
from tensorflow_metadata.proto.v0 import anomalies_pb2
from tensorflow_transform.tf_metadata import schema_utils
from tfx.utils import io_utils

from tfmm import drift, preprocessing
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet
from tfmm.stages import folders
from tfx_pipeline import anomalies

FEATURES = FeatureSet((*DEFAULT_FEATURES, Feature("price", "item", "number")), sequences=())


@pytest.fixture
def schema_dir(tmp_path):
    proto = schema_utils.schema_from_feature_spec(preprocessing.raw_spec(FEATURES))
    io_utils.write_pbtxt_file(str(tmp_path / "schema" / "schema.pbtxt"), proto)
    return tmp_path / "schema"


def examples(num_rows, seed):
    draw = np.random.default_rng(seed)
    return pd.DataFrame({
        "user_id": draw.integers(1, 50, num_rows), "item_id": draw.integers(1, 50, num_rows) + 1000 * seed,
        "category": draw.integers(1, 9, num_rows), "price": draw.lognormal(size=num_rows).astype(np.float32),
        "label": draw.integers(0, 2, num_rows), "timestamp": draw.integers(0, 100, num_rows) + 1000 * seed,
    })  # fmt: skip


def write_statistics(folder, train, held_out):
    for split, frame in zip(folders.SPLITS, (train, held_out)):
        path = folder / f"Split-{split}" / "FeatureStats.pb"
        path.parent.mkdir(parents=True)
        path.write_bytes(statistics_of(frame).SerializeToString())
    return folder


def statistics_of(frame):
    return stats_impl.generate_statistics_in_memory(batch_of(frame), tfdv.StatsOptions())


def batch_of(frame):
    """As StatisticsGen has them: every value in a list of its own, NaN among the numbers."""
    columns = {name: pa.array([[value] for value in frame[name].tolist()]) for name in frame}
    columns["price"] = columns["price"].cast(pa.list_(pa.float32()))
    return pa.RecordBatch.from_pydict(columns)


def of(span, before, schema_dir):
    changes = anomalies.changes(span, before, schema_dir, drift.compared(FEATURES))
    return anomalies.of_changes(changes, drift.DriftConfig())


def test_new_users_items_and_times_are_no_anomaly(tmp_path, schema_dir):
    first = write_statistics(tmp_path / "first", examples(4000, 1), examples(1000, 2))
    second = write_statistics(tmp_path / "second", examples(4000, 3), examples(1000, 4))
    assert of(first, None, schema_dir) == of(second, first, schema_dir) == []
    changes = anomalies.changes(second, first, schema_dir, drift.compared(FEATURES))
    assert list(changes) == [anomalies.WITHIN, anomalies.BEFORE]
    assert all(set(found) == {"category", "price", "label"} for found in changes.values())


@pytest.mark.parametrize("poison, stops", [
    (lambda price: 1000.0 * price + 5000.0, True),  # another unit
    (lambda price: np.full_like(price, np.nan), True),  # gone
    (lambda price: np.where(np.arange(len(price)) % 2, np.nan, price), False),  # for half of the rows: said
])  # fmt: skip
def test_column_that_changed_since_the_span_before_is_said_or_stops_the_run(tmp_path, schema_dir, poison, stops):
    first = write_statistics(tmp_path / "first", examples(4000, 1), examples(1000, 2))
    spans = examples(4000, 3), examples(1000, 4)
    train, held_out = (rows.assign(price=poison(rows["price"].to_numpy())) for rows in spans)
    (found,) = of(write_statistics(tmp_path / "second", train, held_out), first, schema_dir)
    assert (found.column, found.stops) == ("price", stops)
    assert found.expected.startswith("values as of the span before, divergence below 0.")


def test_newest_rows_unlike_the_others_are_an_anomaly_in_the_first_span_too(tmp_path, schema_dir):
    held_out = examples(1000, 2).assign(price=np.float32(1e6))
    (found,) = of(write_statistics(tmp_path / "first", examples(4000, 1), held_out), None, schema_dir)
    assert found.stops and found.expected.startswith("values as of its training rows")


def test_column_that_is_not_as_declared_stops_the_run_with_what_was_expected(tmp_path, schema_dir):
    wrong = examples(100, 1).drop(columns="category").assign(label=["yes"] * 100)
    schema = tfdv.load_schema_text(str(schema_dir / "schema.pbtxt"))
    for split, frame in zip(folders.SPLITS, (wrong, examples(100, 2))):
        found = tfdv.validate_statistics(statistics_of(frame), schema)
        assert isinstance(found, anomalies_pb2.Anomalies)
        path = tmp_path / "found" / f"Split-{split}" / "SchemaDiff.pb"
        path.parent.mkdir(parents=True)
        path.write_bytes(found.SerializeToString())
    found = anomalies.of_schema(tmp_path / "found", schema_dir)
    assert {one.column: one.expected for one in found} == dict.fromkeys(("category", "label"), "int in every row")
    assert all(one.stops and one.found.startswith("in train: ") for one in found)
    assert anomalies.table(found).splitlines()[0].split(" | ")[0].strip() == "column"


def test_split_without_rows_stops_the_run_in_words_of_its_own(tmp_path, schema_dir):
    schema = tfdv.load_schema_text(str(schema_dir / "schema.pbtxt"))
    for split, frame in zip(folders.SPLITS, (examples(100, 1), None)):
        one = tmp_path / f"{split}.pb"
        with beam.Pipeline(options=pipeline_options.PipelineOptions(["--runner=FnApiRunner"])) as root:
            rows = [] if frame is None else [batch_of(frame)]
            found = root | beam.Create(rows, reshuffle=False) | tfdv.GenerateStatistics(tfdv.StatsOptions())
            _ = found | tfdv.WriteStatisticsToBinaryFile(str(one))
        path = tmp_path / "found" / f"Split-{split}" / "SchemaDiff.pb"
        path.parent.mkdir(parents=True)
        anomaly = tfdv.validate_statistics(tfdv.load_stats_binary(str(one)), schema)
        path.write_bytes(anomaly.SerializeToString())
    (found,) = anomalies.of_schema(tmp_path / "found", schema_dir)
    assert str(found) == "(rows): expected at least one; found in eval: none" and found.stops


def test_message_names_the_setting_of_changes_only_where_values_changed():
    wrong = anomalies.Anomaly("label", "int in every row", "in train: missing", stops=True)
    (changed,) = anomalies.of_changes({anomalies.BEFORE: {"price": 0.9}}, drift.DriftConfig())
    assert "drift.stop" not in anomalies.in_words([wrong]) and "declare what they have" in anomalies.in_words([wrong])
    assert "raise `drift.stop`" in anomalies.in_words([changed])
    both = anomalies.in_words([wrong, changed])
    assert "raise `drift.stop`" in both and "declare what they have" in both
