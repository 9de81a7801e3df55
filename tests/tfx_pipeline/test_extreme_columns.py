"""Columns at the edge, with TFX and without: nothing in all rows, infinities, one value, squares beyond float32."""

import functools
import json

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from tfmm import config, preprocessing
from tfmm.data import examples
from tfmm.data import transform as by_hand_lib
from tfmm.declared_values import MAX_NUMBER
from tfmm.features import DEFAULT_FEATURES, SCALINGS, Feature, FeatureSet

pytest.importorskip("tensorflow_transform", reason="TFX is not installed")

import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from tfx_pipeline import preprocessing as transform

NAN, INFINITE = float("nan"), float("inf")
NUMBERS = {  # of 8 rows; the first in a sequence, too
    "nothing": [NAN] * 8,
    "wild": [1.0, INFINITE, 3.0, -INFINITE, NAN, 5.0, 2.0, 7.0],
    "constant": [0.1] * 8,
    "huge": [3e38, -3e38, 9e29, 2.0, 1.0, NAN, 0.0, -1.0],
    "tiny": [1e-40, 2e-40, 1e-45, 0.0, -1e-40, NAN, 1e-39, 1e-38],
    "one": [NAN] * 7 + [4.0],
    "far": [1e9 + i for i in range(8)],
}
FEATURES = FeatureSet(
    (
        *DEFAULT_FEATURES,
        *(Feature(f"{name}_{scaling}", "item", "number", scaling=scaling, num_quantiles=3)
          for name in NUMBERS for scaling in SCALINGS),
        Feature("nobody", "item"),
        Feature("untagged", "item", "ids", max_values=2),
        Feature("rare", "context", min_count=5),
        Feature("unsaid", "context", "boolean"),
        Feature("never", "context", "time"),
    ),
    (),
).resolved(max_behaviors=2, min_count=1)  # fmt: skip


def draw_rows():
    rows = []
    for place in range(8):
        row = {"timestamp": np.int64(place), "label": np.int64(place % 2)}
        for column in FEATURES.columns:
            number = column.name.rpartition("_")[0]
            if number in NUMBERS:
                row[column.name] = np.float32(NUMBERS[number][place])
            elif column.name in ("nobody", "untagged", "unsaid", "never"):
                row[column.name] = np.full(column.shape, column.missing, examples.dtype_of(column))
            else:
                row[column.name] = np.full(column.shape, place + 1, np.int64)
        rows.append(row)
    return rows


ROWS = draw_rows()


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Inputs of the rows as Transform makes them and as `tfmm.data.transform` does; statistics of both."""
    folder = tmp_path_factory.mktemp("transform")
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(preprocessing.raw_spec(FEATURES)))
    custom_config = {"feature_set": json.dumps(config.to_dict(FEATURES))}
    preprocessing_fn = functools.partial(transform.preprocessing_fn, custom_config=custom_config)
    with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        data = pipeline | beam.Create(ROWS)
        (out, _), transform_fn = (data, metadata) | tft_beam.AnalyzeAndTransformDataset(preprocessing_fn)
        _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "output"))
        _ = (
            out
            | beam.Map(lambda row: json.dumps({name: np.asarray(value).tolist() for name, value in row.items()}))
            | beam.io.WriteToText(str(folder / "rows"), shard_name_template="")
        )
    rows = sorted(map(json.loads, (folder / "rows").read_text().splitlines()), key=lambda row: row["timestamp"])
    transform.collect(folder / "output", FEATURES, folder / "collected")
    columns = {name: np.array([row[name] for row in ROWS]) for name in preprocessing.raw_spec(FEATURES)}
    def values_of(column):
        return [(columns[column.name], None)]

    found = by_hand_lib.vocabularies(FEATURES, values_of), by_hand_lib.statistics(FEATURES, values_of)
    preprocessing.write(folder / "by_hand", *found)
    preprocessor = preprocessing.load(FEATURES, folder / "by_hand")
    by_hand = preprocessor({name: tf.constant(values) for name, values in columns.items()})
    with_tfx = {name: np.array([row[name] for row in rows]) for name in by_hand}
    return with_tfx, {name: values.numpy() for name, values in by_hand.items()}, folder


@pytest.mark.parametrize("scaling", SCALINGS)
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_at_the_edge_enter_the_model_alike_and_finite(both, name, scaling):
    with_tfx, by_hand, _ = both
    (column,) = [c.input for c in FEATURES.columns if c.name == f"{name}_{scaling}"]
    np.testing.assert_allclose(with_tfx[column], by_hand[column], rtol=1e-5, atol=4e-6)  # see below
    is_missing = ~(np.abs(np.array(NUMBERS[name], np.float32)) <= MAX_NUMBER)
    if scaling == "quantiles":
        assert ((by_hand[column] == 0) == is_missing).all() and by_hand[column].max() <= 3
    else:
        assert (np.isnan(by_hand[column]) == is_missing).all() and not np.isinf(by_hand[column]).any()


def test_columns_without_any_value_are_missing_alike(both):
    with_tfx, by_hand, _ = both
    for name in ("nobody", "untagged", "unsaid", "never"):
        assert not by_hand[f"{name}_index"].any() and not with_tfx[f"{name}_index"].any()
    assert set(by_hand["rare_index"].tolist()) == set(with_tfx["rare_index"].tolist()) == {1}


def test_what_transform_found_can_be_loaded(both):
    _, by_hand, folder = both
    loaded = preprocessing.load(FEATURES, folder / "collected")
    again = loaded({name: tf.constant(np.array([row[name] for row in ROWS])) for name in ROWS[0]})
    for name in NUMBERS:
        for column in (f"{name}_standard_value", f"{name}_log_value", f"{name}_quantiles_index"):
            # the last bit of a logarithm of 20, 2e-6, depends on the batch
            np.testing.assert_allclose(again[column], by_hand[column], rtol=1e-5, atol=4e-6, err_msg=column)
