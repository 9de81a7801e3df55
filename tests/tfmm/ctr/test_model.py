"""Tests of the click model."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm.ctr import model as model_lib
from tfmm.index import encode

SIZES = {"user_id": 7, "item_id": 20, "category": 5}
DIMS = {"image": 8, "text": 6}
LENGTH = 5
MAKE = config_lib.MAKEConfig(attention_units=(6,), units=(8, 6, 4))


def build(modalities=("image", "text"), seed=0, **changes):
    keras.utils.set_random_seed(seed)
    config = config_lib.CTRConfig(modalities=modalities, units=(16, 8), attention_units=(6,), **changes)
    model = model_lib.CTRModel(config, MAKE, SIZES, DIMS, LENGTH)
    model.build()
    for variable in model.trainable_variables:  # embeddings start so small that differences would drown
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=seed))
    return model


def draw_inputs(batch=9, seed=0, dims=DIMS):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, LENGTH + 1, batch)
    valid = np.arange(LENGTH) < lengths[:, None]
    inputs = {
        "user_index": generator.integers(1, SIZES["user_id"], batch),
        "item_index": generator.integers(1, SIZES["item_id"], batch),
        "category_index": generator.integers(0, SIZES["category"], batch),
        "behavior_item_index": generator.integers(1, SIZES["item_id"], (batch, LENGTH)) * valid,
        "behavior_category_index": generator.integers(1, SIZES["category"], (batch, LENGTH)) * valid,
    }
    for modality, dim in dims.items():
        for side, shape, exists in (("target", (batch,), True), ("behavior", (batch, LENGTH), valid)):
            rows, scales = encode.quantize(generator.normal(size=(int(np.prod(shape)), dim)))
            mask = (generator.random(shape) > 0.3) & exists
            inputs[f"{modality}_{side}_rows"] = rows.reshape(*shape, dim) * mask[..., None]
            inputs[f"{modality}_{side}_scales"] = scales.reshape(shape) * mask
            inputs[f"{modality}_{side}_mask"] = mask
    return inputs


def test_score_is_sigmoid_of_logit():
    outputs = build()(draw_inputs())
    np.testing.assert_allclose(outputs["score"], 1 / (1 + np.exp(-outputs["logit"])), rtol=1e-6)
    assert outputs["logit"].shape == (9,)
    assert "float32" in str(outputs["logit"].dtype)


def test_inputs_are_the_named_ones_and_no_others_are_read():
    assert set(draw_inputs()) == set(model_lib.input_names(["image", "text"]))
    id_inputs = {name: draw_inputs()[name] for name in model_lib.ID_INPUTS}
    assert build(modalities=())(id_inputs)["score"].shape == (9,)


@pytest.mark.parametrize("num_candidates", [1, 7, 45])
def test_one_history_for_all_candidates_equals_the_tiled_form(num_candidates):
    model, candidates, user = build(), draw_inputs(num_candidates, seed=1), draw_inputs(1, seed=2)
    is_user_side = [name for name in candidates if "behavior" in name or name == "user_index"]
    shared = {**candidates, **{name: user[name] for name in is_user_side}}
    tiled = {**candidates, **{name: np.repeat(user[name], num_candidates, 0) for name in is_user_side}}
    np.testing.assert_allclose(model(shared)["logit"], model(tiled)["logit"], atol=1e-5)
    for modality in model.modalities:  # int8 rows: the counts are exact
        np.testing.assert_array_equal(model.tiers(shared, modality), model.tiers(tiled, modality))


def test_tiers_follow_the_formula_on_int8_rows():
    model, inputs = build(tier_output="count", num_tiers=10), draw_inputs(30, seed=3)
    counts = np.zeros((30, 10))
    for b in range(30):
        for i in range(LENGTH):
            if inputs["image_target_mask"][b] and inputs["image_behavior_mask"][b, i]:
                dot = np.float32(inputs["image_target_rows"][b].astype(int) @ inputs["image_behavior_rows"][b, i])
                s = dot * inputs["image_target_scales"][b] * inputs["image_behavior_scales"][b, i]
                counts[b, int(np.clip(np.floor((s + np.float32(1)) * np.float32(5)), 0, 9))] += 1
    np.testing.assert_array_equal(model.tiers(inputs, "image"), counts)


def test_missing_embedding_is_counted_apart_and_never_similarity_zero():
    model, inputs = build(tier_output="count"), draw_inputs(1, seed=4)
    inputs["behavior_item_index"] = np.array([[3, 4, 0, 0, 0]])
    for mask, expected in (([True, True], 2), ([True, False], 1), ([False, False], 0)):
        inputs["image_behavior_mask"] = np.array([[*mask, False, False, False]])
        inputs["image_target_mask"] = np.array([True])
        assert model.tiers(inputs, "image").numpy().sum() == expected
    inputs["image_target_mask"] = np.array([False])
    assert model.tiers(inputs, "image").numpy().sum() == 0


def test_missing_count_changes_the_score():
    model, inputs = build(), draw_inputs(1, seed=5)
    inputs["behavior_item_index"] = np.array([[3, 4, 5, 6, 7]])
    inputs["behavior_category_index"] = np.array([[1, 1, 1, 1, 1]])
    inputs["image_behavior_mask"] = np.zeros((1, LENGTH), bool)
    without_vectors = model(inputs)["logit"]
    model.settings = dataclasses.replace(model.settings, use_simtier=False, use_make=False)
    assert np.isfinite(without_vectors).all()
    knowledge = model._knowledge(inputs, "image", inputs["behavior_item_index"] != 0, False)
    np.testing.assert_allclose(knowledge[0], [[np.log(6.0)]], rtol=1e-6)


def test_rows_without_an_embedding_do_not_depend_on_what_stands_in_them():
    model, inputs = build(), draw_inputs(12, seed=6)
    garbage = {name: values.copy() for name, values in inputs.items()}
    for modality in DIMS:
        for side in ("target", "behavior"):
            hidden = ~inputs[f"{modality}_{side}_mask"]
            garbage[f"{modality}_{side}_rows"][hidden] = 77
            garbage[f"{modality}_{side}_scales"][hidden] = 0.5
    np.testing.assert_allclose(model(inputs)["logit"], model(garbage)["logit"], atol=1e-6)


def test_target_without_any_vector_is_scored_from_ids_alone():
    model, inputs = build(), draw_inputs(40, seed=8)
    outputs = {name: values.numpy() for name, values in model(inputs).items()}
    has_vector = inputs["image_target_mask"] | inputs["text_target_mask"]
    np.testing.assert_array_equal(outputs["logit"][~has_vector], outputs["id_logit"][~has_vector])
    assert (np.abs(outputs["logit"] - outputs["id_logit"])[has_vector] > 1e-4).all()
    assert 0 < has_vector.sum() < 40
    assert "id_logit" not in build(modalities=())(inputs) and "id_logit" not in build(id_head=False)(inputs)


@pytest.mark.parametrize(("id_head", "sets"), [(True, [("image",), ("text",)]),
                                               (False, [("image",), ("text",), ("image", "text")])])  # fmt: skip
def test_training_hides_what_a_missing_vector_would_hide(id_head, sets):
    model, inputs = build(id_head=id_head), draw_inputs(30, seed=9)
    outputs = model(inputs, training=True)
    assert model.hidden_sets() == sets
    for hidden in sets:
        without = {**inputs, **{f"{modality}_target_mask": np.zeros(30, bool) for modality in hidden}}
        left = np.any([without[f"{modality}_target_mask"] for modality in DIMS], axis=0) | (not id_head)
        found = outputs[f"logit_without_{'_'.join(hidden)}"].numpy()
        np.testing.assert_allclose(found[left], model(without)["logit"].numpy()[left], atol=1e-5)
    assert not [name for name in model(inputs) if "without" in name]
    assert build(hidden_weight=0.0).hidden_sets() == [] == build(modalities=()).hidden_sets()


def test_losses_count_the_rows_that_their_logits_score():
    model, inputs = build(hidden_weight=0.25), draw_inputs(50, seed=10)
    label, is_row = np.arange(50) % 2, np.arange(50) < 44
    outputs = {name: values.numpy() for name, values in model(inputs, training=True).items()}
    image, text = inputs["image_target_mask"], inputs["text_target_mask"]

    def mean(logit, rows):
        return np.mean((np.log1p(np.exp(logit)) - label * logit)[rows & is_row])

    found = {name: float(value) for name, value in model.losses(inputs, label, is_row).items()}
    hidden = mean(outputs["logit_without_image"], text) + mean(outputs["logit_without_text"], image)
    assert found == pytest.approx({"loss": mean(outputs["logit"], image | text), "loss_hidden": 0.25 * hidden,
                                   "loss_id": mean(outputs["id_logit"], is_row)}, rel=1e-5)  # fmt: skip
    plain = build(id_head=False, hidden_weight=0.0)
    logit = plain(inputs)["logit"].numpy()
    found = {name: float(value) for name, value in plain.losses(inputs, label, is_row).items()}
    assert found == pytest.approx({"loss": mean(logit, is_row)}, rel=1e-5)


def test_ids_learn_from_the_head_of_ids_alone():
    model, inputs = build(), draw_inputs(40, seed=11)
    with tf.GradientTape(persistent=True) as tape:
        losses = model.losses(inputs, np.arange(40) % 2, np.ones(40, bool))
    for variable in model.trainable_variables:
        of_ids = "make_" not in variable.path and "/head/" not in variable.path
        assert (tape.gradient(losses["loss_id"], variable.value) is not None) is of_ids, variable.path
        for name in ("loss", "loss_hidden") if of_ids else ():  # no path, or zeros through the choice of the head
            gradient = tape.gradient(losses[name], variable.value)
            assert gradient is None or not np.abs(tf.convert_to_tensor(gradient)).max(), variable.path


def test_padding_changes_nothing():
    model, inputs = build(), draw_inputs(4, seed=7)
    longer = {}
    for name, values in inputs.items():
        widths = [(0, 0)] * values.ndim
        if "behavior" in name:
            widths[1] = (0, 3)
        longer[name] = np.pad(values, widths)
    np.testing.assert_allclose(model(inputs)["logit"], model(longer)["logit"], atol=1e-5)


def test_saved_model_loads_equal(tmp_path):
    model, inputs = build(use_simtier=True, num_tiers=7), draw_inputs()
    manifest = model_lib.save_model(model, tmp_path, note="x")
    loaded = model_lib.load_model(tmp_path)
    np.testing.assert_array_equal(model(inputs)["logit"], loaded(inputs)["logit"])
    assert (loaded.modalities, loaded.max_behaviors, manifest["note"]) == (("image", "text"), LENGTH, "x")
    rebuilt = model_lib.CTRModel.from_config(model.get_config())
    assert rebuilt.settings == model.settings and rebuilt.dims == model.dims


@pytest.mark.parametrize("changes", [{"use_make": False}, {"use_simtier": False}, {"modalities": ("text",)}])
def test_each_source_of_knowledge_works_alone(changes):
    assert np.isfinite(build(**changes)(draw_inputs())["logit"]).all()


def test_bad_arguments_are_refused():
    config = config_lib.CTRConfig(modalities=("image", "vector"))
    with pytest.raises(ValueError, match=r"Missing: \['vector'\]"):
        model_lib.CTRModel(config, MAKE, SIZES, DIMS, LENGTH)
    with pytest.raises(ValueError, match="`vocabulary_sizes` must give at least 2"):
        model_lib.CTRModel(config_lib.CTRConfig(), MAKE, {**SIZES, "category": 1}, {}, LENGTH)
    config = config_lib.CTRConfig(modalities=("image",), use_simtier=False, use_make=False)
    with pytest.raises(ValueError, match="`use_simtier` or `use_make` must be True"):
        model_lib.CTRModel(config, MAKE, SIZES, DIMS, LENGTH)
