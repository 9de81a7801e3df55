import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import BehaviorSearch, SimTierLayer, cosine_similarity, unit_vectors
from tfmm.testing import execution


def compiled(function, jit_compile):
    return tf.function(lambda *tensors: function(*tensors), jit_compile=jit_compile, autograph=False)


def test_similarity_is_the_dot_product_of_equation_2():
    target, behaviors = np.float32([[0.6, 0.8]]), np.float32([[[0.6, 0.8], [0.8, -0.6], [-1.0, 0.0]]])
    expected = [[0.6 * 0.6 + 0.8 * 0.8, 0.6 * 0.8 - 0.8 * 0.6, -0.6]]
    np.testing.assert_allclose(cosine_similarity(target, behaviors), expected, atol=1e-7)


@pytest.mark.parametrize("dim", [1, 5, 16, 40, 128])
@pytest.mark.parametrize("shared", [False, True])
def test_every_form_agrees_with_float64(make_unit, dim, shared):
    target, behaviors = make_unit(4, dim), make_unit(1 if shared else 4, 9, dim)
    expected = np.einsum(
        "bd,bld->bl", target.astype(np.float64), np.broadcast_to(behaviors, (4, 9, dim)).astype(np.float64)
    )
    for function in (
        cosine_similarity,
        compiled(cosine_similarity, False),
        compiled(cosine_similarity, True),
    ):
        np.testing.assert_allclose(
            function(target, behaviors), expected, atol=5e-7
        )  # float32 sums of <= 128 terms


@pytest.mark.parametrize("dim", [8, 128, 1040])
def test_int8_similarity_is_bitwise_the_same_in_every_form(make_int8, dim):
    target, target_scales = make_int8(3, dim)
    behaviors, behaviors_scales = make_int8(1, 50, dim)
    dots = target.astype(np.int64) @ behaviors[0].astype(np.int64).T
    expected = dots.astype(np.float32) * target_scales[:, None] * behaviors_scales
    tiled = (np.repeat(behaviors, 3, 0), np.repeat(behaviors_scales, 3, 0))
    for rows, scales in ((behaviors, behaviors_scales), tiled):
        for function in (
            cosine_similarity,
            compiled(cosine_similarity, False),
            compiled(cosine_similarity, True),
        ):
            np.testing.assert_array_equal(function(target, rows, target_scales, scales), expected)


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("sizes", [(None, None), (None, 1), (3, None)])
def test_histories_of_unknown_number_may_turn_out_to_be_shared(make_int8, jit_compile, sizes):
    target, target_scales = make_int8(3, 8)
    behaviors, behaviors_scales = make_int8(1, 50, 8)
    expected = cosine_similarity(target, behaviors, target_scales, behaviors_scales)
    signature = [
        tf.TensorSpec([sizes[0], 8], tf.int8),
        tf.TensorSpec([sizes[1], 50, 8], tf.int8),
        tf.TensorSpec([sizes[0]], tf.float32),
        tf.TensorSpec([sizes[1], 50], tf.float32),
    ]
    function = tf.function(cosine_similarity, signature, jit_compile=jit_compile, autograph=False)
    for copies in (1, 3) if sizes[1] is None else (1,):
        rows, scales = np.repeat(behaviors, copies, 0), np.repeat(behaviors_scales, copies, 0)
        np.testing.assert_array_equal(function(target, rows, target_scales, scales), expected)


def test_xla_form_needs_no_buffer_of_all_vectors(make_int8):
    target, target_scales = make_int8(8, 64)
    behaviors, behaviors_scales = make_int8(8, 512, 64)
    function = compiled(cosine_similarity, True)
    tensors = [tf.constant(x) for x in (target, behaviors, target_scales, behaviors_scales)]
    function(*tensors)
    program = function.experimental_get_compiler_ir(*tensors)(stage="optimized_hlo")
    entry = program[program.index("ENTRY") :]
    assert "f32[8,512,64]" not in entry, "the rows were widened to float32 in memory"


def test_scales_make_vectors_of_any_length_unit(rng):
    vectors = rng.normal(size=(2, 6)).astype(np.float32)
    scales = 1 / np.linalg.norm(vectors, axis=-1)
    same = cosine_similarity(vectors, vectors[:, None], scales, scales[:, None])
    np.testing.assert_allclose(same, [[1.0], [1.0]], atol=1e-6)


def test_unit_vectors_of_a_withdrawn_item_are_zero():
    np.testing.assert_array_equal(unit_vectors(np.int8([[3, 4]]), np.float32([0.0])), [[0.0, 0.0]])


def test_scales_of_unit_vectors_are_not_broadcast():
    with pytest.raises(ValueError, match=r"`scales` must have the shape \(2, 3\)"):
        unit_vectors(np.ones((2, 3, 4), np.int8), np.ones((2, 1), np.float32))


VECTORS = {"target": np.ones((3, 4), np.float32), "behaviors": np.ones((3, 5, 4), np.float32)}
ROWS = {
    "target": np.ones((3, 4), np.int8),
    "behaviors": np.ones((3, 5, 4), np.int8),
    "target_scales": np.full(3, 0.5, np.float32),
    "behaviors_scales": np.full((3, 5), 0.5, np.float32),
}
SIMILARITY = {"similarity": np.ones((3, 5), np.float32)}


def floats(*shape):
    return np.ones(shape, np.float32)


def bools(*shape):
    return np.ones(shape, bool)


WRONG_VECTORS = [
    ({**VECTORS, "target": floats(3, 5)}, "`target` must have as many values"),
    ({**VECTORS, "target": floats(3)}, "`target` must have 2 axes"),
    ({**VECTORS, "behaviors": floats(3, 4)}, "`behaviors` must have 3 axes"),
    ({**VECTORS, "behaviors": floats(2, 5, 4)}, "one history per target"),
    ({**VECTORS, "target": floats(1, 4)}, "one history per target"),
    ({**ROWS, "target_scales": None}, "`target` must be float"),
    ({**ROWS, "behaviors_scales": None}, "`behaviors` must be float"),
    ({**VECTORS, "target": np.ones((3, 4), np.int32)}, "`target` must be float"),
    ({**ROWS, "target_scales": floats(3, 1)}, "`target_scales` must have the shape"),
    ({**ROWS, "target_scales": floats(1)}, "`target_scales` must have the shape"),
    ({**ROWS, "behaviors_scales": floats(3)}, "`behaviors_scales` must have the shape"),
    ({**ROWS, "behaviors_scales": floats(5)}, "`behaviors_scales` must have the shape"),
    ({**ROWS, "behaviors_scales": floats(1, 5)}, "`behaviors_scales` must have the shape"),
    ({**ROWS, "behaviors_scales": floats(3, 5, 1)}, "`behaviors_scales` must have the shape"),
    ({**ROWS, "target": np.ones((3, 4), np.uint8)}, "`target` with `target_scales` must be int8 or float.*'uint8'"),
    ({**ROWS, "behaviors": np.ones((3, 5, 4), np.int32)}, "`behaviors` with `behaviors_scales` must be int8 or.*int32"),
    ({**ROWS, "target": np.ones((3, 1041), np.int8), "behaviors": floats(3, 5, 1041)}, "at most 1040"),
    ({**ROWS, "target": floats(3, 1041), "behaviors": np.ones((3, 5, 1041), np.int8)}, "at most 1040"),
    ({**ROWS, "target": np.ones((3, 1041), np.int8), "behaviors": np.ones((3, 5, 1041), np.int8)}, "at most 1040"),
]
WRONG_INPUTS = [
    ({}, "Pass `target` and `behaviors`, or `similarity`"),
    ({**VECTORS, "behaviors_mask": bools(3, 6)}, "`behaviors_mask` must have the shape"),
    ({**VECTORS, "behaviors_mask": bools(3, 1)}, "`behaviors_mask` must have the shape"),
    ({**VECTORS, "behaviors_mask": bools(1, 5)}, "`behaviors_mask` must have the shape"),
    ({**VECTORS, "behaviors_present": bools(3, 6)}, "`behaviors_present` must have the shape"),
    ({**VECTORS, "target_mask": bools(3, 1)}, "`target_mask` must have the shape"),
    ({**SIMILARITY, "behaviors_mask": bools(3, 4)}, "`behaviors_mask` must have the shape"),
    ({**SIMILARITY, "target_mask": bools(5)}, "`target_mask` must have the shape"),
    ({"similarity": floats(3, 5, 4)}, "`similarity` must have 2 axes"),
    ({**SIMILARITY, "target": floats(3, 4)}, "not both"),
    ({**SIMILARITY, "behaviors_scales": floats(3, 5)}, "not both"),
]


@pytest.mark.parametrize("inputs, rule", WRONG_VECTORS)
def test_wrong_vectors_are_refused(inputs, rule):
    with pytest.raises(ValueError, match=rule):
        cosine_similarity(**inputs)


@pytest.mark.parametrize("layer_class", [SimTierLayer, BehaviorSearch])
@pytest.mark.parametrize("inputs, rule", WRONG_VECTORS + WRONG_INPUTS)
def test_layers_refuse_wrong_inputs_also_when_a_model_is_built(layer_class, inputs, rule):
    inputs = {name: x for name, x in inputs.items() if x is not None}
    with pytest.raises(ValueError, match=rule):
        layer_class(22)(**inputs)
    symbolic = {name: keras.Input(batch_shape=x.shape, dtype=str(x.dtype)) for name, x in inputs.items()}
    with pytest.raises(ValueError, match=rule):
        layer_class(22)(**symbolic)


@pytest.mark.parametrize("layer_class", [SimTierLayer, BehaviorSearch])
def test_masks_may_be_lists_and_of_a_shared_history(layer_class):
    inputs = {"target": floats(3, 4) / 2, "behaviors": floats(1, 2, 4) / 2}
    shared = layer_class(1)(**inputs, behaviors_mask=[[True, False]], target_mask=[True, True, False])
    masks = {"behaviors_mask": np.array([[True, False]] * 3), "target_mask": np.arange(3) < 2}
    own = layer_class(1)(inputs["target"], np.repeat(inputs["behaviors"], 3, 0), **masks)
    for received, expected in zip(tf.nest.flatten(shared), tf.nest.flatten(own), strict=True):
        np.testing.assert_array_equal(received, expected)


def test_a_scale_of_zero_is_a_missing_embedding(make_int8):
    (target, target_scales), (behaviors, behaviors_scales) = make_int8(2, 8), make_int8(2, 6, 8)
    target_scales[1] = behaviors_scales[0, 2:] = 0
    layer = SimTierLayer(4, "ratio", count_missing=True)
    present = np.array([[True] * 5 + [False], [True] * 6])
    scales = {"target_scales": target_scales, "behaviors_scales": behaviors_scales}
    shares = layer(target, behaviors, behaviors_present=present, **scales).numpy()
    np.testing.assert_allclose(shares[:, :-1].sum(1), [1, 0])
    np.testing.assert_allclose(shares[:, -1], [3 / 5, 0])


@pytest.mark.parametrize("names_the_size", [False, True])
def test_exported_model_counts_a_shared_history_exactly(tmp_path, make_int8, rng, names_the_size):
    (target, target_scales), (behaviors, behaviors_scales) = make_int8(7, 16), make_int8(1, 60, 16)
    inputs = {
        "target": target,
        "behaviors": behaviors,
        "behaviors_mask": rng.random((1, 60)) < 0.7,
        "target_scales": target_scales,
        "behaviors_scales": behaviors_scales,
        "behaviors_present": rng.random((1, 60)) < 0.9,
    }
    layer = SimTierLayer(20, "log1p", count_missing=True)
    shapes = {name: (1 if "behaviors" in name else None, *x.shape[1:]) for name, x in inputs.items()}
    specs = {name: tf.TensorSpec(shapes[name], x.dtype, name) for name, x in inputs.items()}
    symbolic = {name: keras.Input(batch_shape=x.shape, dtype=x.dtype.name, name=name) for name, x in specs.items()}
    model = keras.Model(symbolic, layer(**symbolic))
    model.export(str(tmp_path), verbose=False, input_signature=[specs] if names_the_size else None)
    expected = layer(**inputs)
    tiled = {name: np.repeat(x, 7, 0) if "behaviors" in name else x for name, x in inputs.items()}
    np.testing.assert_array_equal(model(inputs), expected)
    np.testing.assert_array_equal(layer(**tiled), expected)
    (received,) = execution.run_saved_model(tmp_path, inputs).values()
    np.testing.assert_array_equal(received, expected)
