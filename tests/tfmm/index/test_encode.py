"""Tests of quantisation, similarities and the embedding of items."""

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np
import pytest
import tensorflow as tf

from tfmm import artifacts
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
    contents = (b"good", None, b"bad", b"")
    items = [encode.Item(n, event_time_us=5, contents={"image": content}) for n, content in enumerate(contents, 1)]
    rows, rejected, missing = encode.embed(items, encoder)
    assert rows.ids.tolist() == [1] and rows.event_times_us.tolist() == [5]
    assert rejected == {2: "image: cannot be decoded, or is blank"}  # by place in `items`
    assert missing == 2


def test_embed_rejects_an_item_without_an_id():
    contents = {"vector": [1.0, 0.0]}
    items = [encode.Item(0, contents=contents), encode.Item(5, contents=contents), encode.Item(0)]
    rows, rejected, missing = encode.embed(items, encode.GivenVectors(2))
    assert rows.ids.tolist() == [5] and missing == 0
    assert rejected == dict.fromkeys((0, 2), "item_id: must be neither null, 0 nor empty")


def test_content_that_the_encoder_fails_on_does_not_take_others_along():
    vectors = [[1.0, 0.0]] * 9
    vectors[2], vectors[7] = [[1.0], [2.0]], [10**400, 0]
    items = [encode.Item(n, contents={"vector": vector}) for n, vector in enumerate(vectors, 1)]
    rows, rejected, missing = encode.embed(items, encode.GivenVectors(2))
    assert rows.ids.tolist() == [1, 2, 4, 5, 6, 7, 9] and missing == 0
    assert {place: reason.partition(": the encoder fails: ")[0] for place, reason in rejected.items()} == {
        2: "vector",
        7: "vector",
    }
    assert rejected[7] == "vector: the encoder fails: int too large to convert to float"


def test_vectors_with_a_null_or_beyond_float32_are_not_finite():
    vectors = ([None, 1.0], [1e39, 1.0], [1.0, 2.0])
    items = [encode.Item(n, contents={"vector": vector}) for n, vector in enumerate(vectors, 1)]
    rows, rejected, _ = encode.embed(items, encode.GivenVectors(2))
    assert rows.ids.tolist() == [3]
    assert rejected == dict.fromkeys((0, 1), "vector: must give 2 finite values")


def test_long_title_is_rejected_by_its_bytes(encoder_dirs):
    titles = ["é" * 8192, "é" * 8193, b"\xff" * 16384, b"\xff" * 16385, "\ud800" * 5462]
    items = [encode.Item(n, contents={"text": title}) for n, title in enumerate(titles, 1)]
    rows, rejected, missing = encode.embed(items, encode.load_encoder(encoder_dirs["text"]))
    assert rows.ids.tolist() == [1, 3] and missing == 0
    reason = "title: must be at most 16384 bytes of UTF-8, not {}; shorten it"
    assert rejected == {1: reason.format(16386), 3: reason.format(16385), 4: reason.format(16386)}


def test_encoder_that_fails_on_every_content_is_named(encoder_dirs, tmp_path):
    artifacts.write_manifest(tmp_path, "encoder", modality="text", dim=5, encoder_version="v9")
    (tmp_path / "encoder").symlink_to(encoder_dirs["text"] + "/encoder")
    broken = encode.load_encoder(tmp_path)
    with pytest.raises(encode.EncoderError, match=r"text encoder v9 must take any content.* fails on a probe too"):
        encode.embed([encode.Item(n, contents={"text": title}) for n, title in ((1, "a"), (2, "b"))], broken)


def test_given_vectors_of_equal_length_share_a_version():
    assert encode.GivenVectors(4).version == encode.GivenVectors(4).version != encode.GivenVectors(5).version
