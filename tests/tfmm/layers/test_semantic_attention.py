import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import SemanticTargetAttention
from tfmm.testing import check_layer


def reference(layer, target, behaviors, similarity, mask, known):
    """MUSE's equation 4, in float64."""
    query, key, value = (np.float64(d.kernel) for d in (layer.query, layer.key, layer.value))
    gains, temperature = np.float64(layer.gains), np.exp(np.float64(layer.log_temperature))
    result = np.zeros((len(target), layer.units))
    for b in range(len(target)):
        of_ids = (behaviors[b] @ key) @ (target[b] @ query) / np.sqrt(layer.units)
        relevance = similarity[b] / temperature * known[b]
        scores = gains[0] * of_ids + gains[1] * relevance + gains[2] * of_ids * relevance
        weights = np.exp(scores - scores.max()) * mask[b]
        if mask[b].any():
            result[b] = weights / weights.sum() @ (behaviors[b] @ value)
    return result


@pytest.fixture
def inputs(rng):
    mask = rng.random((4, 7)) < 0.7
    mask[2] = False
    return {
        "target": rng.normal(size=(4, 5)).astype(np.float32),
        "behaviors": rng.normal(size=(4, 7, 5)).astype(np.float32),
        "similarity": rng.uniform(-1, 1, (4, 7)).astype(np.float32),
        "behaviors_mask": mask,
        "similarity_mask": rng.random((4, 7)) < 0.7,
    }


def test_attention_is_muses_equation(inputs):
    layer = SemanticTargetAttention(6, temperature=0.2)
    layer(**inputs)
    layer.gains.assign([0.5, 1.5, -0.3])
    expected = reference(layer, *inputs.values())
    np.testing.assert_allclose(layer(**inputs), expected, atol=1e-5)
    compiled = tf.function(lambda **x: layer(**x), jit_compile=True, autograph=False)
    np.testing.assert_allclose(compiled(**inputs), expected, atol=1e-5)
    np.testing.assert_array_equal(layer(**inputs)[2], np.zeros(6))


def test_shared_history_equals_the_tiled_one(inputs):
    layer = SemanticTargetAttention(6)
    shared = {**inputs, "behaviors": inputs["behaviors"][:1], "behaviors_mask": inputs["behaviors_mask"][:1]}
    tiled = {
        **shared,
        "behaviors": np.repeat(shared["behaviors"], 4, 0),
        "behaviors_mask": np.repeat(shared["behaviors_mask"], 4, 0),
    }
    np.testing.assert_allclose(layer(**shared), layer(**tiled), atol=1e-5)


def test_temperature_stays_positive_whatever_training_does(inputs):
    layer = SemanticTargetAttention(3)
    layer(**inputs)
    np.testing.assert_allclose(np.exp(layer.log_temperature), 0.1, rtol=1e-6)
    layer.log_temperature.assign(-5.0)
    assert np.isfinite(layer(**inputs)).all()


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"units": 0}, "`units` must be at least 1"),
        ({"units": 2, "temperature": 0.0}, "`temperature` must be positive"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        SemanticTargetAttention(**arguments)


def test_conformance(inputs):
    check_layer(
        SemanticTargetAttention,
        {"units": 6, "temperature": 0.5, "activation": "silu"},
        inputs,
        differentiable=["target", "behaviors", "similarity"],
        zero_when_masked=False,
    )
    del inputs["similarity_mask"]
    check_layer(
        SemanticTargetAttention, {"units": 6}, inputs, differentiable=["target", "behaviors", "similarity"]
    )
