"""Tests of quantisation, similarities and the embedding of items."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfmm.index import encode

VECTORS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-(2.0**60), 2.0**60, width=32),
)


def test_quantize_by_hand():
    rows, scales = encode.quantize([[0.3, -0.4], [2.0, 1.0]])
    assert rows.tolist() == [[round(0.3 * 127 / 0.4), -127], [127, 64]]
    assert scales.tolist() == [np.float32(1) / np.sqrt(np.float32(95**2 + 127**2)),
                               np.float32(1) / np.sqrt(np.float32(127**2 + 64**2))]  # fmt: skip


def test_zero_vector_means_no_embedding():
    rows, scales = encode.quantize(np.zeros([1, 3]))
    assert rows.tolist() == [[0, 0, 0]]
    assert scales.tolist() == [0.0]


@hypothesis.given(VECTORS)
def test_quantized_direction_is_close_and_length_is_dropped(vectors):
    rows, scales = encode.quantize(vectors)
    assert np.abs(rows).max(axis=1).tolist() == [127 if row.any() else 0 for row in vectors]
    halved, halved_scales = encode.quantize(vectors.astype(np.float64) * 0.5)
    hypothesis.assume(np.array_equal(vectors * np.float32(0.5) * 2, vectors))  # no underflow
    np.testing.assert_array_equal(rows, halved)
    np.testing.assert_array_equal(scales, halved_scales)


@pytest.mark.parametrize("vectors", [[[np.nan, 1.0]], [[np.inf, 1.0]]])
def test_values_that_are_not_finite_are_refused(vectors):
    with pytest.raises(ValueError, match="must be finite"):
        encode.quantize(vectors)


def test_more_values_than_float32_counts_exactly_are_refused():
    with pytest.raises(ValueError, match=r"D in 1\.\.1040"):
        encode.quantize(np.ones([1, 1041]))


@pytest.mark.parametrize("dim", [8, 64, 1040])
def test_similarities_agree_between_numpy_and_tensorflow(dim):
    """Decision: dots of int8 rows are whole numbers below 2**24, so any order of summation gives one result."""
    generator = np.random.default_rng(dim)
    rows, scales = encode.quantize(generator.normal(size=[200, dim]))
    rows[:20], scales[:20] = rows[20:40], scales[20:40]
    extreme = np.full([2, dim], 127, np.int8)
    extreme[1] = -127
    rows[:2], scales[:2] = extreme, encode.scales_of(extreme)
    wanted = encode.similarity(rows, scales, rows, scales)
    exact = rows.astype(np.int64) @ rows.astype(np.int64).T
    np.testing.assert_array_equal(wanted, exact.astype(np.float32) * scales[:, None] * scales[None, :])

    def graph(rows, scales):
        values = tf.cast(rows, tf.float32)
        return tf.matmul(values, values, transpose_b=True) * scales[:, None] * scales[None, :]

    tiers = np.clip(np.floor((wanted + np.float32(1)) * np.float32(10)), 0, 19)
    for compiled in (False, True):
        found = tf.function(graph, jit_compile=compiled)(rows, scales).numpy()
        np.testing.assert_array_equal(np.clip(np.floor((found + np.float32(1)) * np.float32(10)), 0, 19), tiers)
    assert set(np.diag(tiers)) == {19}


def test_encoder_takes_texts_and_bytes(encoder_dirs):
    encoder = encode.load_encoder(encoder_dirs["text"])
    assert (encoder.modality, encoder.dim, encoder.version) == ("text", 6, "v1")
    vectors = encoder(["shoe", b"shoe", "bad"])
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert vectors.dtype == np.float32 and not vectors[2].any()
    assert encoder([]).shape == (0, 6)


def test_unfinished_pretraining_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest.json is missing"):
        encode.load_encoder(tmp_path)


def test_embed_tells_missing_from_rejected(encoder_dirs):
    encoder = encode.load_encoder(encoder_dirs["image"])
    items = [encode.Item(1, image=b"good", event_time_us=5), encode.Item(2), encode.Item(3, image=b"bad"),
             encode.Item(4, image=b"")]  # fmt: skip
    rows, rejected, missing = encode.embed(items, encoder)
    assert rows.ids.tolist() == [1] and rows.event_times_us.tolist() == [5]
    assert rejected == {2: "image: cannot be decoded"}  # by place in `items`
    assert missing == 2


def test_embed_rejects_an_item_without_an_id():
    items = [encode.Item(0, vector=[1.0, 0.0]), encode.Item(5, vector=[1.0, 0.0]), encode.Item(0)]
    rows, rejected, missing = encode.embed(items, encode.GivenVectors(2))
    assert rows.ids.tolist() == [5] and missing == 0
    assert rejected == dict.fromkeys((0, 2), "item_id: must be neither null, 0 nor empty")


def test_given_vectors_of_equal_length_share_a_version():
    assert encode.GivenVectors(4).version == encode.GivenVectors(4).version != encode.GivenVectors(5).version
