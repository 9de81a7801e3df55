"""Exported scores equal the Keras model's on the same int8 rows."""

import dataclasses
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import saved_model as saved_model_lib
from tfmm.export import parity, saved_model
from tfmm.features import Feature, FeatureSet

INT64 = dict.fromkeys(("user_id", "item_id", "category"), "int64")


def check(exported, examples):
    return parity.check(
        exported.version_dir, exported.model_dir, exported.shop.vocabularies, exported.snapshot, examples
    )


def test_scores_equal_the_keras_model(multimodal, examples):
    result = check(multimodal, examples)
    assert result.num_rows == 100 and result.holds, result


@pytest.mark.slow
def test_scores_of_the_twin_without_xla_and_of_ids_alone_equal_it_too(export_model, ids_alone, examples):
    config = config_lib.ExportConfig(index_capacity=400, batch_buckets=(8,), candidate_buckets=(8,), jit_compile=False)
    assert check(export_model(config=config), examples).holds
    assert check(ids_alone, examples).holds


def test_logged_rows_are_scored_with_what_is_known_in_training_only(shop, examples, write_own_model, tmp_path):
    """Examples with a position are scored at it, others at the value of serving."""
    position = Feature("position", "context", "number", serving_value=1)
    features = FeatureSet((*shop.features.features, position), shop.features.sequences)
    shutil.copytree(shop.vocabularies, tmp_path / "vocabulary")
    (tmp_path / "vocabulary" / "position_statistics").write_text("3.0 0.5\n")
    of_shop = dataclasses.replace(shop, features=features)
    write_own_model(of_shop, tmp_path / "model", (), tmp_path / "vocabulary")
    config = config_lib.ExportConfig(batch_buckets=(64,), candidate_buckets=(64,))
    saved_model.export(tmp_path / "model", tmp_path / "vocabulary", None, INT64, config, tmp_path / "tfmm" / "1")

    def at(place):
        changed = [tf.train.Example.FromString(record) for record in examples]
        for example in changed:
            example.features.feature["position"].float_list.value.append(place)
        return [example.SerializeToString() for example in changed]

    records = examples, at(1.0), at(5.0)
    everything = [record for some in records for record in some]
    version = tmp_path / "tfmm" / "1"
    assert parity.check(version, tmp_path / "model", tmp_path / "vocabulary", None, everything).holds
    with saved_model_lib.load_session(version) as loaded:
        assert "position" not in loaded.signatures["rank"].inputs
        served, first, fifth = (loaded("serve_examples", {"examples": some})["score"] for some in records)
    np.testing.assert_array_equal(served, first)
    assert np.abs(fifth - first).min() > 1e-4


def test_examples_are_needed(multimodal):
    with pytest.raises(ValueError, match="at least one"):
        check(multimodal, [])
