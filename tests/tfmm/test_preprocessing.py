"""Tests of the one function from raw columns to the model's inputs."""

import numpy as np
import pytest
import tensorflow as tf

from tfmm import preprocessing
from tfmm.features import DEFAULT_FEATURES, DEFAULT_SEQUENCES, OUT_OF_VOCABULARY, PADDING, Feature, FeatureSet

DEFAULT = FeatureSet().resolved(max_behaviors=2, min_count=1)
HOUR_US = 3_600_000_000


def preprocessor(*features, vocabularies=None, statistics=None):
    declared = FeatureSet((*DEFAULT_FEATURES, *features), DEFAULT_SEQUENCES).resolved(2, 1)
    found = dict.fromkeys(declared.vocabularies, np.array([30, 10])) | (vocabularies or {})
    return preprocessing.Preprocessor(declared, found, statistics or {})


def test_padding_unknown_and_known_ids_get_their_indices():
    of_default = preprocessor()
    index = of_default({"item_id": tf.constant([30, 10, 99, 0], tf.int64)})["item_id_index"]
    assert index.numpy().tolist() == [2, 3, OUT_OF_VOCABULARY, PADDING]
    assert of_default.sizes == {"user_id": 4, "item_id": 4, "category": 4}


def test_data_without_any_id_of_a_feature_has_them_missing_or_unknown():
    """Such as a catalog without categories."""
    nothing = preprocessor(vocabularies={"category": np.zeros(0, np.int64)})
    index = nothing({"category": tf.constant([0, 7], tf.int64)})["category_index"]
    assert index.numpy().tolist() == [PADDING, OUT_OF_VOCABULARY] and nothing.sizes["category"] == 2


def test_target_and_behaviors_share_the_item_vocabulary():
    raw = {"item_id": tf.constant([10], tf.int64), "behavior_item_ids": tf.constant([[10, 0]], tf.int64)}
    out = preprocessor()(raw)
    assert out["behavior_item_ids_index"].numpy().tolist() == [[out["item_id_index"].numpy()[0], 0]]


def test_hash_buckets_need_no_vocabulary_and_keep_missing_apart():
    hashed = preprocessor(Feature("city", "user", num_buckets=10))
    index = hashed({"city": tf.constant([0, 3, 13, -7, 2**62], tf.int64)})["city_index"].numpy()
    assert index.tolist() == [0, 5, 5, 5, 2**62 % 10 + 2]
    assert hashed.sizes["city"] == 12 > index.max()


def test_numbers_are_standardized_and_missing_stays_missing():
    features = Feature("price", "item", "number"), Feature("income", "user", "number", scaling="log")
    scaled = preprocessor(*features, statistics={"price": [10.0, 0.5], "income": [1.0, 2.0]})
    out = scaled({name: tf.constant([np.nan, 12.0, -1.0]) for name in ("price", "income")})
    np.testing.assert_allclose(out["price_value"], [np.nan, 1.0, -5.5])
    np.testing.assert_allclose(out["income_value"], [np.nan, 2 * (np.log(13) - 1), 2 * (-np.log(2) - 1)], rtol=1e-6)


def test_what_is_no_number_is_missing_and_what_is_far_is_bounded():
    wild = tf.constant([np.inf, -np.inf, np.nan, 3e38, 1e20, -1e20, 2.0])
    features = Feature("price", "item", "number"), Feature("seen", "item", "boolean")
    levels = Feature("level", "item", "number", scaling="quantiles", num_quantiles=2)
    wild_ones = preprocessor(*features, levels, statistics={"price": [1.0, 0.5], "level": [5.0]})
    out = wild_ones({"price": wild, "level": wild, "seen": wild})
    np.testing.assert_array_equal(out["price_value"], [np.nan] * 4 + [1e6, -1e6, 0.5])
    assert out["level_index"].numpy().tolist() == [0, 0, 0, 0, 2, 1, 1]
    assert out["seen_index"].numpy().tolist() == [0, 0, 0, 0, 2, 1, 2]


def test_quantiles_number_from_one_and_missing_is_zero():
    levels = preprocessor(
        Feature("price", "item", "number", scaling="quantiles", num_quantiles=3), statistics={"price": [1.0, 5.0]}
    )
    index = levels({"price": tf.constant([[np.nan, 0.5, 1.0, 4.9, 5.0, 9e9]])})["price_index"]
    assert index.numpy().tolist() == [[0, 1, 2, 2, 3, 3]]
    assert levels.sizes["price"] == 4


def test_booleans_and_times_have_a_state_for_missing():
    both = preprocessor(
        Feature("is_mobile", "context", "boolean"),
        Feature("hour", "context", "time"),
        Feature("weekday", "context", "time", part="weekday"),
    )
    index = both({"is_mobile": tf.constant([np.nan, 0.0, 1.0])})["is_mobile_index"]
    assert index.numpy().tolist() == [0, 1, 2]
    times = tf.constant([0, 5 * HOUR_US, 4 * 24 * HOUR_US, -HOUR_US], tf.int64)  # none, Thursday, Monday, Wednesday
    out = both({"hour": times, "weekday": times})
    assert out["hour_index"].numpy().tolist() == [0, 6, 1, 24]
    assert out["weekday_index"].numpy().tolist() == [0, 4, 1, 3]


def test_what_was_written_is_loaded_to_the_last_bit(tmp_path):
    declared = FeatureSet((*DEFAULT_FEATURES, Feature("price", "item", "number"))).resolved(2, 1)
    statistics = {"price": np.array([np.float32(1) / 3, 1e-7], np.float32)}
    preprocessing.write(tmp_path, dict.fromkeys(declared.vocabularies, np.array([-7, 12])), statistics)
    loaded = preprocessing.load(declared, tmp_path)
    out = loaded({"item_id": tf.constant([12, -7, 1], tf.int64), "price": tf.constant([1.0])})
    assert out["item_id_index"].numpy().tolist() == [3, 2, 1]
    assert out["price_value"].numpy()[0] == (np.float32(1) - statistics["price"][0]) * statistics["price"][1]
    (tmp_path / "category").unlink()
    with pytest.raises(FileNotFoundError, match=r"category is missing\. Transform the examples first"):
        preprocessing.load(declared, tmp_path)


def test_transformed_spec_has_raw_columns_and_inputs():
    declared = FeatureSet((*DEFAULT_FEATURES, Feature("tags", "item", "ids", max_values=3))).resolved(5, 1)
    spec = preprocessing.transformed_spec(declared)
    assert list(spec["behavior_item_ids_index"].shape) == [5] and list(spec["tags"].shape) == [3]
    assert set(preprocessing.raw_spec(declared)) < set(spec)
    assert list(spec["user_id_index"].shape) == []
