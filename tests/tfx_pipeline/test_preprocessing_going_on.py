"""Transform over a new span: the parent's ids keep their places, new ones follow, scales stay."""

import functools
import json

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf

from tfmm import config, preprocessing
from tfmm.data import transform as by_hand
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet

pytest.importorskip("tensorflow_transform", reason="TFX is not installed")

import tensorflow_transform.beam as tft_beam
from tensorflow_transform.tf_metadata import dataset_metadata, schema_utils

from tfx_pipeline import preprocessing as transform

FEATURES = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("price", "item", "number"),
        Feature("level", "item", "number", scaling="quantiles", num_quantiles=4),
        Feature("brand", "item"),
        Feature("city", "user", num_buckets=5),
    )
).resolved(max_behaviors=3, min_count=2)


def draw_rows(new):
    generator = np.random.default_rng(1)
    rows = []
    for place in range(120):
        row = {"timestamp": np.int64(place), "label": np.int64(place % 2)}
        for column in FEATURES.columns:
            if column.is_float:
                row[column.name] = np.float32(generator.gamma(2.0, 10.0))
            else:
                highest = 4 if column.feature.name == "brand" and not new else 9
                row[column.name] = generator.integers(0, highest, column.shape)
        rows.append(row)
    return rows


@pytest.mark.parametrize("new", [True, False], ids=["new brands", "no new brand"])
def test_transform_goes_on_as_it_does_without_tfx(tmp_path, new):
    rows = draw_rows(new)
    parents = {name: np.array([7, 0, 3, 1, 2]) for name in FEATURES.vocabularies}  # of a Transform: with padding
    statistics = {f.name: np.array([3.0, 0.5, 7.0][: 3 if f.scaling == "quantiles" else 2]) for f in FEATURES.numbers}
    preprocessing.write(tmp_path / "parent", parents, statistics)
    spec = preprocessing.raw_spec(FEATURES)
    metadata = dataset_metadata.DatasetMetadata(schema_utils.schema_from_feature_spec(spec))
    custom = {"feature_set": json.dumps(config.to_dict(FEATURES)), "parent": str(tmp_path / "parent")}
    preprocessing_fn = functools.partial(transform.preprocessing_fn, custom_config=custom)
    with beam.Pipeline(runner="FnApiRunner") as pipeline, tft_beam.Context(temp_dir=str(tmp_path / "temp")):
        data = pipeline | beam.Create(rows)
        (out, _), transform_fn = (data, metadata) | tft_beam.AnalyzeAndTransformDataset(preprocessing_fn)
        _ = transform_fn | tft_beam.WriteTransformFn(str(tmp_path / "output"))
        _ = (
            out
            | beam.Map(lambda row: json.dumps({name: np.asarray(value).tolist() for name, value in row.items()}))
            | beam.io.WriteToText(str(tmp_path / "rows"), shard_name_template="")
        )
    transform.collect(tmp_path / "output", FEATURES, tmp_path / "collected", tmp_path / "parent")
    found = preprocessing.vocabularies(FEATURES, tmp_path / "collected")
    columns = {name: np.array([row[name] for row in rows]) for name in spec}
    fresh = by_hand.vocabularies(FEATURES, lambda column: [(columns[column.name], None)])
    for name, ids in preprocessing.extended(parents, fresh).items():
        np.testing.assert_array_equal(found[name][:5], parents[name])
        assert set(found[name].tolist()) - {-1} == set(ids.tolist())  # of no new id Transform makes a -1
        assert len(set(found[name].tolist())) == len(found[name])
    for feature in FEATURES.numbers:
        name = feature.name + preprocessing.STATISTICS_SUFFIX
        assert (tmp_path / "collected" / name).read_bytes() == (tmp_path / "parent" / name).read_bytes()
    preprocessor = preprocessing.load(FEATURES, tmp_path / "collected")
    inputs = preprocessor({name: tf.constant(values) for name, values in columns.items()})
    made = sorted((json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()),
                  key=lambda row: row["timestamp"])  # fmt: skip
    for name, expected in inputs.items():
        np.testing.assert_allclose(np.array([row[name] for row in made]), expected, rtol=1e-6, err_msg=name)
