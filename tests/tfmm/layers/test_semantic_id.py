import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm.layers import FrozenEmbedding, SemanticId, fit_codebooks, residual_codes
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


def test_mask_of_a_frozen_embedding_is_found(make_int8, make_unit):
    table = FrozenEmbedding.from_table([1, 2, 3], *make_int8(3, 4))
    layer = SemanticId.from_vectors(make_unit(20, 4), num_levels=2, codebook_size=4, dim=3)
    ids = np.array([[1, 0, 99, 3]])
    symbolic = keras.Input((4,), dtype="int64")
    model = keras.Model(symbolic, layer(table(symbolic)))
    for embedded in (layer(table(ids)), model(ids), model.predict(ids, verbose=0)):
        np.testing.assert_array_equal(np.asarray(embedded).any(-1), [[True, False, False, True]])
    named = layer(table(ids), vectors_mask=ids == 3)
    np.testing.assert_array_equal(np.asarray(named).any(-1), ids == 3)


def test_a_scale_of_zero_is_a_missing_embedding(make_int8, make_unit):
    rows, scales = make_int8(5, 4)
    scales[2] = 0
    layer = SemanticId.from_vectors(make_unit(20, 4), num_levels=2, codebook_size=4, dim=3)
    np.testing.assert_array_equal(layer(rows, vectors_scales=scales).numpy().any(1), scales > 0)


@pytest.mark.parametrize("jit_compile", [None, False, True])
def test_a_vector_that_is_not_finite_is_a_missing_embedding(make_unit, jit_compile):
    vectors, mask = make_unit(5, 4), np.arange(5) != 4
    layer = SemanticId.from_vectors(vectors, num_levels=2, codebook_size=4, dim=3)
    vectors[1, 2], vectors[3] = np.nan, np.inf
    function = layer if jit_compile is None else tf.function(layer, jit_compile=jit_compile, autograph=False)
    for given, exists in ((None, [0, 2, 4]), (mask, [0, 2])):
        embedded = np.asarray(function(vectors, vectors_mask=given))
        np.testing.assert_array_equal(np.flatnonzero(embedded.any(1)), exists)
        assert np.isfinite(embedded).all()


def test_codebooks_that_were_never_fitted_are_refused(tmp_path, make_unit):
    vectors = make_unit(5, 4)
    layer = SemanticId(2, 4, 3)
    model = keras.Sequential([keras.Input((4,)), layer])
    for function in (layer, model, tf.function(layer), layer.codes):
        with pytest.raises(ValueError, match=r"not fitted: use `SemanticId.from_vectors`"):
            function(vectors)
    fitted = SemanticId.from_vectors(vectors, 2, 4, 3)
    model.set_weights(fitted.get_weights())
    np.testing.assert_array_equal(model(vectors), fitted(vectors))
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(vectors), fitted(vectors))


@pytest.mark.parametrize(
    "inputs, rule",
    [
        ({"vectors": np.ones((3, 4), np.int8)}, "`vectors` must be float"),
        ({"vectors": np.ones((3, 5), np.float32)}, "as many values per vector as `codebooks`"),
        ({"vectors": np.ones((3, 4), np.int8), "vectors_scales": np.ones(1, np.float32)}, "`vectors_scales` must have"),
        ({"vectors": np.ones((3, 4), np.float32), "vectors_mask": np.ones((3, 1), bool)}, "must have the shape"),
    ],
)
def test_wrong_inputs_are_refused_also_when_a_model_is_built(make_unit, inputs, rule):
    layer = SemanticId.from_vectors(make_unit(20, 4), num_levels=2, codebook_size=4, dim=3)
    with pytest.raises(ValueError, match=rule):
        layer(**inputs)
    with pytest.raises(ValueError, match=rule):
        layer(**{name: keras.Input(batch_shape=x.shape, dtype=str(x.dtype)) for name, x in inputs.items()})


@pytest.mark.parametrize(
    "vectors, size, rule",
    [
        (np.ones((3, 2)), 4, "`codebook_size` must lie between"),
        (np.full((3, 2), np.nan), 2, "`vectors` must be finite"),
        (np.ones(3), 2, "`vectors` must have 2 axes"),
        (np.ones((3, 2), np.int8), 2, r"`vectors` must be float.* by `unit_vectors`"),
        (np.ones((3, 2)), 2.5, "`codebook_size` must be an int"),
    ],
)
def test_wrong_tables_are_refused(vectors, size, rule):
    with pytest.raises(ValueError, match=rule):
        fit_codebooks(vectors, 1, size)
    with pytest.raises(ValueError, match=rule):
        SemanticId.from_vectors(vectors, 1, size, 3)


def test_no_iterations_are_refused_by_name():
    with pytest.raises(ValueError, match=r"`num_iterations` must be an int of at least 1. Received: 0"):
        fit_codebooks(np.ones((3, 2)), 2, 2, num_iterations=0)


def test_vectors_of_integers_have_no_codes():
    with pytest.raises(ValueError, match="`vectors` must be float"):
        residual_codes(np.ones((3, 2), np.int8), np.ones((1, 2, 2), np.float32))


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"num_levels": 0}, "`num_levels` must be an int of at least 1"),
        ({"codebook_size": 2.5}, "`codebook_size` must be an int"),
        ({"dim": True}, "`dim` must be an int"),
        ({"combine": "mean"}, "`combine` must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        SemanticId(**{"num_levels": 2, "codebook_size": 4, "dim": 3, **arguments})


@pytest.mark.parametrize("combine", ["concat", "sum"])
def test_conformance(make_unit, rng, combine):
    inputs = {"vectors": make_unit(3, 5, 6), "vectors_mask": rng.random((3, 5)) < 0.6}
    table = make_unit(20, 6)
    settings = {"num_levels": np.int64(2), "codebook_size": 4, "dim": 3, "combine": combine}

    def make(**settings):
        layer = SemanticId(**settings)
        layer.build((None, 6))
        layer.codebooks.assign(fit_codebooks(table, settings["num_levels"], settings["codebook_size"]))
        return layer

    check_layer(SemanticId, settings, inputs, make_layer=make)
