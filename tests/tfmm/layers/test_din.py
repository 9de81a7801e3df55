import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import Dice, DINAttention, MAKEBlock, SemanticTargetAttention, masked_softmax
from tfmm.testing import check_layer, execution


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


@pytest.mark.parametrize("softmax", [False, True])
def test_no_behaviors_give_zeros_and_no_targets_give_no_rows(rng, softmax):
    target, history = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(1, 3, 4)).astype(np.float32)
    layer = DINAttention((5,), softmax=softmax)
    layer(target, history)
    spec = [tf.TensorSpec([None, 4]), tf.TensorSpec([1, None, 4])]
    functions = [layer, tf.function(layer.call, autograph=False), tf.function(layer.call, spec, autograph=False)]
    functions.append(tf.function(layer.call, jit_compile=True, autograph=False))
    for function in functions:
        np.testing.assert_array_equal(function(target, history[:, :0]), np.zeros((30, 4)))
        assert function(target[:0], history).shape == (0, 4)
    np.testing.assert_array_equal(layer(target, np.repeat(history[:, :0], 30, 0)), np.zeros((30, 4)))
    np.testing.assert_array_equal(masked_softmax(np.ones((2, 0)), np.ones((2, 0))), np.ones((2, 0)))


@pytest.mark.parametrize("activation", ["prelu", "dice"])
@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("histories", [1, 4])
def test_hidden_nan_reaches_no_result_and_no_gradient(rng, activation, softmax, histories):
    target = rng.normal(size=(4, 6)).astype(np.float32)
    behaviors = rng.normal(size=(histories, 20, 6)).astype(np.float32)
    masks = {"behaviors_mask": rng.random((histories, 20)) < 0.6, "target_mask": np.array([True, False, True, True])}
    layer = DINAttention((5,), activation=activation, softmax=softmax, chunk_size=3)
    layer(target, behaviors)
    results = []
    for hidden in (0.0, np.nan):
        target[1], behaviors[~masks["behaviors_mask"]] = hidden, hidden
        with tf.GradientTape() as tape:
            output = layer(target, behaviors, **masks, training=True)
        weights = [weight.value for weight in layer.trainable_weights]
        results.append([output, *tape.gradient(output, weights)])
    for clean, received in zip(*results, strict=True):
        np.testing.assert_array_equal(received, clean)
    np.testing.assert_array_equal(results[0][0][1], np.zeros(6))


def test_zero_padding_normalised_with_numpy_changes_nothing(rng):
    target, behaviors = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(2, 20, 4)).astype(np.float32)
    mask = np.arange(20) < [[15], [3]]
    layer = DINAttention((5,))
    expected = layer(target, behaviors / np.linalg.norm(behaviors, axis=-1, keepdims=True), behaviors_mask=mask)
    behaviors[~mask] = 0
    with np.errstate(invalid="ignore"):
        behaviors /= np.linalg.norm(behaviors, axis=-1, keepdims=True)  # NaN where there is padding
    np.testing.assert_allclose(layer(target, behaviors, behaviors_mask=mask), expected, atol=1e-6)


@pytest.mark.parametrize("activation", ["prelu", "dice"])
@pytest.mark.parametrize("histories", [1, 8])
def test_rows_without_a_target_are_zero_and_no_part_of_the_statistics(rng, activation, histories):
    target = rng.normal(size=(8, 4)).astype(np.float32)
    behaviors = rng.normal(size=(histories, 9, 4)).astype(np.float32)
    exists = np.arange(8) < 5
    layers = [DINAttention((5,), activation=activation) for _ in range(2)]
    for layer in layers:
        layer(target, behaviors)
        layer.set_weights(layers[0].get_weights())
    expected = layers[0](target[:5], behaviors[:5], training=True)
    received = layers[1](target, behaviors, target_mask=exists, training=True)
    np.testing.assert_allclose(received[:5], expected, atol=1e-5)
    np.testing.assert_array_equal(received[5:], np.zeros((3, 4)))
    for mine, other in zip(layers[0].get_weights(), layers[1].get_weights(), strict=True):
        np.testing.assert_allclose(mine, other, atol=1e-6)


def test_mask_may_be_a_list(rng):
    target, behaviors = rng.normal(size=(2, 4)).astype(np.float32), rng.normal(size=(2, 2, 4)).astype(np.float32)
    layer, mask = DINAttention((5,)), [[True, False], [True, True]]
    received = layer(target, behaviors, behaviors_mask=mask)
    np.testing.assert_array_equal(received, layer(target, behaviors, behaviors_mask=np.array(mask)))


def test_layer_made_untrainable_has_nothing_to_train(rng):
    layer = DINAttention((5, 3), activation="dice", trainable=False)
    layer(np.ones((2, 4), np.float32), np.ones((2, 3, 4), np.float32))
    before = layer.get_weights()
    layer(np.ones((2, 4), np.float32), np.ones((2, 3, 4), np.float32), training=True)
    assert not any(variable.trainable for variable in layer.variables if "moving" not in variable.path)
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    layer.trainable = True
    assert len(layer.trainable_variables) == 2 + 2 + 2 * 2  # kernel and bias, Dice's slopes, two dense layers


@pytest.mark.parametrize("layer_class", [DINAttention, MAKEBlock, SemanticTargetAttention])
@pytest.mark.parametrize("is_static", [False, True])
def test_exported_shared_history_gives_the_eager_result(tmp_path, rng, layer_class, is_static):
    inputs = {
        "target": keras.Input((4,), name="target"),
        "behaviors": keras.Input(batch_shape=(1, 20, 4), name="behaviors"),
        "behaviors_mask": keras.Input(batch_shape=(1, 20), dtype="bool", name="behaviors_mask"),
    }
    if layer_class is SemanticTargetAttention:
        inputs["similarity"] = keras.Input((20,), name="similarity")
    layer = layer_class(3) if layer_class is SemanticTargetAttention else layer_class()
    output = layer(**inputs)
    model = keras.Model(list(inputs.values()), output["logit"] if layer_class is MAKEBlock else output)
    arrays = {
        "target": rng.normal(size=(5, 4)).astype(np.float32),
        "behaviors": rng.normal(size=(1, 20, 4)).astype(np.float32),
        "behaviors_mask": rng.random((1, 20)) < 0.7,
        "similarity": rng.uniform(-1, 1, (5, 20)).astype(np.float32),
    }
    arrays = {name: arrays[name] for name in inputs}
    signature = [[tf.TensorSpec(x.shape, x.dtype, x.name) for x in inputs.values()]] if is_static else None
    model.export(tmp_path, verbose=False, input_signature=signature)
    (received,) = execution.run_saved_model(tmp_path, arrays).values()
    np.testing.assert_allclose(received, model(list(arrays.values())), atol=1e-5)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"units": ()}, "`units` must name at least one hidden layer"),
        ({"softmax": "no"}, "`softmax` must be True or False"),
        ({"units": (0,)}, "`units` must be an int of at least 1. Received: 0"),
        ({"units": (2.5,)}, "`units` must be an int of at least 1. Received: 2.5"),
        ({"units": (True,)}, "`units` must be an int of at least 1. Received: True"),
        ({"units": 8}, "`units` must be a sequence of ints. Received: 8"),
        ({"chunk_size": 0}, "`chunk_size` must be an int of at least 1"),
        ({"chunk_size": -1}, "`chunk_size` must be an int of at least 1"),
        ({"chunk_size": 2.5}, "`chunk_size` must be an int of at least 1"),
        ({"activation": "rellu"}, "`activation` must be the name of a Keras activation, .* or one of .*'dice'"),
        ({"activation": None}, "`activation` must be the name"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        DINAttention(**arguments)


@pytest.mark.parametrize("arguments", [{"epsilon": -1}, {"epsilon": 0.0}, {"momentum": 5}, {"momentum": -0.1}])
def test_wrong_arguments_of_dice_are_refused(arguments):
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}` must be"):
        Dice(**arguments)


def test_numpy_ints_are_stored_as_python_ints():
    layer = DINAttention(np.array([3, 2]), chunk_size=np.int64(4))
    stored = [*layer.get_config()["units"], layer.get_config()["chunk_size"]]
    assert stored == [3, 2, 4] and all(type(value) is int for value in stored)


@pytest.mark.parametrize("name, value", [("epsilon", "a"), ("momentum", None), ("epsilon", True)])
def test_numbers_of_dice_that_are_none_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be a number. Received: {value!r}"):
        Dice(**{name: value})


@pytest.mark.parametrize("shape", [(2, 4), (3, 5), (5, 1), (1, 2, 5)])
def test_softmax_refuses_a_mask_that_does_not_broadcast(shape):
    for scores in (np.ones((2, 5), np.float32), keras.Input(batch_shape=(2, 5))):
        with pytest.raises(ValueError, match=r"`mask` must have the shape of `scores`, \(2, 5\), or broadcast"):
            masked_softmax(scores, np.ones(shape, bool))
    for fitting in ((1, 5), (2, 1), (5,)):
        np.testing.assert_allclose(masked_softmax(np.ones((2, 5)), np.ones(fitting, bool)), np.full((2, 5), 0.2))


@pytest.mark.parametrize("symbolic", [False, True])
@pytest.mark.parametrize(
    "target, behaviors, masks, rule",
    [
        ((2, 3), (2, 5, 4), {}, "`target` must have as many values"),
        ((2, 5, 3), (2, 5, 3), {}, "`target` must have 2 axes"),
        ((2, 3), (2, 3), {}, "`behaviors` must have 3 axes"),
        ((3, 3), (2, 5, 3), {}, "`behaviors` must hold one history per target"),
        ((1, 3), (2, 5, 3), {}, "`behaviors` must hold one history per target"),
        ((2, 3), (2, 5, 3), {"behaviors_mask": (2, 4)}, "`behaviors_mask` must have the shape"),
        ((2, 3), (2, 5, 3), {"behaviors_mask": (2, 1)}, "`behaviors_mask` must have the shape"),
        ((2, 3), (2, 5, 3), {"behaviors_mask": (1, 5)}, "`behaviors_mask` must have the shape"),
        ((2, 3), (1, 5, 3), {"behaviors_mask": (2, 5)}, "`behaviors_mask` must have the shape"),
        ((2, 3), (2, 5, 3), {"target_mask": (2, 1)}, "`target_mask` must have the shape"),
        ((2, 3), (2, 5, 3), {"target_mask": (3,)}, "`target_mask` must have the shape"),
    ],
)
def test_wrong_inputs_are_refused(symbolic, target, behaviors, masks, rule):
    def make(shape, dtype):
        return keras.Input(batch_shape=shape, dtype=dtype) if symbolic else np.ones(shape, dtype)

    layer = DINAttention((2,))
    masks = {name: make(shape, "bool") for name, shape in masks.items()}
    with pytest.raises(ValueError, match=rule):
        layer(make(target, "float32"), make(behaviors, "float32"), **masks)
    layer(np.ones((2, 3), np.float32), np.ones((2, 5, 3), np.float32))
    with pytest.raises(ValueError, match=rule):
        layer(make(target, "float32"), make(behaviors, "float32"), **masks)


@pytest.mark.parametrize("make", [np.ones, lambda shape, dtype: keras.Input(batch_shape=shape, dtype=dtype)])
def test_wrong_dims_and_dtypes_are_refused_in_a_built_layer(make):
    layer = DINAttention((2,))
    layer(np.ones((2, 3), np.float32), np.ones((2, 5, 3), np.float32))
    with pytest.raises(ValueError, match="must have 3 values per vector, as when the layer was built"):
        layer(make((2, 4), "float32"), make((2, 5, 4), "float32"))
    with pytest.raises(ValueError, match="`behaviors` must be float; `unit_vectors`"):
        layer(make((2, 3), "float32"), make((2, 5, 3), "int8"))


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
        "target_mask": np.array([True, False, True]),
    }
    check_layer(DINAttention, settings, inputs, differentiable=["target", "behaviors"], ignores_hidden_nan=True)


def test_dice_conformance(rng):
    inputs = {"inputs": rng.normal(size=(3, 5)).astype(np.float32)}
    check_layer(Dice, {"epsilon": 1e-6, "momentum": 0.9}, inputs, differentiable=["inputs"])
