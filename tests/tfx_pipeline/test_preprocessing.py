import functools
import json

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from tfmm import config, preprocessing
from tfmm.data import transform as by_hand_lib
from tfmm.features import DEFAULT_FEATURES, OUT_OF_VOCABULARY, Feature, FeatureSet

pytest.importorskip("tensorflow_transform", reason="TFX is not installed")

import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from tfx_pipeline import preprocessing as transform

FEATURES = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("price", "item", "number"),
        Feature("income", "user", "number", scaling="log"),
        Feature("level", "item", "number", scaling="quantiles", num_quantiles=4),
        Feature("tags", "item", "ids", max_values=2),
        Feature("is_mobile", "context", "boolean"),
        Feature("hour", "context", "time"),
        Feature("city", "user", num_buckets=5),
    )
).resolved(max_behaviors=3, min_count=2)


def draw_rows(count):
    """Rows of every kind of column, a fifth of the numbers missing."""
    generator = np.random.default_rng(0)
    rows = []
    for place in range(count):
        row = {"timestamp": np.int64(place), "label": np.int64(place % 2)}
        for column in FEATURES.columns:
            if column.feature.kind == "boolean":
                row[column.name] = np.float32(generator.choice([0.0, 1.0, np.nan]))
            elif column.is_float:
                missing = generator.random() < 0.2
                row[column.name] = np.float32(np.nan if missing else generator.gamma(2.0, 10.0))
            else:
                row[column.name] = generator.integers(-3, 6, column.shape)
        rows.append(row)
    return rows


ROWS = draw_rows(200)


@pytest.fixture(scope="module")
def transformed(tmp_path_factory):
    """The rows as Transform makes them, and its output folder."""
    folder = tmp_path_factory.mktemp("transform")
    spec = preprocessing.raw_spec(FEATURES)
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    custom_config = {"feature_set": json.dumps(config.to_dict(FEATURES))}
    preprocessing_fn = functools.partial(transform.preprocessing_fn, custom_config=custom_config)
    with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(
        temp_dir=str(folder / "temp")
    ):
        data = pipeline | beam.Create(ROWS)
        (out, _), transform_fn = (data, metadata) | tft_beam.AnalyzeAndTransformDataset(preprocessing_fn)
        _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "output"))
        _ = (
            out
            | beam.Map(lambda row: json.dumps({name: np.asarray(value).tolist() for name, value in row.items()}))
            | beam.io.WriteToText(str(folder / "rows"), shard_name_template="")
        )
    rows = [json.loads(line) for line in (folder / "rows").read_text().splitlines()]
    transform.collect(folder / "output", FEATURES, folder / "collected")
    return sorted(rows, key=lambda row: row["timestamp"]), folder / "collected"


@pytest.fixture(scope="module")
def by_hand(tmp_path_factory):
    """The folder of vocabularies and statistics as they are found without TFX."""
    folder = tmp_path_factory.mktemp("by_hand")
    columns = {name: np.array([row[name] for row in ROWS]) for name in preprocessing.raw_spec(FEATURES)}

    def values_of(column):
        return [(columns[column.name], None)]

    found = by_hand_lib.vocabularies(FEATURES, values_of), by_hand_lib.statistics(FEATURES, values_of)
    preprocessing.write(folder, *found)
    return folder


def test_vocabularies_and_statistics_are_those_without_tfx(transformed, by_hand):
    _, collected = transformed
    for name in FEATURES.vocabularies:
        found, expected = (set((folder / name).read_text().split()) - {"0"} for folder in (collected, by_hand))
        assert found == expected
    for feature in FEATURES.numbers:
        name = feature.name + preprocessing.STATISTICS_SUFFIX
        found, expected = (np.array((folder / name).read_text().split(), float) for folder in (collected, by_hand))
        np.testing.assert_allclose(found, expected, rtol=1e-6)  # sums of another order


def test_examples_are_those_of_the_same_function_without_tfx(transformed):
    rows, collected = transformed
    preprocessor = preprocessing.load(FEATURES, collected)
    inputs = preprocessor({name: tf.constant(np.array([row[name] for row in ROWS])) for name in ROWS[0]})
    assert set(rows[0]) > set(preprocessing.transformed_spec(FEATURES))
    for name, expected in inputs.items():
        found = np.array([row[name] for row in rows])
        if expected.dtype.is_integer:
            np.testing.assert_array_equal(found, expected, err_msg=name)
        else:  # the last bit of a logarithm depends on the batch
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert OUT_OF_VOCABULARY in inputs["user_id_index"].numpy() or len(set(inputs["user_id_index"].numpy())) > 5
