import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import SemanticId, fit_codebooks, residual_codes
from tfmm.testing import check_layer


def test_codes_are_the_nearest_centers_of_what_is_left(rng):
    vectors, codebooks = rng.normal(size=(50, 6)), rng.normal(size=(3, 8, 6)).astype(np.float32)
    expected = np.zeros((50, 3), int)
    for i, residual in enumerate(vectors):
        for level in range(3):
            expected[i, level] = np.argmin(((codebooks[level] - residual) ** 2).sum(1))
            residual = residual - codebooks[level, expected[i, level]]
    for codes in (
        residual_codes,
        tf.function(lambda *x: residual_codes(*x), jit_compile=True, autograph=False),
    ):
        np.testing.assert_array_equal(codes(vectors.astype(np.float32), codebooks), expected)


def test_codebooks_recover_clusters_and_shrink_the_residual(rng):
    centers = 5 * rng.normal(size=(16, 8))
    vectors = (centers[rng.integers(16, size=2000)] + 0.1 * rng.normal(size=(2000, 8))).astype(np.float32)
    codebooks = fit_codebooks(vectors, num_levels=3, codebook_size=16)
    codes = residual_codes(vectors, codebooks).numpy()
    residual, left = vectors, []
    for level in range(3):
        residual = residual - codebooks[level][codes[:, level]]
        left.append(float((residual**2).mean()))
    assert left[0] < 0.1 * vectors.var() and left[0] > left[1] > left[2]  # k-means may join two clusters
    assert len(np.unique(codes[:, 0])) >= 14
    np.testing.assert_array_equal(fit_codebooks(vectors, 3, 16), codebooks)


def test_fewer_distinct_vectors_than_centers_still_fit():
    vectors = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    codebooks = fit_codebooks(vectors, num_levels=2, codebook_size=4)
    assert np.isfinite(codebooks).all()


def test_masked_items_embed_to_zero_and_codebooks_stay(make_int8):
    rows, scales = make_int8(20, 6)
    layer = SemanticId.from_vectors(rows * scales[:, None], num_levels=2, codebook_size=4, dim=3)
    assert [w.name for w in layer.trainable_weights] == ["embeddings"]
    mask = np.arange(20) < 15
    embedded = layer(rows, vectors_mask=mask, vectors_scales=scales).numpy()
    assert embedded.shape == (20, 6)
    np.testing.assert_array_equal(np.abs(embedded).sum(1) > 0, mask)
    codes = layer.codes(rows, scales).numpy()
    table = layer.embeddings.numpy().reshape(2, 4, 3)
    np.testing.assert_array_equal(embedded[0], np.concatenate([table[0, codes[0, 0]], table[1, codes[0, 1]]]))


@pytest.mark.parametrize(
    "vectors, size, rule",
    [
        (np.ones((3, 2)), 4, "`codebook_size` must lie between"),
        (np.full((3, 2), np.nan), 2, "`vectors` must be finite"),
        (np.ones(3), 2, "`vectors` must have 2 axes"),
    ],
)
def test_wrong_tables_are_refused(vectors, size, rule):
    with pytest.raises(ValueError, match=rule):
        fit_codebooks(vectors, 1, size)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"num_levels": 0}, "`num_levels` must be at least 1"),
        ({"combine": "mean"}, "`combine` must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        SemanticId(**{"num_levels": 2, "codebook_size": 4, "dim": 3, **arguments})


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_conformance(make_unit, rng, combine):
    inputs = {"vectors": make_unit(3, 5, 6), "vectors_mask": rng.random((3, 5)) < 0.6}
    check_layer(SemanticId, {"num_levels": 2, "codebook_size": 4, "dim": 3, "combine": combine}, inputs)
