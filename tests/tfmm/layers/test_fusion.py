import keras
import numpy as np
import pytest

from tfmm.layers import DINAttention, SimScore, VectorFusion, unit_vectors
from tfmm.testing import check_layer


@pytest.fixture
def inputs(rng, make_unit):
    return {
        "target": rng.normal(size=(3, 4)).astype(np.float32),
        "behaviors": rng.normal(size=(3, 5, 4)).astype(np.float32),
        "target_vectors": make_unit(3, 9),
        "behaviors_vectors": make_unit(3, 5, 9),
        "target_vectors_mask": np.array([True, False, True]),
        "behaviors_vectors_mask": rng.random((3, 5)) < 0.6,
    }


def test_vectors_stand_beside_the_embeddings_and_missing_ones_are_zero(inputs):
    fused = VectorFusion()(**inputs)
    np.testing.assert_array_equal(fused["target"][:, :4], inputs["target"])
    mask = inputs["behaviors_vectors_mask"][..., None]
    np.testing.assert_allclose(fused["behaviors"][..., 4:], 3 * inputs["behaviors_vectors"] * mask, rtol=1e-6)
    np.testing.assert_array_equal(fused["target"][1, 4:], np.zeros(9))
    assert DINAttention((3,))(fused["target"], fused["behaviors"]).shape == (3, 13)


def test_int8_rows_equal_their_unit_vectors(make_int8, inputs):
    target, target_scales = make_int8(3, 9)
    behaviors, behaviors_scales = make_int8(3, 5, 9)
    ids = (inputs["target"], inputs["behaviors"])
    fused = VectorFusion(scale_inputs=False)(
        *ids, target, behaviors, target_scales=target_scales, behaviors_scales=behaviors_scales
    )
    np.testing.assert_allclose(fused["behaviors"][..., 4:], unit_vectors(behaviors, behaviors_scales))
    with pytest.raises(ValueError, match="int8 `target_vectors` need `target_scales`"):
        VectorFusion()(*ids, target, behaviors)
    with pytest.raises(ValueError, match="`target_vectors` must have as many values"):
        VectorFusion()(*ids, np.ones((3, 2), np.float32), np.ones((3, 5, 4), np.float32))


@pytest.mark.parametrize("flag", [False, True])
def test_score_is_appended_and_the_target_is_like_itself(rng, inputs, flag):
    similarity, known = rng.uniform(-1, 1, (3, 5)).astype(np.float32), rng.random((3, 5)) < 0.6
    joined = SimScore(flag)(inputs["target"], inputs["behaviors"], similarity, similarity_mask=known)
    np.testing.assert_array_equal(joined["target"][:, 4:], np.ones((3, 1 + flag)))
    np.testing.assert_array_equal(joined["behaviors"][..., 4], similarity * known)
    if flag:
        np.testing.assert_array_equal(joined["behaviors"][..., 5], known)


def test_shared_history_equals_the_tiled_one(rng, inputs):
    similarity = rng.uniform(-1, 1, (3, 5)).astype(np.float32)
    shared = SimScore()(inputs["target"], inputs["behaviors"][:1], similarity)
    tiled = SimScore()(inputs["target"], np.repeat(inputs["behaviors"][:1], 3, 0), similarity)
    for name in ("target", "behaviors"):
        np.testing.assert_array_equal(shared[name], tiled[name])
    fused = VectorFusion()(
        inputs["target"], inputs["behaviors"][:1], inputs["target_vectors"], inputs["behaviors_vectors"][:1]
    )
    assert fused["behaviors"].shape == (1, 5, 13) and fused["target"].shape == (3, 13)


def make_fusion(name, target, behaviors, rng):
    """Calls a fusion layer on ID embeddings, with vectors or similarities beside them."""
    batch, length = 2, 4
    if name == "vectors":
        vectors = rng.normal(size=(batch, 3)).astype(np.float32), rng.normal(size=(batch, length, 3)).astype(np.float32)
        return VectorFusion()(target, behaviors, *vectors)
    return SimScore()(target, behaviors, rng.uniform(-1, 1, (batch, length)).astype(np.float32))


IDS = {"target": np.array([3, 0]), "behaviors": np.array([[1, 2, 0, 0], [4, 1, 2, 0]])}


@pytest.mark.parametrize("name", ["vectors", "score"])
@pytest.mark.parametrize("is_functional", [False, True])
def test_padding_masks_travel_on_to_the_attention(rng, name, is_functional):
    embedding, attention = keras.layers.Embedding(5, 4, mask_zero=True), DINAttention((3,))
    embedding.build()
    embedding.embeddings.assign(rng.normal(size=(5, 4)))

    def attend(target, behaviors, **masks):
        fused = make_fusion(name, target, behaviors, np.random.default_rng(0))
        return attention(fused["target"], fused["behaviors"], **masks)

    plain = [embedding.embeddings.numpy()[IDS["target"]], embedding.embeddings.numpy()[IDS["behaviors"]]]
    masks = {"target_mask": IDS["target"] != 0, "behaviors_mask": IDS["behaviors"] != 0}
    attend(*plain)
    attention.bias.assign(np.ones(3))  # so that padding would count
    expected = attend(*plain, **masks)
    if is_functional:
        inputs = [keras.Input(batch_shape=ids.shape, dtype="int32") for ids in IDS.values()]
        received = keras.Model(inputs, attend(*map(embedding, inputs)))(list(IDS.values()))
    else:
        received = attend(*map(embedding, IDS.values()))
    np.testing.assert_allclose(received, expected, atol=1e-6)
    assert np.abs(received - attend(*plain)).max() > 1e-3


@pytest.mark.parametrize("name", ["vectors", "score"])
def test_masks_that_are_passed_travel_on_too(rng, name):
    target, history = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(1, 4, 4)).astype(np.float32)
    mask = np.array([[True, True, False, False]])
    if name == "vectors":
        vectors = rng.normal(size=(2, 3)).astype(np.float32), rng.normal(size=(1, 4, 3)).astype(np.float32)
        fused = VectorFusion()(target, history, *vectors, behaviors_mask=mask)
    else:
        fused = SimScore()(target, history, np.ones((2, 4), np.float32), behaviors_mask=mask)
        mask = np.repeat(mask, 2, 0)  # one history per target comes out
    attention = DINAttention((3,))
    received = attention(fused["target"], fused["behaviors"])
    plain = np.array(fused["target"]), np.array(fused["behaviors"])
    np.testing.assert_array_equal(received, attention(*plain, behaviors_mask=mask))


def test_hidden_vectors_may_hold_anything(rng, inputs):
    fusion = VectorFusion()
    expected = fusion(**inputs)
    inputs["target_vectors"][~inputs["target_vectors_mask"]] = np.nan
    inputs["behaviors_vectors"][~inputs["behaviors_vectors_mask"]] = np.nan
    for name, value in fusion(**inputs).items():
        np.testing.assert_array_equal(value, expected[name])
    similarity, known = rng.uniform(-1, 1, (3, 5)).astype(np.float32), inputs["behaviors_vectors_mask"]
    similarity[~known] = np.nan
    joined = SimScore()(inputs["target"], inputs["behaviors"], similarity, similarity_mask=known.tolist())
    np.testing.assert_array_equal(joined["behaviors"][..., 4:], np.stack([np.where(known, similarity, 0), known], -1))


def test_scale_of_zero_means_no_embedding(make_int8, inputs):
    (target, target_scales), (behaviors, behaviors_scales) = make_int8(3, 9), make_int8(3, 5, 9)
    target_scales[1], behaviors_scales[0, 2] = 0, 0
    ids = inputs["target"], inputs["behaviors"]
    fused = VectorFusion()(*ids, target, behaviors, target_scales=target_scales, behaviors_scales=behaviors_scales)
    assert not np.any(fused["target"][1, 4:]) and not np.any(fused["behaviors"][0, 2, 4:])
    assert np.all(np.any(fused["behaviors"][1:, :, 4:], axis=-1))


@pytest.mark.parametrize("layer_class, name", [(VectorFusion, "scale_inputs"), (SimScore, "flag_missing")])
def test_flags_that_are_neither_true_nor_false_are_refused(layer_class, name):
    with pytest.raises(ValueError, match=f"`{name}` must be True or False. Received: 'no'"):
        layer_class(**{name: "no"})
    stored = layer_class(**{name: np.bool_(True)}).get_config()[name]
    assert stored is True


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "dtype, changed, rule",
    [
        ("float32", {"behaviors": (3, 6, 4)}, "`behaviors_vectors` must have the shape"),
        ("float32", {"target": (3, 6)}, "`target` must have as many values"),
        ("float32", {"target": (3, 1, 4)}, "`target` must have 2 axes"),
        ("float32", {"target": (2, 4)}, "`behaviors` must hold one history per target"),
        ("float32", {"behaviors": (1, 5, 4)}, "`behaviors_vectors` must have the shape"),
        ("float32", {"target_vectors": (1, 9)}, "`target_vectors` must have the shape"),
        ("float32", {"target_vectors": (3, 8)}, "`target_vectors` must have as many values"),
        ("float32", {"target_vectors_mask": (3, 1)}, "`target_vectors_mask` must have the shape"),
        ("float32", {"behaviors_vectors_mask": (3, 1)}, "`behaviors_vectors_mask` must have the shape"),
        ("float32", {"target_mask": (3, 1)}, "`target_mask` must have the shape"),
        ("float32", {"behaviors_mask": (3, 1)}, "`behaviors_mask` must have the shape"),
        ("int8", {}, "int8 `target_vectors` need `target_scales`"),
        ("int8", {"target_scales": (3,)}, "int8 `behaviors_vectors` need `behaviors_scales`"),
        ("int8", {"target_scales": (3, 1)}, "`target_scales` must have the shape"),
        ("int8", {"target_scales": (3,), "behaviors_scales": (3,)}, "`behaviors_scales` must have the shape"),
    ],
)
def test_wrong_inputs_of_vectors_are_refused(symbolic, dtype, changed, rule):
    shapes = {"target": (3, 4), "behaviors": (3, 5, 4), "target_vectors": (3, 9), "behaviors_vectors": (3, 5, 9)}
    with pytest.raises(ValueError, match=rule):
        VectorFusion()(**make_inputs({**shapes, **changed}, symbolic, dtype))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "changed, rule",
    [
        ({"behaviors": (3, 1, 4)}, "`similarity` must have the shape"),
        ({"similarity": (3, 1)}, "`similarity` must have the shape"),
        ({"similarity": (1, 5)}, "`similarity` must have the shape"),
        ({"similarity": (3, 5, 1)}, "`similarity` must have the shape"),
        ({"target": (3, 6)}, "`target` must have as many values"),
        ({"target": (2, 4)}, "`behaviors` must hold one history per target"),
        ({"similarity_mask": (3, 1)}, "`similarity_mask` must have the shape"),
        ({"behaviors_mask": (1, 5)}, "`behaviors_mask` must have the shape"),
        ({"target_mask": (1,)}, "`target_mask` must have the shape"),
    ],
)
def test_wrong_inputs_of_score_are_refused(symbolic, changed, rule):
    shapes = {"target": (3, 4), "behaviors": (3, 5, 4), "similarity": (3, 5)}
    with pytest.raises(ValueError, match=rule):
        SimScore()(**make_inputs({**shapes, **changed}, symbolic))


def make_inputs(shapes, symbolic, dtype="float32"):
    """Arrays, or Keras inputs, of these shapes; masks are bool, and vectors have `dtype`."""

    def make(name, shape):
        of_name = "bool" if name.endswith("_mask") else dtype if name.endswith("_vectors") else "float32"
        return keras.Input(batch_shape=shape, dtype=of_name) if symbolic else np.ones(shape, of_name)

    return {name: make(name, shape) for name, shape in shapes.items()}


def test_conformance(rng, inputs):
    check_layer(
        VectorFusion,
        {"scale_inputs": False},
        inputs,
        zero_when_masked=False,
        ignores_hidden_nan=True,
        differentiable=["target", "behaviors", "target_vectors", "behaviors_vectors"],
    )
    scores = {
        "target": inputs["target"],
        "behaviors": inputs["behaviors"],
        "similarity": rng.uniform(-1, 1, (3, 5)).astype(np.float32),
        "similarity_mask": inputs["behaviors_vectors_mask"],
    }
    check_layer(
        SimScore,
        {"flag_missing": False},
        scores,
        zero_when_masked=False,
        ignores_hidden_nan=True,
        differentiable=["target", "behaviors", "similarity"],
    )
