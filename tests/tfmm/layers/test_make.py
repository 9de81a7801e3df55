import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import MAKEBlock, unit_vectors
from tfmm.testing import check_layer

SMALL = {"units": (8, 6, 4), "attention_units": (5,)}
DICE = {**SMALL, "activation": "dice", "attention_activation": "dice"}


def test_outputs_follow_equations_3_and_4(make_unit, rng):
    target, behaviors, mask = make_unit(3, 9), make_unit(3, 7, 9), rng.random((3, 7)) < 0.6
    block = MAKEBlock(**SMALL)
    outputs = {name: x.numpy() for name, x in block(target, behaviors, behaviors_mask=mask).items()}
    pooled = block.attention(3 * target, 3 * behaviors, behaviors_mask=mask).numpy()  # sqrt(9)
    np.testing.assert_allclose(outputs["v_make"][:, :9], pooled, atol=1e-6)
    np.testing.assert_allclose(outputs["v_make"][:, 9:18], 3 * target, atol=1e-6)
    np.testing.assert_allclose(outputs["v_make"][:, 18:], pooled * 3 * target / 3, atol=1e-6)
    hidden = outputs["v_make"].astype(np.float64)
    for i, (dense, activation) in enumerate(zip(block.dense_layers, block.activation_layers, strict=True)):
        hidden = hidden @ np.float64(dense.kernel) + np.float64(dense.bias)
        hidden = np.where(hidden > 0, hidden, np.float64(activation.alpha) * hidden)
        np.testing.assert_allclose(outputs[f"hidden_{i + 1}"], hidden, atol=1e-5)
    logit = hidden @ np.float64(block.logit_layer.kernel) + np.float64(block.logit_layer.bias)
    np.testing.assert_allclose(outputs["logit"], logit, atol=1e-5)


def test_knowledge_is_v_make_and_the_hidden_outputs_and_the_logit_on_request(make_unit):
    block = MAKEBlock(**SMALL)
    outputs = block(make_unit(2, 5), make_unit(2, 3, 5))
    parts = [outputs[name].numpy() for name in ("v_make", "hidden_1", "hidden_2", "hidden_3")]
    np.testing.assert_array_equal(block.knowledge(outputs), np.concatenate(parts, axis=1))
    with_logit = block.knowledge(outputs, include_logit=True)
    np.testing.assert_array_equal(with_logit[:, -1:], outputs["logit"])
    assert with_logit.shape[1] == 15 + 8 + 6 + 4 + 1


@pytest.mark.parametrize("combine, width", [("pooled", 5), ("concat", 10), ("product", 15)])
def test_combine_says_what_v_make_holds(make_unit, combine, width):
    assert MAKEBlock(**SMALL, combine=combine)(make_unit(2, 5), make_unit(2, 3, 5))["v_make"].shape == (
        2,
        width,
    )


def test_inputs_are_scaled_to_unit_variance_unless_told_otherwise(make_unit):
    target, behaviors = make_unit(2, 16), make_unit(2, 3, 16)
    block, plain = MAKEBlock(**SMALL), MAKEBlock(**SMALL, scale_inputs=False)
    expected = block(target, behaviors)
    plain(target, behaviors)
    plain.set_weights(block.get_weights())
    np.testing.assert_allclose(plain(4 * target, 4 * behaviors)["logit"], expected["logit"], atol=1e-5)


def test_int8_rows_equal_their_unit_vectors_and_a_shared_history_its_copies(make_int8, rng):
    target, target_scales = make_int8(6, 8)
    behaviors, behaviors_scales = make_int8(1, 7, 8)
    mask = rng.random((1, 7)) < 0.6
    block = MAKEBlock(**SMALL)
    shared = block(
        target, behaviors, behaviors_mask=mask, target_scales=target_scales, behaviors_scales=behaviors_scales
    )
    tiled = block(
        unit_vectors(target, target_scales),
        np.repeat(unit_vectors(behaviors, behaviors_scales), 6, 0),
        behaviors_mask=np.repeat(mask, 6, 0),
    )
    for name, value in tiled.items():
        np.testing.assert_allclose(shared[name], value, atol=1e-5)
    with pytest.raises(ValueError, match="int8 `target` need `target_scales`"):
        block(target, behaviors)


def test_target_without_embedding_gets_no_knowledge(make_unit):
    outputs = MAKEBlock(**SMALL)(make_unit(2, 5), make_unit(2, 3, 5), target_mask=np.array([True, False]))
    assert np.abs(outputs["v_make"][0]).sum() > 0
    np.testing.assert_array_equal(outputs["v_make"][1], np.zeros(15))


@pytest.mark.parametrize("histories", [1, 8])
def test_target_without_embedding_is_no_part_of_the_statistics(make_unit, histories):
    target, behaviors = make_unit(8, 5), make_unit(histories, 3, 5)
    blocks = [MAKEBlock(**DICE) for _ in range(2)]
    for block in blocks:
        block(target, behaviors)
        block.set_weights(blocks[0].get_weights())
    expected = blocks[0](target[:5], behaviors[:5], training=True)
    received = blocks[1](target, behaviors, target_mask=np.arange(8) < 5, training=True)
    for name, value in expected.items():
        np.testing.assert_allclose(received[name][:5], value, atol=1e-5)
    for mine, other in zip(blocks[0].get_weights(), blocks[1].get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


@pytest.mark.parametrize("settings", [SMALL, DICE])
@pytest.mark.parametrize("histories", [1, 4])
def test_hidden_nan_reaches_no_result_and_no_gradient(rng, make_unit, settings, histories):
    target, behaviors = make_unit(4, 6), make_unit(histories, 20, 6)
    masks = {"behaviors_mask": rng.random((histories, 20)) < 0.6, "target_mask": np.array([True, False, True, True])}
    block = MAKEBlock(**settings)
    block(target, behaviors)
    results = []
    for hidden in (0.0, np.nan):
        target[1], behaviors[~masks["behaviors_mask"]] = hidden, hidden
        with tf.GradientTape() as tape:
            outputs = block(target, behaviors, **masks, training=True)
            total = sum(tf.reduce_sum(value) for value in outputs.values())
        weights = [weight.value for weight in block.trainable_weights]
        results.append([*outputs.values(), *tape.gradient(total, weights)])
    for clean, received in zip(*results, strict=True):
        np.testing.assert_array_equal(received, clean)


def test_scale_of_zero_means_no_embedding(make_int8):
    (target, target_scales), (behaviors, behaviors_scales) = make_int8(3, 8), make_int8(3, 7, 8)
    block = MAKEBlock(**SMALL)
    mask, target_mask = np.ones((3, 7), bool), np.array([True, False, True])
    mask[0, 2:4] = False
    masks = {"behaviors_mask": mask, "target_mask": target_mask}
    scales = {"target_scales": target_scales, "behaviors_scales": behaviors_scales}
    expected = block(target, behaviors, **masks, **scales)
    scales = {"target_scales": target_scales * target_mask, "behaviors_scales": behaviors_scales * mask}
    for given in ({}, masks):
        for name, value in block(target, behaviors, **given, **scales).items():
            np.testing.assert_array_equal(value, expected[name])


def put_into_model(block):
    inputs = keras.Input((5,)), keras.Input((3, 5))
    return keras.Model(inputs, keras.layers.Dense(1)(block.knowledge(block(*inputs))))


def frozen_after_build(path):
    model = put_into_model(block := MAKEBlock(**DICE))
    block.freeze()
    return model


def loaded_block(path):
    put_into_model(block := MAKEBlock(**DICE).freeze())
    block.save(path / "make.keras")
    return MAKEBlock.load(path / "make.keras")


def reloaded_model(path):
    put_into_model(MAKEBlock(**DICE).freeze()).save(path / "model.keras")
    return keras.models.load_model(path / "model.keras")


WAYS_TO_FREEZE = {
    "freeze": lambda path: put_into_model(MAKEBlock(**DICE).freeze()),
    "freeze after build": frozen_after_build,
    "constructor": lambda path: put_into_model(MAKEBlock(**DICE, trainable=False)),
    "load": lambda path: put_into_model(loaded_block(path)),
    "load and freeze": lambda path: put_into_model(loaded_block(path).freeze()),
    "clone": lambda path: keras.models.clone_model(put_into_model(MAKEBlock(**DICE).freeze())),
    "reload": reloaded_model,
}


@pytest.mark.parametrize("way", WAYS_TO_FREEZE)
def test_frozen_block_keeps_every_weight_and_statistic_in_training(tmp_path, make_unit, way):
    model = WAYS_TO_FREEZE[way](tmp_path)
    (block,) = (layer for layer in model.layers if isinstance(layer, MAKEBlock))
    assert len(model.trainable_variables) == 2  # those of the dense layer after it
    before = block.get_weights()
    model.compile("sgd", "mse")
    model.fit([make_unit(8, 5), make_unit(8, 3, 5)], np.ones((8, 1)), verbose=0)
    block(make_unit(8, 5), make_unit(8, 3, 5), training=True)
    for old, new in zip(before, block.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


def test_freeze_returns_the_block_and_reaches_what_was_set_free_by_hand(make_unit):
    block = MAKEBlock(**DICE)
    block(make_unit(2, 5), make_unit(2, 3, 5))
    assert block.freeze() is block
    block.attention.trainable = True
    block.freeze()
    assert not any(variable.trainable for variable in block.attention.trainable_variables)


def test_frozen_block_can_be_set_free(tmp_path, make_unit):
    block = loaded_block(tmp_path)
    block.trainable = True
    assert len(block.trainable_variables) == 5 + 3 * 3 + 2  # attention, three layers with Dice, the logit
    before = block.get_weights()
    block(make_unit(8, 5), make_unit(8, 3, 5), training=True)
    assert any(np.any(old != new) for old, new in zip(before, block.get_weights(), strict=True))


@pytest.mark.parametrize("is_frozen", [False, True])
def test_block_is_saved_and_loaded_alone(tmp_path, make_unit, is_frozen):
    block = MAKEBlock(**SMALL, combine="concat", softmax=True, name="image_make")
    with pytest.raises(ValueError, match="Call the block once before `save`"):
        block.save(tmp_path / "make.keras")
    target, behaviors = make_unit(4, 5), make_unit(4, 3, 5)
    expected = block(target, behaviors)
    if is_frozen:
        block.freeze()
    block.save(tmp_path / "make.keras")
    loaded = MAKEBlock.load(tmp_path / "make.keras")
    assert loaded.name == "image_make" and loaded.trainable is not is_frozen
    np.testing.assert_allclose(loaded(target, behaviors)["logit"], expected["logit"], atol=1e-6)


@pytest.mark.parametrize("name", ["target", "behaviors", "behaviors_mask", "make"])
def test_block_of_any_name_is_saved(tmp_path, make_unit, name):
    block = MAKEBlock(**SMALL, name=name)
    block(make_unit(2, 5), make_unit(2, 3, 5))
    block.save(tmp_path / "make.keras")
    assert MAKEBlock.load(tmp_path / "make.keras").name == name


def test_load_needs_a_file_with_one_block(tmp_path):
    path = tmp_path / "model.keras"
    keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="alone")]).save(path)
    with pytest.raises(ValueError, match=r"`path` must hold one MAKEBlock.*Received: \['alone'\]"):
        MAKEBlock.load(path)
    inputs = keras.Input((5,)), keras.Input((3, 5))
    logits = [MAKEBlock(**SMALL, name=name)(*inputs)["logit"] for name in ("image", "text")]
    keras.Model(inputs, logits).save(path)
    with pytest.raises(ValueError, match="`path` must hold one MAKEBlock"):
        MAKEBlock.load(path)


def test_make_learns_clicks_from_vectors_alone(rng, make_unit):
    keras.utils.set_random_seed(0)
    behaviors, target = make_unit(512, 6, 8), make_unit(512, 8)
    clicks = (np.einsum("bd,bld->b", target, behaviors) > 0).astype(np.float32)
    block = MAKEBlock(**SMALL)
    inputs = keras.Input((8,)), keras.Input((6, 8))
    model = keras.Model(inputs, block(*inputs)["logit"])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.BinaryCrossentropy(from_logits=True))
    history = model.fit([target, behaviors], clicks, epochs=30, batch_size=128, verbose=0).history["loss"]
    assert history[-1] < 0.5 < history[0]


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"units": (8, 4)}, "`units` must name three hidden layers"),
        ({"combine": "sum"}, "`combine` must be one of"),
        ({"units": 8}, "`units` must be a sequence of ints. Received: 8"),
        ({"units": (8.7, 6, 4)}, "`units` must be an int of at least 1. Received: 8.7"),
        ({"units": (0, 6, 4)}, "`units` must be an int of at least 1. Received: 0"),
        ({"attention_units": (True,)}, "`attention_units` must be an int of at least 1. Received: True"),
        ({"attention_units": ()}, "`attention_units` must name at least one hidden layer"),
        ({"softmax": "no"}, "`softmax` must be True or False"),
        ({"scale_inputs": None}, "`scale_inputs` must be True or False"),
        ({"activation": "rellu"}, "`activation` must be the name of a Keras activation"),
        ({"attention_activation": "rellu"}, "`attention_activation` must be the name of a Keras activation"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        MAKEBlock(**arguments)


def test_numpy_ints_are_stored_as_python_ints():
    config = MAKEBlock(units=np.array([8, 6, 4]), attention_units=[np.int64(5)]).get_config()
    stored = config["units"] + config["attention_units"]
    assert stored == [8, 6, 4, 5] and all(type(value) is int for value in stored)


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "dtype, changed, rule",
    [
        ("float32", {"target": (2, 4)}, "`target` must have as many values"),
        ("float32", {"target": (3, 5)}, "`behaviors` must hold one history per target"),
        ("float32", {"behaviors": (2, 5)}, "`behaviors` must have 3 axes"),
        ("float32", {"behaviors_mask": (2, 1)}, "`behaviors_mask` must have the shape"),
        ("float32", {"target_mask": (2, 1)}, "`target_mask` must have the shape"),
        ("int8", {}, "int8 `target` need `target_scales`"),
        ("int8", {"target_scales": (2,)}, "int8 `behaviors` need `behaviors_scales`"),
        ("int8", {"target_scales": (2, 1)}, "`target_scales` must have the shape"),
        ("int8", {"target_scales": (1,)}, "`target_scales` must have the shape"),
        ("int8", {"target_scales": (2,), "behaviors_scales": (3,)}, "`behaviors_scales` must have the shape"),
        ("int8", {"target_scales": (2,), "behaviors_scales": (1, 3)}, "`behaviors_scales` must have the shape"),
    ],
)
def test_wrong_inputs_are_refused(symbolic, dtype, changed, rule):
    def make(name, shape):
        of_name = "bool" if name.endswith("_mask") else "float32" if name.endswith("_scales") else dtype
        return keras.Input(batch_shape=shape, dtype=of_name) if symbolic else np.ones(shape, of_name)

    shapes = {"target": (2, 5), "behaviors": (2, 3, 5), **changed}
    with pytest.raises(ValueError, match=rule):
        MAKEBlock(**SMALL)(**{name: make(name, shape) for name, shape in shapes.items()})


def test_conformance(make_unit, rng):
    inputs = {
        "target": make_unit(3, 8),
        "behaviors": make_unit(3, 7, 8),
        "behaviors_mask": rng.random((3, 7)) < 0.6,
    }
    settings = {
        **SMALL,
        "activation": "relu",
        "attention_activation": "dice",
        "combine": "concat",
        "softmax": True,
        "scale_inputs": False,
    }
    both = ["target", "behaviors"]
    check_layer(
        MAKEBlock, settings, inputs, differentiable=both, ignores_hidden_nan=True, zero_when_masked=False
    )


def test_conformance_on_int8_rows(make_int8, rng):
    target, target_scales = make_int8(3, 8)
    behaviors, behaviors_scales = make_int8(3, 7, 8)
    inputs = {
        "target": target,
        "behaviors": behaviors,
        "behaviors_mask": rng.random((3, 7)) < 0.6,
        "target_scales": target_scales,
        "behaviors_scales": behaviors_scales,
        "target_mask": np.array([True, False, True]),
    }
    check_layer(
        MAKEBlock, SMALL, inputs, differentiable=["target_scales", "behaviors_scales"], zero_when_masked=False
    )


def test_logit_stays_float32_under_a_mixed_policy(make_unit):
    outputs = MAKEBlock(**SMALL, dtype="mixed_bfloat16")(make_unit(2, 5), make_unit(2, 3, 5))
    assert outputs["logit"].dtype == tf.float32 and outputs["v_make"].dtype == tf.bfloat16
