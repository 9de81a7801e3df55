import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import Dice, DINAttention, masked_softmax
from tfmm.testing import check_layer


def reference(layer, target, behaviors, mask):
    """DIN's activation unit as printed: an MLP over the joined vectors, in float64; evaluation mode."""

    def activate(x, activation):
        if isinstance(activation, Dice):
            bn = activation.standardize
            mean, variance = (np.float64(v) for v in (bn.moving_mean, bn.moving_variance))
            p = 1 / (1 + np.exp(-(x - mean) / np.sqrt(variance + bn.epsilon)))
            return p * x + (1 - p) * np.float64(activation.alpha) * x
        slope = np.float64(activation.alpha).reshape(-1)
        return np.where(x > 0, x, slope * x)

    result = np.zeros((len(target), target.shape[1]))
    for b, (query, keys) in enumerate(
        zip(target.astype(np.float64), behaviors.astype(np.float64), strict=True)
    ):
        scores = np.zeros(len(keys))
        for i, key in enumerate(keys):
            x = np.concatenate([query, key, query - key, query * key]) @ np.float64(layer.kernel) + layer.bias
            for activation, dense in zip(layer.activation_layers, layer.dense_layers, strict=True):
                x = activate(x, activation) @ np.float64(dense.kernel) + np.float64(dense.bias)
            scores[i] = x[0]
        weights = scores * mask[b]
        if layer.softmax:
            weights = np.exp(scores) * mask[b]
            weights = weights / max(weights.sum(), 1e-30)
        result[b] = weights @ keys
    return result


def randomize(layer, rng):
    for weight in layer.weights:
        value = rng.normal(size=weight.shape) * 0.5
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.path else value)


def compiled(layer, jit_compile):
    return tf.function(
        lambda t, b, m: layer(t, b, behaviors_mask=m), jit_compile=jit_compile, autograph=False
    )


@pytest.mark.parametrize("activation", ["prelu", "dice"])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("length", [5, 30])  # below and above where the layer folds its kernels
def test_factorised_layer_equals_the_joined_form(rng, activation, softmax, length):
    target = rng.normal(size=(4, 6)).astype(np.float32)
    behaviors = rng.normal(size=(4, length, 6)).astype(np.float32)
    mask = rng.random((4, length)) < 0.7
    layer = DINAttention((7, 3), activation=activation, softmax=softmax)
    layer(target, behaviors)
    randomize(layer, rng)
    expected = reference(layer, target, behaviors, mask)
    for function in (
        lambda *x: layer(*x[:2], behaviors_mask=x[2]),
        compiled(layer, False),
        compiled(layer, True),
    ):
        # float32 against float64: sums of up to 30 products
        np.testing.assert_allclose(function(target, behaviors, mask), expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("activation", ["prelu", "dice"])
@pytest.mark.parametrize("softmax", [False, True])
def test_shared_history_equals_the_tiled_one(rng, activation, softmax):
    target = rng.normal(size=(23, 6)).astype(np.float32)
    history = rng.normal(size=(1, 30, 6)).astype(np.float32)
    mask = rng.random((1, 30)) < 0.7
    layer = DINAttention((7, 3), activation=activation, softmax=softmax, chunk_size=10)
    layer(target[:2], np.repeat(history, 2, 0))
    randomize(layer, rng)
    tiled = layer(target, np.repeat(history, 23, 0), behaviors_mask=np.repeat(mask, 23, 0)).numpy()
    scale = np.abs(tiled).max()
    for function in (
        lambda *x: layer(*x[:2], behaviors_mask=x[2]),
        compiled(layer, False),
        compiled(layer, True),
    ):
        np.testing.assert_allclose(function(target, history, mask), tiled, atol=1e-5 * scale)


def test_shared_history_with_an_unknown_number_of_targets(rng):
    layer = DINAttention((4,), chunk_size=2)
    target, history = (
        rng.normal(size=(5, 3)).astype(np.float32),
        rng.normal(size=(1, 4, 3)).astype(np.float32),
    )
    expected = layer(target, history)
    spec = [tf.TensorSpec([None, 3]), tf.TensorSpec([1, None, 3])]
    received = tf.function(lambda t, b: layer(t, b), input_signature=spec, autograph=False)(target, history)
    np.testing.assert_allclose(received, expected, atol=1e-6)


def test_dice_in_training_uses_the_unmasked_batch_in_both_layouts(rng):
    target = rng.normal(size=(23, 6)).astype(np.float32)
    history = rng.normal(size=(1, 30, 6)).astype(np.float32)
    mask = np.arange(30)[None] < 20
    layer = DINAttention((7,), activation="dice", chunk_size=10)
    tiled = layer(target, np.repeat(history, 23, 0), behaviors_mask=np.repeat(mask, 23, 0), training=True)
    moved = np.array(layer.activation_layers[0].standardize.moving_mean)
    again = DINAttention((7,), activation="dice", chunk_size=10)
    again(target, history)
    weights = dict(
        zip([w.path.split("/", 1)[1] for w in layer.trainable_weights], layer.trainable_weights, strict=True)
    )
    for weight in again.trainable_weights:
        weight.assign(weights[weight.path.split("/", 1)[1]])
    shared = again(target, history, behaviors_mask=mask, training=True)
    np.testing.assert_allclose(shared, tiled, atol=1e-5)
    np.testing.assert_allclose(again.activation_layers[0].standardize.moving_mean, moved, atol=1e-6)
    history[:, 20:] = 100.0
    third = again(target, history, behaviors_mask=mask, training=True)
    np.testing.assert_allclose(third, tiled, atol=1e-5)


def test_dice_is_its_formula():
    x = np.float32([[1.0, -2.0], [3.0, 2.0]])
    dice = Dice()
    output = dice(x, training=True).numpy()
    p = 1 / (1 + np.exp(-(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-8)))
    np.testing.assert_allclose(output, p * x, rtol=1e-5)  # alpha starts at 0
    dice.trainable = False
    before = dice.get_weights()
    dice(x + 5, training=True)
    np.testing.assert_array_equal(before[-1], dice.get_weights()[-1])


def test_fully_masked_row_gives_zeros_and_no_nan_gradient(rng):
    target = tf.constant(rng.normal(size=(2, 4)), tf.float32)
    behaviors = tf.constant(rng.normal(size=(2, 3, 4)), tf.float32)
    mask = np.array([[True, False, True], [False] * 3])
    for softmax in (False, True):
        layer = DINAttention((5,), softmax=softmax)
        with tf.GradientTape() as tape:
            tape.watch(target)
            output = layer(target, behaviors, behaviors_mask=mask)
        np.testing.assert_array_equal(output[1], np.zeros(4))
        assert np.isfinite(tape.gradient(output, target)).all()


def test_masked_softmax_of_large_scores_is_finite():
    weights = masked_softmax(
        np.float32([[1e30, 1e30, 5.0], [1.0, 2.0, 3.0]]), np.array([[True] * 3, [False] * 3])
    )
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"units": ()}, "`units` must name at least one hidden layer"),
        ({"units": (0,)}, "`units` must name at least one hidden layer"),
        ({"chunk_size": 0}, "`chunk_size` must be at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        DINAttention(**arguments)


@pytest.mark.parametrize(
    "target, behaviors, mask, rule",
    [
        ((2, 3), (2, 5, 4), None, "`target` must have as many values"),
        ((2, 5, 3), (2, 5, 3), None, "`target` must have 2 axes"),
        ((2, 3), (2, 3), None, "`behaviors` must have 3 axes"),
        ((2, 3), (2, 5, 3), (2, 4), "`behaviors_mask` must have the shape"),
    ],
)
def test_wrong_inputs_are_refused(target, behaviors, mask, rule):
    mask = None if mask is None else np.ones(mask, bool)
    with pytest.raises(ValueError, match=rule):
        DINAttention((2,))(np.ones(target, np.float32), np.ones(behaviors, np.float32), behaviors_mask=mask)


@pytest.mark.parametrize(
    "settings",
    [
        {"units": (6, 5), "activation": "dice", "softmax": True, "chunk_size": 2},
        {"units": (6,), "activation": "sigmoid", "kernel_initializer": "he_normal"},
    ],
)
def test_conformance(rng, settings):
    mask = rng.random((3, 17)) < 0.6
    inputs = {
        "target": rng.normal(size=(3, 8)).astype(np.float32),
        "behaviors": rng.normal(size=(3, 17, 8)).astype(np.float32),
        "behaviors_mask": mask,
    }
    check_layer(DINAttention, settings, inputs, differentiable=["target", "behaviors"])


def test_dice_conformance(rng):
    inputs = {"inputs": rng.normal(size=(3, 5)).astype(np.float32)}
    check_layer(Dice, {"epsilon": 1e-6, "momentum": 0.9}, inputs, differentiable=["inputs"])
