"""Tests of behaviors' vectors hidden in training."""

import numpy as np
import tensorflow as tf

from tfmm import config as config_lib
from tfmm.ctr.hidden_vectors import hide_behaviors
from tfmm.make import item_vectors
from tfmm.make import train as make_train

ROWS, LENGTH = 6000, 4


def columns(modalities=("image", "text")):
    rows = {"item_index": np.arange(ROWS, dtype=np.int32)}
    for modality in modalities:
        rows[f"{modality}_target_slot"] = np.full(ROWS, 3, np.int32)
        rows[f"{modality}_behavior_slots"] = np.full((ROWS, LENGTH), 2, np.int32)
    return rows


def config(modalities=("image", "text"), **changes):
    return config_lib.CTRConfig(modalities=modalities, **changes)


def test_behaviors_lose_any_share_of_their_vectors():
    rows = hide_behaviors(columns(), config(hidden_behaviors_fraction=0.5), 0)
    lost = (rows["image_behavior_slots"] == 0).sum(axis=1)
    # half of the rows; a binomial with a chance drawn from 0..1 gives each count as often
    expected = 0.5 * np.eye(LENGTH + 1)[0] + 0.5 / (LENGTH + 1)
    np.testing.assert_allclose(np.bincount(lost, minlength=LENGTH + 1) / ROWS, expected, atol=0.03)  # 4 standard errors
    assert ((rows["image_behavior_slots"] == 0) != (rows["text_behavior_slots"] == 0)).any()
    assert (rows["image_target_slot"] == 3).all()


def test_draws_follow_from_seed_and_segment_alone():
    first, again, later, other = (
        hide_behaviors(columns(), config(seed=seed), segment) for seed, segment in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])
        assert first[name].dtype == columns()[name].dtype
    for different in (later, other):
        assert (first["image_behavior_slots"] != different["image_behavior_slots"]).any()


def test_fraction_of_0_and_models_of_ids_change_nothing():
    rows = columns()
    kept = hide_behaviors(rows, config(hidden_behaviors_fraction=0.0), 0)
    assert all((kept[name] == rows[name]).all() for name in rows)
    assert hide_behaviors(rows, config(()), 0).keys() == rows.keys()


def test_hidden_slots_are_masked_like_items_that_never_had_a_vector():
    table = item_vectors.ItemVectors(np.arange(1, 5), np.ones((4, 2), np.int8), np.ones(4, np.float32))
    rows = hide_behaviors(columns(("image",)), config(("image",), hidden_behaviors_fraction=0.5), 0)
    inputs = make_train.vector_inputs({name: tf.constant(values) for name, values in rows.items()}, {"image": table})
    np.testing.assert_array_equal(inputs["image_behavior_mask"], rows["image_behavior_slots"] != 0)
    assert not inputs["image_behavior_rows"].numpy()[rows["image_behavior_slots"] == 0].any()
