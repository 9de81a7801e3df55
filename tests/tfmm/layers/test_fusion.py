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


def test_conformance(rng, inputs):
    check_layer(
        VectorFusion,
        {"scale_inputs": False},
        inputs,
        zero_when_masked=False,
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
        differentiable=["target", "behaviors", "similarity"],
    )
