import functools

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from tfmm import features
from tfmm.data import examples

pytest.importorskip("tensorflow_transform", reason="TFX is not installed")

import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from tfx_pipeline import preprocessing

L = 3
ROWS = [
    {
        "user_id": 1,
        "item_id": 10,
        "category": 5,
        "behavior_item_ids": [20, 10, 0],
        "behavior_categories": [5, 5, 0],
        "timestamp": 100,
        "label": 1,
    },
    {
        "user_id": 1,
        "item_id": 20,
        "category": 5,
        "behavior_item_ids": [10, 0, 0],
        "behavior_categories": [5, 0, 0],
        "timestamp": 90,
        "label": 0,
    },
    {
        "user_id": -2,
        "item_id": 30,
        "category": 0,
        "behavior_item_ids": [0, 0, 0],
        "behavior_categories": [0, 0, 0],
        "timestamp": 80,
        "label": 0,
    },
]


@pytest.fixture(scope="module")
def transformed(tmp_path_factory):
    """The rows as Transform makes them, and its output folder."""
    folder = tmp_path_factory.mktemp("transform")
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(features.raw_spec(L)))
    rows = [{name: np.array(value, np.int64) for name, value in row.items()} for row in ROWS]
    preprocessing_fn = functools.partial(preprocessing.preprocessing_fn, custom_config={"min_id_count": 2})
    with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(folder / "temp")):
        data = pipeline | beam.Create(rows)
        (out, _), transform_fn = (data, metadata) | tft_beam.AnalyzeAndTransformDataset(preprocessing_fn)
        _ = transform_fn | tft_beam.WriteTransformFn(str(folder / "output"))
        _ = (
            out
            | beam.Map(lambda row: sorted((k, np.asarray(v).tolist()) for k, v in row.items()))
            | beam.io.WriteToText(str(folder / "rows"), shard_name_template="")
        )
    lines = (folder / "rows").read_text().splitlines()
    return [dict(eval(line)) for line in lines], tft.TFTransformOutput(str(folder / "output"))


def test_vocabularies_hold_the_ids_that_are_frequent_enough(transformed):
    _, output = transformed
    found = {
        name: {int(line) for line in output.vocabulary_by_name(name)} - {0} for name in features.VOCABULARIES
    }
    columns = {name: np.array([row[name] for row in ROWS]) for name in features.raw_spec(L)}
    by_hand = {name: set(ids.tolist()) for name, ids in examples.vocabularies(columns, 2).items()}
    assert found == by_hand == {"user_id": {1}, "item_id": {10, 20}, "category": {5}}


def test_indices_are_those_of_the_same_function_without_tfx(transformed):
    rows, output = transformed
    lookups = {
        name: features.vocabulary_lookup(output.vocabulary_file_by_name(name))[0]
        for name in features.VOCABULARIES
    }
    for raw, row in zip(ROWS, sorted(rows, key=lambda r: -r["timestamp"]), strict=True):
        expected = features.preprocess(
            {name: tf.constant(value, tf.int64) for name, value in raw.items()}, lookups
        )
        assert row == {name: value.numpy().tolist() for name, value in expected.items()}
        assert row["item_id_index"] == features.OUT_OF_VOCABULARY or row["item_id"] != 30
