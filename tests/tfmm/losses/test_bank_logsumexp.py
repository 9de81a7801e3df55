"""The streamed sum over the bank: equal to the dense one and to float64, at any chunk, mask and temperature."""

import hypothesis
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import strategies as st

from tfmm.losses.bank_logsumexp import bank_logsumexp

IDS = np.arange(6) % 4


def unit(rng, rows, dim=8):
    vectors = rng.normal(size=(rows, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def value_and_gradient(queries, *arguments, compiled=True, jit_compile=False, **options):
    def compute(queries):
        with tf.GradientTape() as tape:
            tape.watch(queries)
            value = bank_logsumexp(queries, *arguments, **options)
        return value, tape.gradient(value, queries)

    run = tf.function(compute, jit_compile=jit_compile) if compiled else compute
    return [np.asarray(each) for each in run(tf.constant(queries))]


def float64(queries, bank, counts):
    """log sum exp and the mean of the bank under the softmax, row by row; counts is bool [B, K]."""
    logits = np.where(counts, queries.astype(float) @ bank.T.astype(float), -np.inf)
    top = logits.max(1, keepdims=True)
    weights = np.exp(logits - top)
    return top[:, 0] + np.log(weights.sum(1)), weights @ bank / weights.sum(1, keepdims=True)


@hypothesis.given(
    st.integers(1, 40),
    st.integers(1, 45),
    st.sampled_from([0.01, 0.025, 0.07, 1.0]),
    st.booleans(),
    st.booleans(),
)
def test_equals_float64(size, chunk_size, temperature, masked, with_ids):
    rng = np.random.default_rng(size)
    queries, bank = unit(rng, 6) / np.float32(temperature), unit(rng, size)
    bank_ids, filled = np.arange(size) % 7, rng.random(size) < 0.7
    counts = np.ones((6, size), bool) & (filled if masked else True)
    if with_ids:
        counts &= IDS[:, None] != bank_ids
    some = counts.any(1)
    hypothesis.assume(some.any())
    options = {"memory_bank_mask": filled} if masked else {}
    if with_ids:
        options |= {"positive_ids": IDS, "memory_bank_ids": bank_ids}
    if masked:
        bank = np.where(filled[:, None], bank, np.nan)
    value, gradient = value_and_gradient(queries, bank, chunk_size=chunk_size, compiled=False, **options)
    expected, mean = float64(queries[some], np.nan_to_num(bank), counts[some])
    # float32 products: a logit of up to 100 is right to about 1e-5, and so is each weight
    np.testing.assert_allclose(value[some], expected, rtol=2e-6, atol=1e-5)
    np.testing.assert_allclose(gradient[some], mean, atol=3e-5)
    assert (value[~some] < -1e29).all()
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("temperature", [0.07, 0.01])
def test_compiled_forms_agree_with_dense_autodiff(jit_compile, temperature):
    rng = np.random.default_rng(0)
    queries, bank = unit(rng, 6) / np.float32(temperature), unit(rng, 103)
    dense = value_and_gradient(queries, bank)

    @tf.function(jit_compile=jit_compile)
    def streamed(queries):
        with tf.GradientTape() as tape:
            tape.watch(queries)
            value = bank_logsumexp(queries, bank, chunk_size=10)
        return value, tape.gradient(value, queries)

    for computed, expected in zip(streamed(tf.constant(queries)), dense):
        np.testing.assert_allclose(computed, expected, rtol=1e-5, atol=3e-5)


def test_small_temperature_keeps_a_running_maximum():
    """Every negative is opposite to the query: exp(-2 / 0.01) is 0 in float32, so |q| as the maximum fails."""
    query = np.array([[100.0, 0.0]], np.float32)
    bank = np.array([[-1.0, 0.0]] * 9, np.float32)
    value, gradient = value_and_gradient(query, bank, chunk_size=4)
    np.testing.assert_allclose(value, -100 + np.log(9), rtol=1e-6)
    np.testing.assert_allclose(gradient, [[-1.0, 0.0]], rtol=1e-6)


def test_maximum_that_grows_from_chunk_to_chunk():
    query = np.array([[100.0, 0.0]], np.float32)
    bank = np.array([[np.cos(a), np.sin(a)] for a in np.linspace(np.pi, 0, 12)], np.float32)
    value, gradient = value_and_gradient(query, bank, chunk_size=2)
    expected, mean = float64(query, bank, np.ones((1, 12), bool))
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, mean, atol=1e-5)


@pytest.mark.parametrize("gemm_dtype", ["float32", "bfloat16"])
def test_bfloat16_bank_in_either_product(gemm_dtype):
    rng = np.random.default_rng(0)
    queries, bank = unit(rng, 6, 64) / np.float32(0.07), unit(rng, 500, 64)
    expected = value_and_gradient(queries, bank)
    rounded = tf.cast(bank, tf.bfloat16)
    value, gradient = value_and_gradient(queries, rounded, chunk_size=64, gemm_dtype=gemm_dtype)
    # 2^-9 per cosine, averaged over 500 slots; bfloat16 weights as well where the products are
    np.testing.assert_allclose(value, expected[0], atol=5e-3)
    np.testing.assert_allclose(gradient, expected[1], atol=3e-3)


def test_logits_never_exist():
    """No tensor of the traced graph has K columns, nor is one of them larger than the bank."""
    bank = tf.zeros([4096, 8])

    @tf.function
    def streamed(queries):
        with tf.GradientTape() as tape:
            tape.watch(queries)
            value = bank_logsumexp(queries, bank, chunk_size=64)
        return tape.gradient(value, queries)

    graph = streamed.get_concrete_function(tf.TensorSpec([512, 8])).graph
    sizes = [
        tensor.shape.num_elements() or 0
        for function in [graph, *(f.graph for f in _functions(graph))]
        for operation in function.get_operations()
        for tensor in operation.outputs
    ]
    assert max(sizes) == 4096 * 8
    assert 512 * 64 in sizes


def _functions(graph):
    return [f for f in graph._functions.values() if hasattr(f, "graph")]


@pytest.mark.parametrize("temperature", [0.07, 0.004])
@pytest.mark.parametrize("chunk_size", [8, None])
def test_nan_in_the_bank_is_no_number_rather_than_no_negative(temperature, chunk_size):
    rng = np.random.default_rng(5)
    bank = unit(rng, 40)
    bank[30, 2] = np.nan
    value = bank_logsumexp(unit(rng, 3) / temperature, bank, chunk_size=chunk_size)
    assert np.isnan(value).all()


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("length", [1e-3, 20.0])
def test_bank_of_longer_vectors_keeps_a_running_maximum(length, jit_compile):
    rng = np.random.default_rng(6)
    queries, bank = unit(rng, 3) / 0.07, unit(rng, 50) * np.float32(length)
    expected, mean = float64(queries, bank, np.ones((3, 50), bool))
    value, gradient = value_and_gradient(queries, bank, jit_compile=jit_compile, chunk_size=16)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_number_of_slots_need_not_be_static(jit_compile):
    rng = np.random.default_rng(7)
    queries = unit(rng, 3)

    @tf.function(input_signature=[tf.TensorSpec([None, 8])], jit_compile=jit_compile)
    def streamed(bank):
        return bank_logsumexp(queries, bank, chunk_size=16)

    assert np.isnan(streamed(unit(rng, 0))).all()  # no negative at all is no loss of 0
    for size in (5, 16, 32, 50):
        bank = unit(rng, size)
        np.testing.assert_allclose(streamed(bank), bank_logsumexp(queries, bank, chunk_size=None), rtol=1e-5)
    operations = [operation for f in _functions(streamed.get_concrete_function().graph) for operation in
                  f.graph.get_operations()]
    assert any("While" in operation.type for operation in operations)  # it streams


@pytest.mark.parametrize("position", [(0, 1), (30, 2)])
def test_nan_in_one_query_is_that_rows_alone(position):
    rng = np.random.default_rng(8)
    queries, bank = unit(rng, 40), unit(rng, 40)
    queries[position] = np.nan
    value = np.asarray(bank_logsumexp(queries, bank, chunk_size=16))
    assert list(np.flatnonzero(np.isnan(value))) == [position[0]]
