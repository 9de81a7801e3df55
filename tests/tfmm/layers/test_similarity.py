import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import cosine_similarity, unit_vectors


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


@pytest.mark.parametrize(
    "target, behaviors, rule",
    [
        (np.ones((2, 3), np.float32), np.ones((2, 5, 4), np.float32), "`target` must have as many values"),
        (np.ones((3,), np.float32), np.ones((2, 5, 3), np.float32), "`target` must have 2 axes"),
        (np.ones((2, 3), np.float32), np.ones((2, 3), np.float32), "`behaviors` must have 3 axes"),
        (np.ones((2, 3), np.int8), np.ones((2, 5, 3), np.int8), "int8 rows need `target_scales`"),
        (np.ones((2, 1041), np.int8), np.ones((2, 5, 1041), np.int8), "at most 1040 values"),
    ],
)
def test_wrong_vectors_are_refused(target, behaviors, rule):
    with pytest.raises(ValueError, match=rule):
        cosine_similarity(target, behaviors)
