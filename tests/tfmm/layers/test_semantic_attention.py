import keras
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


@pytest.mark.parametrize("log_temperature", [-2.0, 0.0, 1.5])
def test_temperature_is_the_exponential_of_its_weight(inputs, log_temperature):
    layer = SemanticTargetAttention(3)
    layer(**inputs)
    np.testing.assert_allclose(np.exp(layer.log_temperature), 0.1, rtol=1e-6)
    layer.log_temperature.assign(log_temperature)
    np.testing.assert_allclose(layer(**inputs), reference(layer, *inputs.values()), atol=1e-5)


def test_temperature_stays_positive_where_a_step_would_cross_zero(inputs):
    layer = SemanticTargetAttention(3, temperature=0.01)
    layer(**inputs)
    optimizer = keras.optimizers.SGD(0.5)
    for _ in range(20):  # 20 steps of 0.5 along a gradient of 1: a raw temperature would end at -9.99
        optimizer.apply([np.float32(1.0)], [layer.log_temperature])
    np.testing.assert_allclose(layer.log_temperature, np.log(0.01) - 10.0, rtol=1e-5)
    temperature = np.exp(np.float64(layer.log_temperature))
    assert temperature > 0
    # the larger similarity still gets the larger weight: the sign of the temperature did not turn
    layer.gains.assign([0.0, 1.0, 0.0])
    similarity = np.float32([[-0.5, 0.5]])
    behaviors = np.stack([np.zeros(5), np.ones(5)]).astype(np.float32)[None]
    received = layer(inputs["target"][:1], behaviors, similarity)
    np.testing.assert_allclose(received, behaviors[:, 1] @ np.asarray(layer.value.kernel), atol=1e-6)


@pytest.mark.parametrize("histories", [1, 4])
def test_hidden_nan_reaches_no_result_and_no_gradient(inputs, histories):
    inputs = {**inputs, "behaviors": inputs["behaviors"][:histories]}
    inputs["behaviors_mask"] = inputs["behaviors_mask"][:histories]
    layer = SemanticTargetAttention(3, activation="silu")
    layer(**inputs)
    seen = np.broadcast_to(inputs["behaviors_mask"], (4, 7)) & inputs["similarity_mask"]
    results = []
    for hidden in (0.0, np.nan):
        inputs["behaviors"][~inputs["behaviors_mask"]], inputs["similarity"][~seen] = hidden, hidden
        with tf.GradientTape() as tape:
            output = layer(**inputs)
        weights = [weight.value for weight in layer.trainable_weights]
        results.append([output, *tape.gradient(output, weights)])
    for clean, received in zip(*results, strict=True):
        np.testing.assert_array_equal(received, clean)


def test_mask_of_the_similarities_may_be_shared_like_the_history(inputs):
    inputs = {name: value[:1] if name.startswith("behaviors") else value for name, value in inputs.items()}
    layer, mask = SemanticTargetAttention(3), inputs.pop("similarity_mask")[:1]
    received = layer(**inputs, similarity_mask=mask)
    np.testing.assert_array_equal(received, layer(**inputs, similarity_mask=np.repeat(mask, 4, 0)))
    np.testing.assert_array_equal(received, layer(**inputs, similarity_mask=mask.tolist()))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_unknown_batch_gives_the_eager_result_for_one_history_and_for_many(inputs, jit_compile):
    layer = SemanticTargetAttention(3)
    layer(**inputs)
    spec = [tf.TensorSpec([None, 5]), tf.TensorSpec([None, None, 5]), tf.TensorSpec([None, None])]
    compiled = tf.function(layer.call, spec, jit_compile=jit_compile, autograph=False)
    for histories in (1, 4):
        arrays = inputs["target"], inputs["behaviors"][:histories], inputs["similarity"]
        np.testing.assert_allclose(compiled(*arrays), layer(*arrays), atol=1e-5)


def test_no_behaviors_give_zeros(inputs):
    layer = SemanticTargetAttention(3)
    layer(**inputs)
    empty = {name: value if name == "target" else value[:, :0] for name, value in inputs.items()}
    np.testing.assert_array_equal(layer(**empty), np.zeros((4, 3)))


def test_layer_made_untrainable_has_nothing_to_train(inputs):
    layer = SemanticTargetAttention(3, activation="silu", trainable=False)
    layer(**inputs)
    assert not any(variable.trainable for variable in layer.variables)
    layer.trainable = True
    assert len(layer.trainable_variables) == 8


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"units": 0}, "`units` must be an int of at least 1"),
        ({"units": 2.5}, "`units` must be an int of at least 1"),
        ({"units": True}, "`units` must be an int of at least 1"),
        ({"units": 2, "temperature": 0.0}, "`temperature` must be positive and finite"),
        ({"units": 2, "temperature": float("nan")}, "`temperature` must be positive and finite"),
        ({"units": 2, "temperature": float("inf")}, "`temperature` must be positive and finite"),
        ({"units": 2, "temperature": "a"}, "`temperature` must be a number. Received: 'a'"),
        ({"units": 2, "activation": "dice"}, "`activation` must be the name .* or one of .*None"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        SemanticTargetAttention(**arguments)


def test_numpy_numbers_are_stored_as_python_numbers():
    config = SemanticTargetAttention(np.int64(3), temperature=np.float32(0.5)).get_config()
    assert type(config["units"]) is int and type(config["temperature"]) is float


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "changed, rule",
    [
        ({"target": (3, 5)}, "`behaviors` must hold one history per target"),
        ({"target": (4, 6)}, "`target` must have as many values"),
        ({"target": (4, 7, 5)}, "`target` must have 2 axes"),
        ({"behaviors": (4, 5)}, "`behaviors` must have 3 axes"),
        ({"similarity": (4, 1)}, "`similarity` must have the shape"),
        ({"similarity": (1, 7)}, "`similarity` must have the shape"),
        ({"similarity": (4, 8)}, "`similarity` must have the shape"),
        ({"similarity": (4,)}, "`similarity` must have the shape"),
        ({"behaviors_mask": (4, 1)}, "`behaviors_mask` must have the shape"),
        ({"similarity_mask": (4, 1)}, "`similarity_mask` must have the shape"),
        ({"similarity_mask": (1, 7)}, "`similarity_mask` must have the shape"),
    ],
)
def test_wrong_inputs_are_refused(inputs, symbolic, changed, rule):
    def make(name, shape):
        dtype = "bool" if name.endswith("_mask") else "float32"
        return keras.Input(batch_shape=shape, dtype=dtype) if symbolic else np.ones(shape, dtype)

    layer = SemanticTargetAttention(3)
    shapes = {**{name: value.shape for name, value in inputs.items()}, **changed}
    with pytest.raises(ValueError, match=rule):
        layer(**{name: make(name, shape) for name, shape in shapes.items()})
    layer(**inputs)
    with pytest.raises(ValueError, match=rule):
        layer(**{name: make(name, shape) for name, shape in shapes.items()})


def test_conformance(inputs):
    check_layer(
        SemanticTargetAttention,
        {"units": 6, "temperature": 0.5, "activation": "silu"},
        inputs,
        differentiable=["target", "behaviors", "similarity"],
        zero_when_masked=False,
        ignores_hidden_nan=True,
    )
    del inputs["similarity_mask"]
    check_layer(
        SemanticTargetAttention,
        {"units": 6},
        inputs,
        differentiable=["target", "behaviors", "similarity"],
        ignores_hidden_nan=True,
    )
