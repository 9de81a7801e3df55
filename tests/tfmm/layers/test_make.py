import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import MAKEBlock, unit_vectors
from tfmm.testing import check_layer

SMALL = {"units": (8, 6, 4), "attention_units": (5,)}


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


@pytest.mark.parametrize("activation", ["prelu", "dice"])
def test_frozen_block_keeps_every_weight(make_unit, activation):
    block = MAKEBlock(**SMALL, activation=activation, attention_activation=activation)
    target, behaviors = make_unit(4, 5), make_unit(4, 3, 5)
    block(target, behaviors)
    assert block.freeze() is block
    before = block.get_weights()
    block(target, behaviors, training=True)
    assert not block.trainable_weights
    for old, new in zip(before, block.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)


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
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        MAKEBlock(**arguments)


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
    check_layer(MAKEBlock, settings, inputs, differentiable=["target", "behaviors"], zero_when_masked=False)


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
