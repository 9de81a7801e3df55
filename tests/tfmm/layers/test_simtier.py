import fractions
import math

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfmm.layers import SimTierLayer, tier_counts, tier_index
from tfmm.testing import check_layer


def simtier_of_the_paper(target, behaviors, mask, num_tiers):
    """Section 4.2 as written, in float64: equation 2, then N tiers of [-1, 1], then a count in each."""
    counts = np.zeros(num_tiers)
    for vector, exists in zip(behaviors, mask, strict=True):
        if not exists:
            continue
        similarity = min(1.0, max(-1.0, float(np.dot(vector, target))))
        for n in range(num_tiers):
            low, high = -1 + 2 * n / num_tiers, -1 + 2 * (n + 1) / num_tiers
            if low <= similarity < high or (n == num_tiers - 1 and similarity >= low):
                counts[n] += 1
                break
    return counts


def near_an_edge(similarity, num_tiers):
    position = (similarity + 1) * (num_tiers / 2)
    return np.abs(position - np.round(position)) < 1e-6 * num_tiers


def compiled(function, jit_compile):
    return tf.function(lambda *tensors: function(*tensors), jit_compile=jit_compile, autograph=False)


def forms(function):
    """The same function eager, as a graph and under XLA."""
    return function, compiled(function, False), compiled(function, True)


def test_hand_checked_counts():
    # N = 4: tiers [-1, -.5) [-.5, 0) [0, .5) [.5, 1]
    similarity = np.float32([[-1.0, -0.6, -0.5, 0.0, 0.4, 0.5, 1.0, 0.9]])
    mask = np.array([[True] * 7 + [False]])
    for counts in forms(lambda s, m: tier_counts(s, m, 4)):
        np.testing.assert_array_equal(counts(similarity, mask), [[2, 1, 2, 2]])


@pytest.mark.parametrize("num_tiers", [1, 2, 5, 20, 33])
@pytest.mark.parametrize("length", [1, 3, 50])
def test_counts_equal_the_papers_loop(make_unit, rng, num_tiers, length):
    target, behaviors, mask = make_unit(6, 12), make_unit(6, length, 12), rng.random((6, length)) < 0.7
    similarity = np.einsum("bd,bld->bl", target.astype(np.float64), behaviors.astype(np.float64))
    mask &= ~near_an_edge(similarity, num_tiers)  # float32 cannot decide there
    expected = [simtier_of_the_paper(*row, num_tiers) for row in zip(target, behaviors, mask, strict=True)]
    layer = SimTierLayer(num_tiers)
    for counts in forms(lambda t, b, m: layer(t, b, behaviors_mask=m)):
        np.testing.assert_array_equal(counts(target, behaviors, mask), expected)


def test_int8_counts_are_equal_in_every_form_batch_size_and_bucket(make_int8, rng):
    layer = SimTierLayer(20)
    target, target_scales = make_int8(40, 64)
    behaviors, behaviors_scales = make_int8(1, 100, 64)
    mask = rng.random((1, 100)) < 0.8
    similarity = (target.astype(np.int64) @ behaviors[0].astype(np.int64).T).astype(np.float32)
    similarity = similarity * target_scales[:, None] * behaviors_scales
    position = np.floor((np.clip(similarity, -1, 1) + np.float32(1)) * np.float32(10))
    tier = np.minimum(position, 19).astype(int)
    expected = np.stack([np.bincount(row[mask[0]], minlength=20) for row in tier])
    padding = ((0, 0), (0, 28))
    padded = (np.pad(behaviors, (*padding, (0, 0))), np.pad(behaviors_scales, padding), np.pad(mask, padding))
    plain = (behaviors, behaviors_scales, mask)

    def count(t, ts, b, bs, m):
        return layer(t, b, behaviors_mask=m, target_scales=ts, behaviors_scales=bs)

    for function in forms(count):
        for rows, scales, exists in (plain, padded):
            for size in (1, 40):
                shared = function(target[:size], target_scales[:size], rows, scales, exists)
                tiled = function(
                    target[:size],
                    target_scales[:size],
                    *[np.repeat(x, size, 0) for x in (rows, scales, exists)],
                )
                np.testing.assert_array_equal(shared, expected[:size])
                np.testing.assert_array_equal(tiled, expected[:size])


def test_shared_float_history_counts_as_the_tiled_one(make_unit):
    target, history = make_unit(30, 32), make_unit(1, 200, 32)
    similarity = target.astype(np.float64) @ history[0].astype(np.float64).T
    mask = ~near_an_edge(similarity, 20).any(axis=0, keepdims=True)
    layer = SimTierLayer(20)
    shared = layer(target, history, behaviors_mask=mask)
    tiled = layer(target, np.repeat(history, 30, 0), behaviors_mask=np.repeat(mask, 30, 0))
    np.testing.assert_array_equal(shared, tiled)


similarities = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9),
    elements=st.floats(-1.5, 1.5, width=32),
)


@given(similarities, st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_counts_sum_to_the_mask_and_ignore_order(similarity, num_tiers, seed):
    rng = np.random.default_rng(seed)
    mask = rng.random(similarity.shape) < 0.6
    counts = np.asarray(tier_counts(similarity, mask, num_tiers))
    np.testing.assert_array_equal(counts.sum(axis=1), mask.sum(axis=1))
    order = rng.permutation(similarity.shape[1])
    np.testing.assert_array_equal(tier_counts(similarity[:, order], mask[:, order], num_tiers), counts)


@given(hnp.arrays(np.float32, 64, elements=st.floats(-1, 1, width=32)), st.integers(1, 1000))
def test_tier_is_numpys_in_float32(similarity, num_tiers):
    expected = np.minimum(np.floor((similarity + np.float32(1)) * np.float32(num_tiers / 2)), num_tiers - 1)
    for function in forms(lambda s: tier_index(s, num_tiers))[:2]:
        np.testing.assert_array_equal(function(similarity), expected)


def test_tier_under_xla_is_numpys_on_a_million_scaled_dots(rng):
    dots = rng.integers(-(2**20), 2**20, size=2**20).astype(np.float32)
    scales = (1 / np.sqrt(rng.integers(2**19, 2**21, size=2**20))).astype(np.float32)

    def tiers(d, a, b):
        return tier_index(d * (a * b), 20)

    other = np.float32(1 / 1024)
    expected = np.floor((np.clip(dots * (scales * other), -1, 1) + np.float32(1)) * np.float32(10))
    for function in forms(tiers):
        np.testing.assert_array_equal(function(dots, scales, other), np.minimum(expected, 19))


def test_edges_are_half_open_with_the_last_closed_and_clipped():
    similarity = np.float32([-1.0000001, -1.0, 0.0, 0.4999, 0.5, 1, 1.0000002])
    np.testing.assert_array_equal(tier_index(similarity, 4), [0, 0, 2, 2, 3, 3, 3])


@pytest.mark.parametrize("num_tiers", [3, 10, 20, 100, 333])
def test_tier_is_the_exact_one_but_within_2e_7_of_an_edge(num_tiers):
    def exact(similarity):
        position = (fractions.Fraction(float(similarity)) + 1) * fractions.Fraction(num_tiers, 2)
        return min(math.floor(position), num_tiers - 1)

    edges = np.linspace(-1, 1, num_tiers + 1)
    beside = (edges.astype(np.float32).view(np.int32)[:, None] + np.arange(-5, 6, dtype=np.int32)).view(np.float32)
    near = (edges[:, None] + np.linspace(-3e-7, 3e-7, 41)).astype(np.float32)
    similarity = np.concatenate([beside.ravel(), near.ravel()])
    similarity = similarity[np.abs(similarity) <= 1]
    tier, expected = tier_index(similarity, num_tiers).numpy(), np.array([exact(s) for s in similarity])
    below, above = (1.2e-7, 0) if num_tiers == 20 else (2e-7, 2e-7)
    for s in similarity[tier > expected]:
        assert exact(float(s) + below) == exact(s) + 1
    for s in similarity[tier < expected]:
        assert above and exact(float(s) - above) == exact(s) - 1
    assert np.all(np.abs(tier - expected) <= 1)


def test_the_float_nearest_to_an_edge_may_lie_below_it():
    assert np.float32(-0.8) < fractions.Fraction(-8, 10)
    np.testing.assert_array_equal(tier_index(np.float32([-0.8, -0.79999995]), 20), [1, 2])


def test_identical_items_land_in_the_last_tier(make_int8):
    rows, scales = make_int8(200, 128)
    counts = SimTierLayer(20)(rows, rows[:, None], target_scales=scales, behaviors_scales=scales[:, None])
    assert np.all(counts[:, -1] == 1)


def test_outputs_of_the_same_counts():
    arguments = {
        "similarity": np.float32([[-1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]]),
        "behaviors_mask": np.array([[True, True, True, False], [False] * 4]),
    }
    np.testing.assert_array_equal(SimTierLayer(2)(**arguments), [[1, 2], [0, 0]])
    np.testing.assert_allclose(SimTierLayer(2, "log1p")(**arguments), [[np.log(2), np.log(3)], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(SimTierLayer(2, "ratio")(**arguments), [[1 / 3, 2 / 3], [0, 0]], rtol=1e-6)


def test_coarse_tiers_are_sums_of_fine_ones(rng):
    similarity = rng.uniform(-1, 1, size=(3, 40)).astype(np.float32)
    counts = SimTierLayer(20, coarse_num_tiers=(5, 2))(similarity=similarity).numpy()
    np.testing.assert_array_equal(counts[:, 20:25], counts[:, :20].reshape(3, 5, 4).sum(-1))
    np.testing.assert_array_equal(counts[:, 25:], counts[:, :20].reshape(3, 2, 10).sum(-1))


def test_missing_embeddings_are_counted_apart(make_unit):
    target, behaviors = make_unit(2, 4), make_unit(2, 3, 4)
    present = np.array([[True, True, False], [True, True, True]])
    mask = np.array([[True, False, False], [True, True, True]])
    layer = SimTierLayer(4, count_missing=True)
    counts = layer(target, behaviors, behaviors_mask=mask, behaviors_present=present).numpy()
    np.testing.assert_array_equal(counts[:, -1], [1, 0])
    np.testing.assert_array_equal(counts[:, :-1].sum(1), [1, 3])
    shared = layer(target, behaviors[:1], behaviors_mask=mask[:1], behaviors_present=present[:1]).numpy()
    np.testing.assert_array_equal(shared[:, -1], [1, 1])
    for inputs in ((target, behaviors, mask), [keras.Input(shape) for shape in ((4,), (3, 4), (3,))]):
        with pytest.raises(ValueError, match="needs `behaviors_present`, and `behaviors_mask` or"):
            layer(*inputs)


@pytest.mark.parametrize("tier_output, scale", [("count", float), ("log1p", math.log1p), ("ratio", lambda n: n / 4)])
def test_missing_count_is_scaled_alike_in_every_form_and_stays_without_a_target(make_unit, tier_output, scale):
    target, history = make_unit(3, 4), make_unit(1, 5, 4)
    present, mask = np.array([[True] * 4 + [False]]), np.array([[True, False, False, True, False]])
    layer = SimTierLayer(4, tier_output, count_missing=True)

    def count(target, history, mask, present, target_mask):
        return layer(target, history, behaviors_mask=mask, behaviors_present=present, target_mask=target_mask)

    for copies in (1, 3):
        inputs = [np.repeat(x, copies, 0) for x in (history, mask, present)]
        for function in forms(count):
            counts = np.asarray(function(target, *inputs, np.array([True, False, True])))
            np.testing.assert_allclose(counts[:, -1], [scale(2)] * 3, rtol=1e-6)  # log1p rounds
            np.testing.assert_array_equal(counts[:, :-1].any(1), [True, False, True])


def test_target_without_embedding_gives_zeros(make_unit):
    target, behaviors = make_unit(2, 4), make_unit(2, 3, 4)
    counts = SimTierLayer(4)(target, behaviors, target_mask=np.array([True, False])).numpy()
    np.testing.assert_array_equal(counts.sum(1), [3, 0])


def test_muse_tiers_are_the_published_ones_also_beside_each_edge(rng):
    edges = (np.arange(-10, 11) / 10).astype(np.float32)
    beside = [np.nextafter(edges, np.float32(to)) for to in (-2, 2)]
    similarity = np.concatenate([rng.uniform(-1, 1, 500).astype(np.float32), edges, *beside])
    similarity[np.abs(similarity) == np.nextafter(np.float32(0), np.float32(1))] = 0  # TensorFlow reads it as 0
    published = np.ceil(np.clip(similarity, -1, 1) / np.float32(0.1)) + 10
    expected = (published[None, :, None] == np.arange(22)).sum(1)
    for counts in forms(lambda s: SimTierLayer(22, tiers="muse")(similarity=s)):
        np.testing.assert_array_equal(counts(similarity[None]), expected)


@pytest.mark.parametrize("tiers", ["paper", "muse"])
def test_nan_counts_in_no_tier_in_every_form(tiers):
    similarity = np.float32([[np.nan, 0.5, -0.5], [0.1, np.nan, np.nan], [np.nan] * 3])
    mask = np.array([[True, True, False], [True, True, True], [True, True, True]])
    for counts in forms(lambda s, m: tier_counts(s, m, 22, tiers)):
        np.testing.assert_array_equal(np.asarray(counts(similarity, mask)).sum(1), [1, 1, 0])
        np.testing.assert_array_equal(np.asarray(counts(similarity, None)).sum(1), [2, 1, 0])
    for tier in forms(lambda s: tier_index(s, 22, tiers)):
        assert (np.asarray(tier(similarity)) == 22).tolist() == np.isnan(similarity).tolist()


def test_tier_embedding_multiplies_each_count_and_alone_learns(make_unit):
    layer = SimTierLayer(4, "log1p", tier_embedding_dim=3)
    target, behaviors = tf.constant(make_unit(2, 5)), tf.constant(make_unit(2, 6, 5))
    with tf.GradientTape() as tape:
        tape.watch([target, behaviors])
        output = layer(target, behaviors)
    plain = SimTierLayer(4, "log1p")(target, behaviors).numpy()
    weights = layer.tier_embedding.numpy()
    np.testing.assert_allclose(output, (plain[:, :, None] * weights).reshape(2, 12), rtol=1e-6)
    of_target, of_behaviors, of_weights = tape.gradient(output, [target, behaviors, layer.tier_embedding.value])
    assert of_target is None and of_behaviors is None
    assert np.abs(of_weights).sum() > 0


def test_check_mode_speaks_of_nan_and_of_vectors_that_are_not_unit(make_unit):
    layer = SimTierLayer(4, check=True)
    target, behaviors = make_unit(2, 4), make_unit(2, 3, 4)
    assert np.isfinite(layer(target, behaviors)).all()
    with pytest.raises(ValueError, match=r"`target` must have norm 1.* Received: 3 at \[0\]"):
        layer(3 * target, behaviors)
    behaviors[1, 2] *= 2
    with pytest.raises(ValueError, match=r"`behaviors` must have norm 1.* Received: 2 at \[1, 2\]"):
        layer(target, behaviors)
    behaviors[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"must be finite.* Received: nan at \[1, 2\]"):
        layer(target, behaviors)
    mask = np.array([[True] * 3, [True, True, False]])
    assert np.isfinite(layer(target, behaviors, behaviors_mask=mask)).all()
    for jit_compile in (False, True):
        graph = compiled(lambda t, b: layer(t, b), jit_compile)
        assert np.isnan(graph(target, behaviors)).all()


def test_check_mode_speaks_of_dot_products_and_of_scales_that_are_none(make_int8):
    layer = SimTierLayer(4, check=True)
    with pytest.raises(ValueError, match=r"`similarity` must lie in \[-1, 1\].* Received: -7 at \[0, 1\]"):
        layer(similarity=np.float32([[1.0, -7.0]]))
    (target, target_scales), (behaviors, behaviors_scales) = make_int8(2, 8), make_int8(1, 6, 8)
    scales = {"target_scales": target_scales, "behaviors_scales": behaviors_scales}
    assert np.isfinite(layer(target, behaviors, **scales)).all()
    behaviors_scales[0, 3] = -1
    with pytest.raises(ValueError, match=r"`behaviors_scales` must be 1 / norm.* Received: -1 at \[0, 3\]"):
        layer(target, behaviors, **scales)
    assert np.isfinite(layer(target, behaviors, behaviors_mask=behaviors_scales > 0, **scales)).all()
    behaviors_scales[0, 3] = 1
    with pytest.raises(ValueError, match=r"`behaviors` must have norm 1.* at \[0, 3\]"):
        layer(target, behaviors, **scales)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_policies_change_no_count(make_unit, policy):
    target, behaviors = make_unit(64, 32), make_unit(64, 40, 32)
    expected = SimTierLayer(20)(target, behaviors)
    keras.config.set_dtype_policy(policy)
    try:
        counts = SimTierLayer(20)(target, behaviors)
    finally:
        keras.config.set_dtype_policy("float32")
    assert counts.dtype == tf.float32
    np.testing.assert_array_equal(counts, expected)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"num_tiers": 0}, "`num_tiers` must be an int of at least 1"),
        ({"tier_output": "sum"}, "`tier_output` must be one of"),
        ({"tiers": "muse"}, "`tiers='muse'` has 22 tiers"),
        ({"tiers": "museum"}, "`tiers` must be one of"),
        ({"num_tiers": 2.5}, "`num_tiers` must be an int"),
        ({"num_tiers": True}, "`num_tiers` must be an int"),
        ({"coarse_num_tiers": (3,)}, "must divide `num_tiers`"),
        ({"coarse_num_tiers": (5.0,)}, "`coarse_num_tiers` must be an int"),
        ({"coarse_num_tiers": 5}, "`coarse_num_tiers` must be a sequence"),
        ({"count_missing": "no"}, "`count_missing` must be True or False. Received: 'no'"),
        ({"check": 1}, "`check` must be True or False"),
        ({"tier_embedding_dim": 0}, "`tier_embedding_dim` must be an int of at least 1"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        SimTierLayer(**arguments)


@pytest.mark.parametrize("function", [tier_index, lambda s, n, tiers: tier_counts(s, None, n, tiers)])
@pytest.mark.parametrize("num_tiers, tiers", [(0, "paper"), (2.5, "paper"), (5, "muse"), (22, "museum")])
def test_functions_refuse_the_tiers_that_the_layer_refuses(function, num_tiers, tiers):
    with pytest.raises(ValueError, match=r"`num_tiers` must be|`tiers` must be|has 22 tiers"):
        function(np.zeros((1, 2), np.float32), num_tiers, tiers)


def test_numpy_integers_are_stored_as_ints():
    layer = SimTierLayer(np.int64(20), coarse_num_tiers=np.array([5]), tier_embedding_dim=np.int32(2))
    numbers = (layer.num_tiers, *layer.coarse_num_tiers, layer.tier_embedding_dim)
    assert numbers == (20, 5, 2) and {type(number) for number in numbers} == {int}
    assert layer(keras.Input((4,)), keras.Input((3, 4))).shape == (None, 50)


def test_counts_of_symbolic_similarities_make_a_model(rng):
    inputs = [keras.Input((7,)), keras.Input((7,), dtype="bool")]
    model = keras.Model(inputs, tier_counts(*inputs, 5))
    similarity, mask = rng.uniform(-1, 1, (3, 7)).astype(np.float32), rng.random((3, 7)) < 0.6
    np.testing.assert_array_equal(model([similarity, mask]), tier_counts(similarity, mask, 5))


@pytest.mark.parametrize("kind", ["float", "int8", "similarity"])
def test_conformance(make_unit, make_int8, rng, kind):
    mask = rng.random((3, 7)) < 0.6
    mask[1] = False
    if kind == "similarity":
        inputs = {"similarity": rng.uniform(-1, 1, (3, 7)).astype(np.float32), "behaviors_mask": mask}
    elif kind == "float":
        inputs = {
            "target": make_unit(3, 8),
            "behaviors": make_unit(3, 7, 8),
            "behaviors_mask": mask,
            "target_mask": np.array([True, True, False]),
        }
    else:
        target, target_scales = make_int8(3, 8)
        behaviors, behaviors_scales = make_int8(3, 7, 8)
        inputs = {"target": target, "behaviors": behaviors, "behaviors_mask": mask}
        inputs |= {"target_scales": target_scales, "behaviors_scales": behaviors_scales}
    settings = {"num_tiers": 10, "tier_output": "log1p", "coarse_num_tiers": (5,), "tier_embedding_dim": 2}
    check_layer(SimTierLayer, settings, inputs, same_under_policies=True)
