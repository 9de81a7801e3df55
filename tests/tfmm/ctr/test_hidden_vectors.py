"""Tests of behaviors' vectors hidden in training."""

import numpy as np
import tensorflow as tf

from tfmm import config as config_lib
from tfmm.ctr.hidden_vectors import hide_behaviors
from tfmm.features import FeatureSet
from tfmm.index import item_vectors

ROWS, LENGTH = 6000, 4
FEATURES = FeatureSet().resolved(max_behaviors=LENGTH, min_count=1)


def columns(modalities=("image", "text")):
    rows = {"item_id_index": np.arange(ROWS, dtype=np.int32)}
    for modality in modalities:
        rows[f"{modality}_target_slots"] = np.full(ROWS, 3, np.int32)
        rows[f"{modality}_behavior_slots"] = np.full((ROWS, LENGTH), 2, np.int32)
    return rows


def hide(rows, segment=0, modalities=("image", "text"), batch=0, **changes):
    return hide_behaviors(config_lib.CTRConfig(**changes), modalities, FEATURES, segment, rows, batch)


def test_behaviors_lose_any_share_of_their_vectors():
    rows = hide(columns(), hidden_behaviors_fraction=0.5)
    lost = (rows["image_behavior_slots"] == 0).sum(axis=1)
    # half of the rows; a binomial with a chance drawn from 0..1 gives each count as often
    expected = 0.5 * np.eye(LENGTH + 1)[0] + 0.5 / (LENGTH + 1)
    np.testing.assert_allclose(np.bincount(lost, minlength=LENGTH + 1) / ROWS, expected, atol=0.03)  # 4 standard errors
    assert ((rows["image_behavior_slots"] == 0) != (rows["text_behavior_slots"] == 0)).any()
    assert (rows["image_target_slots"] == 3).all()


def test_draws_follow_from_seed_segment_and_batch_alone():
    places = ((0, 3, 0), (0, 3, 0), (0, 4, 0), (1, 3, 0), (0, 3, 1))
    first, again, later, other, following = (
        hide(columns(), segment, seed=seed, batch=batch) for seed, segment, batch in places
    )
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert first[name].dtype == columns()[name].dtype
    for different in (later, other, following):
        assert (first["image_behavior_slots"] != different["image_behavior_slots"]).any()


def test_fraction_of_0_and_models_of_ids_change_nothing():
    rows = columns()
    kept = hide(rows, hidden_behaviors_fraction=0.0)
    assert all((kept[name] == rows[name]).all() for name in rows)
    assert hide(rows, modalities=()).keys() == rows.keys()


def test_hidden_slots_are_masked_like_items_that_never_had_a_vector():
    table = item_vectors.ItemVectors(np.arange(1, 5), np.ones((4, 2), np.int8), np.ones(4, np.float32))
    rows = hide(columns(("image",)), modalities=("image",), hidden_behaviors_fraction=0.5)
    batch = {name: tf.constant(values) for name, values in rows.items()}
    inputs = item_vectors.vector_inputs(batch, {"image": table}, FEATURES)
    np.testing.assert_array_equal(inputs["image_behavior_mask"], rows["image_behavior_slots"] != 0)
    assert not inputs["image_behavior_rows"].numpy()[rows["image_behavior_slots"] == 0].any()
