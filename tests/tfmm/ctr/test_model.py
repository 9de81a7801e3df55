"""Tests of the click model."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Sequence
from tfmm.index import encode

SIZES = {"user_id": 7, "item_id": 20, "category": 5}
DIMS = {"image": 8, "text": 6}
LENGTH = 5
FEATURES = FeatureSet().resolved(max_behaviors=LENGTH, min_count=1)
MAKE = config_lib.MAKEConfig(attention_units=(6,), units=(8, 6, 4))


def methods(*names, **simtier):
    return [config_lib.Method(name, simtier if name == "simtier" else {}) for name in names or ("simtier", "make")]


def build(modalities=("image", "text"), seed=0, chosen=None, **changes):
    keras.utils.set_random_seed(seed)
    config = config_lib.CTRConfig(units=(16, 8), attention_units=(6,), **changes)
    model = model_lib.CTRModel(config, MAKE, FEATURES, SIZES, {m: DIMS[m] for m in modalities}, chosen or methods())
    model.build()
    for variable in model.trainable_variables:  # embeddings start so small that differences would drown
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=seed))
    return model


def draw_inputs(batch=9, seed=0, dims=DIMS):
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, LENGTH + 1, batch)
    valid = np.arange(LENGTH) < lengths[:, None]
    inputs = {
        "user_id_index": generator.integers(1, SIZES["user_id"], batch),
        "item_id_index": generator.integers(1, SIZES["item_id"], batch),
        "category_index": generator.integers(0, SIZES["category"], batch),
        "behavior_item_ids_index": generator.integers(1, SIZES["item_id"], (batch, LENGTH)) * valid,
        "behavior_categories_index": generator.integers(1, SIZES["category"], (batch, LENGTH)) * valid,
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
    assert set(draw_inputs()) == set(model_lib.input_names(FEATURES, ["image", "text"]))
    id_inputs = {name: draw_inputs()[name] for name in model_lib.input_names(FEATURES, [])}
    assert build(modalities=())(id_inputs)["score"].shape == (9,)


@pytest.mark.parametrize("num_candidates", [1, 7, 45])
def test_one_history_for_all_candidates_equals_the_tiled_form(num_candidates):
    model, candidates, user = build(), draw_inputs(num_candidates, seed=1), draw_inputs(1, seed=2)
    is_user_side = [name for name in candidates if "behavior" in name or name == "user_id_index"]
    shared = {**candidates, **{name: user[name] for name in is_user_side}}
    tiled = {**candidates, **{name: np.repeat(user[name], num_candidates, 0) for name in is_user_side}}
    np.testing.assert_allclose(model(shared)["logit"], model(tiled)["logit"], atol=1e-5)
    for modality in model.modalities:  # int8 rows: the counts are exact
        np.testing.assert_array_equal(model.tiers(shared, modality), model.tiers(tiled, modality))


def test_tiers_follow_the_formula_on_int8_rows():
    model, inputs = build(chosen=methods(tier_output="count", num_tiers=10)), draw_inputs(30, seed=3)
    counts = np.zeros((30, 10))
    for b in range(30):
        for i in range(LENGTH):
            if inputs["image_target_mask"][b] and inputs["image_behavior_mask"][b, i]:
                dot = np.float32(inputs["image_target_rows"][b].astype(int) @ inputs["image_behavior_rows"][b, i])
                s = dot * inputs["image_target_scales"][b] * inputs["image_behavior_scales"][b, i]
                counts[b, int(np.clip(np.floor((s + np.float32(1)) * np.float32(5)), 0, 9))] += 1
    np.testing.assert_array_equal(model.tiers(inputs, "image"), counts)


def test_missing_embedding_is_counted_apart_and_never_similarity_zero():
    model, inputs = build(chosen=methods(tier_output="count")), draw_inputs(1, seed=4)
    inputs["behavior_item_ids_index"] = np.array([[3, 4, 0, 0, 0]])
    for mask, expected in (([True, True], 2), ([True, False], 1), ([False, False], 0)):
        inputs["image_behavior_mask"] = np.array([[*mask, False, False, False]])
        inputs["image_target_mask"] = np.array([True])
        assert model.tiers(inputs, "image").numpy().sum() == expected
    inputs["image_target_mask"] = np.array([False])
    assert model.tiers(inputs, "image").numpy().sum() == 0


def test_missing_count_changes_the_score():
    model, inputs = build(), draw_inputs(1, seed=5)
    inputs["behavior_item_ids_index"] = np.array([[3, 4, 5, 6, 7]])
    inputs["behavior_categories_index"] = np.array([[1, 1, 1, 1, 1]])
    inputs["image_target_mask"] = np.zeros(1, bool)  # no tier and no knowledge: only the count is left to differ
    logits = []
    for missing in (0, 2, 5):
        inputs["image_behavior_mask"] = np.arange(LENGTH)[None] >= missing
        logits.append(float(model(inputs)["logit"][0]))
    assert len(set(logits)) == 3


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
        found = outputs[model_lib.hidden_name(hidden)].numpy()
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
    of_vectors = [v for layer in (model.head, *model.integrations.values()) for v in layer.trainable_variables]
    for variable in model.trainable_variables:
        of_ids = all(variable is not other for other in of_vectors)
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
    model, inputs = build(chosen=methods(num_tiers=7)), draw_inputs()
    manifest = model_lib.save_model(model, tmp_path, note="x")
    loaded = model_lib.load_model(tmp_path)
    np.testing.assert_array_equal(model(inputs)["logit"], loaded(inputs)["logit"])
    assert (loaded.modalities, loaded.feature_set, manifest["note"]) == (("image", "text"), FEATURES, "x")
    rebuilt = model_lib.CTRModel.from_config(model.get_config())
    assert rebuilt.settings == model.settings and rebuilt.dims == model.dims


ALL_METHODS = ("simtier", "make", "vector", "simscore", "semantic_id", "sa_ta")


@pytest.mark.parametrize("chosen", [*([name] for name in ALL_METHODS), ALL_METHODS, ("behavior_search", *ALL_METHODS)])
def test_each_method_changes_the_score_by_the_vectors_it_sees(chosen):
    model, inputs = build(chosen=methods(*chosen)), draw_inputs(40, seed=8)
    for modality in DIMS:
        model.fit_vectors(modality, np.random.default_rng(0).normal(size=(200, DIMS[modality])).astype(np.float32))
    logits = model(inputs)["logit"].numpy()
    assert np.isfinite(logits).all()
    turned = model({**inputs, "image_target_rows": -inputs["image_target_rows"]})["logit"].numpy()
    is_seen = inputs["image_behavior_mask"] & (inputs["behavior_item_ids_index"] > 0)
    sees = inputs["image_target_mask"] & is_seen.any(1)
    assert np.abs(turned - logits)[sees].max() > 1e-3
    np.testing.assert_array_equal(turned[~inputs["image_target_mask"]], logits[~inputs["image_target_mask"]])


@pytest.mark.parametrize("chosen", [ALL_METHODS, ("behavior_search", *ALL_METHODS)])
def test_methods_score_one_history_for_all_as_the_tiled_form(chosen):
    model, candidates, user = build(chosen=methods(*chosen)), draw_inputs(7, seed=1), draw_inputs(1, seed=2)
    is_user_side = [name for name in candidates if "behavior" in name or name == "user_id_index"]
    shared = {**candidates, **{name: user[name] for name in is_user_side}}
    tiled = {**candidates, **{name: np.repeat(user[name], 7, 0) for name in is_user_side}}
    np.testing.assert_allclose(model(shared)["logit"], model(tiled)["logit"], atol=1e-5)


class Recency(integrations.Integration):
    """An integration of a user's own: how alike the newest behavior is."""

    def __init__(self, scale=1.0, name=None):
        super().__init__(name=name)
        self.scale = scale

    def parts(self, context):
        newest = keras.ops.max(keras.ops.where(context.both_exist, context.similarity(), -1.0), axis=1)
        return [newest[:, None] * self.scale]


def test_method_of_a_users_own_is_found_by_name_and_takes_its_settings(monkeypatch):
    import sys
    import types

    module = types.ModuleType("my_team_methods")
    module.Recency = Recency
    monkeypatch.setitem(sys.modules, "my_team_methods", module)
    own = config_lib.Method("my_team_methods:Recency", {"scale": 3.0})
    model = build(chosen=[own])
    assert model.integrations["my_team_methods.Recency-image-behavior"].scale == 3.0
    inputs = draw_inputs(20, seed=9)
    turned = {**inputs, "text_behavior_rows": -inputs["text_behavior_rows"]}
    assert np.abs(model(inputs)["logit"] - model(turned)["logit"]).max() > 1e-3
    with pytest.raises(ValueError, match=r"has the settings \['scale'\]. Received: \['speed'\]"):
        build(chosen=[config_lib.Method("my_team_methods:Recency", {"speed": 1})])


RICH = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("city", "user", num_buckets=50, dim=4),
        Feature("income", "user", "number", scaling="log"),
        Feature("brand", "item", dim=4),
        Feature("price", "item", "number"),
        Feature("price_level", "item", "number", source="items.price", scaling="quantiles", num_quantiles=4, dim=3),
        Feature("tags", "item", "ids", max_values=3, dim=4),
        Feature("is_mobile", "context", "boolean", source="impressions.is_mobile", dim=2),
        Feature("hour", "context", "time", source="impressions.timestamp", dim=3),
        Feature("position", "context", "number", serving_value=1),
        Feature("age", "behavior", "number", source="behaviors.age", scaling="log"),
    ),
    (
        Sequence("clicks", ("click",), 4, ("item_id", "category", "price", "age")),
        Sequence("purchases", ("purchase",), 6, ("item_id", "brand"), make=False),
    ),
)
RICH_SIZES = {**SIZES, "city": 52, "brand": 9, "price_level": 5, "tags": 8, "is_mobile": 3, "hour": 25}


def rich_inputs(batch, seed=0):
    generator = np.random.default_rng(seed)
    inputs = {}
    for column in RICH.columns:
        shape = (batch, *column.shape)
        if column.feature.is_embedded:
            inputs[column.input] = generator.integers(0, RICH_SIZES[column.feature.embedding], shape)
        else:
            inputs[column.input] = np.where(generator.random(shape) < 0.2, np.nan, generator.normal(size=shape))
            inputs[column.input] = inputs[column.input].astype(np.float32)
    for modality, dim in DIMS.items():
        for side in ("target", "clicks", "purchases"):
            ids = None if side == "target" else f"{side}_item_id_index"
            shape = (batch,) if ids is None else inputs[ids].shape
            rows, scales = encode.quantize(generator.normal(size=(int(np.prod(shape)), dim)))
            mask = (generator.random(shape) > 0.3) & (True if ids is None else inputs[ids] > 0)
            parts = (rows.reshape(*shape, dim) * mask[..., None], scales.reshape(shape) * mask, mask)
            inputs |= {f"{modality}_{side}_{name}": part for name, part in zip(("rows", "scales", "mask"), parts)}
    return inputs


def build_rich(chosen=("simtier", "make", "simscore")):
    keras.utils.set_random_seed(0)
    config = config_lib.CTRConfig(units=(16, 8), attention_units=(6,))
    model = model_lib.CTRModel(config, MAKE, RICH, RICH_SIZES, DIMS, methods(*chosen))
    model.build()
    for variable in model.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=0))
    return model


def test_every_declared_column_changes_the_score():
    model, inputs = build_rich(), rich_inputs(64)
    before = model(inputs)["logit"].numpy()
    assert np.isfinite(before).all()
    for column in RICH.columns:
        values = inputs[column.input]
        changed = (values + 1) % RICH_SIZES[column.feature.embedding] if column.feature.is_embedded else values + 1
        after = model({**inputs, column.input: changed})["logit"].numpy()
        assert np.abs(after - before).max() > 1e-4, column.name


def test_missing_number_is_not_zero():
    model, inputs = build_rich(), rich_inputs(8)
    for column in RICH.columns:
        if not column.feature.is_embedded and column.sequence is None:
            zero, missing = (
                model({**inputs, column.input: np.full_like(inputs[column.input], value)})["logit"]
                for value in (0.0, np.nan)
            )
            assert np.abs(zero - missing).max() > 1e-4, column.name


def test_sequence_that_make_does_not_read_has_no_extractor():
    assert sorted(name for name, _ in build_rich().make_blocks()) == ["image_clicks", "text_clicks"]


def test_rich_model_scores_one_user_for_all_candidates_as_the_tiled_form_and_loads_equal(tmp_path):
    model, candidates, user = build_rich(), rich_inputs(9, seed=1), rich_inputs(1, seed=2)
    own = {c.input for c in RICH.columns if c.side == "user"}
    is_user_side = [n for n in candidates if n in own or "_clicks_" in n or "_purchases_" in n]
    shared = {**candidates, **{name: user[name] for name in is_user_side}}
    tiled = {**candidates, **{name: np.repeat(user[name], 9, 0) for name in is_user_side}}
    np.testing.assert_allclose(model(shared)["logit"], model(tiled)["logit"], atol=1e-5)
    model_lib.save_model(model, tmp_path)
    np.testing.assert_array_equal(model_lib.load_model(tmp_path)(tiled)["logit"], model(tiled)["logit"])


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="`sizes` must give at least 2"):
        model_lib.CTRModel(config_lib.CTRConfig(), MAKE, FEATURES, {**SIZES, "category": 1}, {})
    with pytest.raises(ValueError, match="`methods` must name at least one way"):
        model_lib.CTRModel(config_lib.CTRConfig(), MAKE, FEATURES, SIZES, DIMS, [])
    with pytest.raises(ValueError, match="A method must be one of simtier, make"):
        build(chosen=methods("simtiers"))
    with pytest.raises(ValueError, match="must name an importable class"):
        build(chosen=methods("no_such_module:Recency"))


@pytest.mark.parametrize("chosen", [ALL_METHODS, ("behavior_search", "simtier", "sa_ta"), ("simscore",)])
def test_hiding_is_exact_whatever_the_methods(chosen):
    model, inputs = build(chosen=methods(*chosen)), draw_inputs(30, seed=12)
    outputs = model(inputs, training=True)
    for hidden in model.hidden_sets():
        without = {**inputs, **{f"{modality}_target_mask": np.zeros(30, bool) for modality in hidden}}
        left = np.any([without[f"{modality}_target_mask"] for modality in DIMS], axis=0)
        found = outputs[model_lib.hidden_name(hidden)].numpy()
        np.testing.assert_allclose(found[left], model(without)["logit"].numpy()[left], atol=1e-5)
