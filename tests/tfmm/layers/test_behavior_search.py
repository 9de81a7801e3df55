import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from tfmm.layers import BehaviorSearch, cosine_similarity, gather_behaviors
from tfmm.testing import check_layer


def reference(similarity, mask, present, has_target, count):
    """Sorts in Python: by similarity, of equals the newer; or the newest behaviors."""
    if has_target:
        places = sorted(np.flatnonzero(mask & present & ~np.isnan(similarity)), key=lambda i: (-similarity[i], -i))
    else:
        places = sorted(np.flatnonzero(present), reverse=True)
    return list(places)[:count]


@given(
    st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**32 - 1), st.sampled_from(["similarity", "time"])
)
def test_selection_is_the_sorted_one(length, count, seed, order):
    rng = np.random.default_rng(seed)
    similarity = (rng.integers(-3, 4, size=(5, length)) / 3).astype(np.float32)  # with ties
    similarity[rng.random((5, length)) < 0.2] = np.nan
    present, mask = rng.random((5, length)) < 0.8, rng.random((5, length)) < 0.7
    has_target = rng.random(5) < 0.6
    found = BehaviorSearch(count, order)(
        similarity=similarity, behaviors_mask=mask, behaviors_present=present, target_mask=has_target
    )
    for b in range(5):
        expected = reference(similarity[b], mask[b], present[b], has_target[b], count)
        if order == "time":
            expected = sorted(expected)
        chosen = found["mask"][b].numpy()
        assert chosen.sum() == len(expected) and chosen[: len(expected)].all()
        np.testing.assert_array_equal(found["indices"][b, : len(expected)], expected)
        values = similarity[b, expected] if has_target[b] else np.zeros(len(expected))
        np.testing.assert_array_equal(found["similarity"][b, : len(expected)], values)


def test_vectors_that_are_not_of_norm_1_are_ranked_by_their_products(make_unit):
    target, behaviors = make_unit(2, 8), make_unit(2, 50, 8)
    expected = BehaviorSearch(5)(target, behaviors)["indices"]
    found = BehaviorSearch(5)(10 * target, 10 * behaviors)
    np.testing.assert_array_equal(found["indices"], expected)
    assert np.abs(found["similarity"]).max() <= 1
    lowest = BehaviorSearch(4)(similarity=np.float32([[-7.0, -np.inf, np.nan, 40.0]]))
    np.testing.assert_array_equal(lowest["indices"], [[3, 0, 1, 0]])
    np.testing.assert_array_equal(lowest["mask"], [[True, True, True, False]])
    np.testing.assert_array_equal(lowest["similarity"], [[1, -1, -1, 0]])


def test_check_mode_speaks_of_vectors_that_are_not_unit(make_unit):
    layer, (target, behaviors) = BehaviorSearch(2, check=True), (make_unit(2, 4), make_unit(2, 3, 4))
    plain = BehaviorSearch(2)(target, behaviors)
    np.testing.assert_array_equal(layer(target, behaviors)["similarity"], plain["similarity"])
    with pytest.raises(ValueError, match=r"`target` must have norm 1.* Received: 3 at \[0\]"):
        layer(3 * target, behaviors)
    with pytest.raises(ValueError, match=r"`similarity` must lie in \[-1, 1\].* Received: -7 at \[0, 1\]"):
        layer(similarity=np.float32([[1.0, -7.0]]))
    behaviors[1, 2] = np.nan
    with pytest.raises(ValueError, match=r"must be finite.* Received: nan at \[1, 2\]"):
        layer(target, behaviors)
    for hidden in ("behaviors_mask", "behaviors_present"):
        assert np.isfinite(layer(target, behaviors, **{hidden: np.isfinite(behaviors[..., 0])})["similarity"]).all()
    for jit_compile in (False, True):
        graph = tf.function(lambda t, b: layer(t, b), jit_compile=jit_compile, autograph=False)
        assert np.isnan(graph(target, behaviors)["similarity"]).all()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_long_shared_history(make_int8, jit_compile):
    target, target_scales = make_int8(2, 16)
    history, history_scales = make_int8(1, 100_000, 16)
    layer = BehaviorSearch(50)

    def search(*x):
        return layer(x[0], x[2], target_scales=x[1], behaviors_scales=x[3])

    search = tf.function(search, jit_compile=jit_compile, autograph=False)
    found = search(target, target_scales, history, history_scales)
    similarity = np.asarray(cosine_similarity(target, history, target_scales, history_scales))
    for b in range(2):
        expected = np.lexsort((-np.arange(100_000), -similarity[b]))[:50]
        np.testing.assert_array_equal(found["indices"][b], expected)
    chosen = gather_behaviors(history, found["indices"])
    np.testing.assert_array_equal(chosen[1], history[0][found["indices"][1].numpy()])


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("batch", [1, None])
def test_shared_history_with_masks_is_searched_as_its_copies(make_int8, rng, jit_compile, batch):
    (target, target_scales), (history, history_scales) = make_int8(4, 8), make_int8(1, 30, 8)
    mask, present, has_target = rng.random((1, 30)) < 0.6, rng.random((1, 30)) < 0.8, np.arange(4) != 1
    layer = BehaviorSearch(12, "time")

    def search(target, target_scales, has_target, *history):
        names = ("behaviors", "behaviors_scales", "behaviors_mask", "behaviors_present")
        given = dict(zip(names, history, strict=True))
        found = layer(target, target_scales=target_scales, target_mask=has_target, **given)
        return {**found, "values": gather_behaviors(history[1], found["indices"])}

    inputs = (history, history_scales, mask, present)
    expected = search(target, target_scales, has_target, *[np.repeat(x, 4, 0) for x in inputs])
    of_targets = [tf.TensorSpec([None, *x.shape[1:]], x.dtype) for x in (target, target_scales, has_target)]
    of_history = [tf.TensorSpec([batch, *x.shape[1:]], x.dtype) for x in inputs]
    shared = tf.function(search, [*of_targets, *of_history], jit_compile=jit_compile, autograph=False)
    for name, received in shared(target, target_scales, has_target, *inputs).items():
        np.testing.assert_array_equal(received, expected[name])
    assert 0 < np.asarray(expected["mask"])[0].sum() <= (mask & present).sum()


def test_nan_takes_no_place_from_a_behavior_that_can_be_compared():
    found = BehaviorSearch(3)(similarity=np.float32([[0.1, np.nan, 0.2, np.nan, np.nan]]))
    np.testing.assert_array_equal(found["indices"], [[2, 0, 0]])
    np.testing.assert_array_equal(found["mask"], [[True, True, False]])


def test_a_scale_of_zero_is_a_missing_embedding():
    behaviors, behaviors_scales = np.int8([[[3, 4], [0, 5], [0, 0]]]), np.float32([[0.2, 0.2, 0]])
    scales = {"target_scales": np.float32([0.2, 0]), "behaviors_scales": behaviors_scales}
    found = BehaviorSearch(2)(np.int8([[3, 4], [0, 0]]), behaviors, **scales)
    np.testing.assert_array_equal(found["indices"], [[0, 1], [1, 0]])  # the second target: the newest
    np.testing.assert_allclose(found["similarity"], [[1, 0.8], [0, 0]], atol=1e-7)  # one rounding


@pytest.mark.parametrize("jit_compile", [False, True])
@pytest.mark.parametrize("order", ["similarity", "time"])
def test_an_empty_history_selects_nothing(make_unit, jit_compile, order):
    search = tf.function(lambda t, b: BehaviorSearch(2, order)(t, b), jit_compile=jit_compile, autograph=False)
    for found in (search(make_unit(3, 4), make_unit(3, 0, 4)), BehaviorSearch(2)(make_unit(3, 4), make_unit(1, 0, 4))):
        for values in found.values():
            np.testing.assert_array_equal(values, np.zeros((3, 2)))


def test_xla_makes_no_float_copy_of_rows(make_int8):
    inputs = [tf.constant(x) for x in (*make_int8(4, 32), *make_int8(4, 300, 32))]

    def search(target, target_scales, behaviors, behaviors_scales):
        scales = {"target_scales": target_scales, "behaviors_scales": behaviors_scales}
        return BehaviorSearch(5)(target, behaviors, **scales)

    function = tf.function(search, jit_compile=True, autograph=False)
    function(*inputs)
    program = function.experimental_get_compiler_ir(*inputs)(stage="optimized_hlo")
    assert "f32[4,300,32]" not in program[program.index("ENTRY") :]


def test_gather_takes_each_rows_own_behaviors(rng):
    values, indices = rng.normal(size=(3, 6, 2)), rng.integers(0, 6, size=(3, 4))
    expected = np.stack([values[b, indices[b]] for b in range(3)])
    np.testing.assert_array_equal(gather_behaviors(values, indices), expected)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"num_selected": 0}, "`num_selected` must be an int of at least 1"),
        ({"num_selected": 2.5}, "`num_selected` must be an int"),
        ({"num_selected": True}, "`num_selected` must be an int"),
        ({"num_selected": 2, "order": "age"}, "`order` must be one of"),
        ({"num_selected": 2, "check": "no"}, "`check` must be True or False"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        BehaviorSearch(**arguments)


@pytest.mark.parametrize("length", [3, None])
def test_numpy_integers_make_a_model_that_is_saved(tmp_path, make_unit, length):
    target, behaviors = keras.Input((4,)), keras.Input((length, 4))
    model = keras.Model([target, behaviors], BehaviorSearch(np.int64(2))(target, behaviors))
    model.save(tmp_path / "search.keras")
    inputs = [make_unit(2, 4), make_unit(2, 3, 4)]
    loaded = keras.models.load_model(tmp_path / "search.keras")
    np.testing.assert_array_equal(loaded(inputs)["indices"], model(inputs)["indices"])


def test_gather_refuses_another_batch_size():
    with pytest.raises(ValueError, match="`indices` must have 2 axes"):
        gather_behaviors(np.zeros((2, 3)), np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="one history per row of `indices`, 3"):
        gather_behaviors(np.zeros((2, 3)), np.zeros((3, 1), np.int32))


def test_conformance(make_unit, rng):
    mask = np.array([[True, False, True, True], [True, True, True, False], [False] * 4])
    inputs = {
        "target": make_unit(3, 8),
        "behaviors": make_unit(3, 4, 8),
        "behaviors_mask": mask,
        "target_mask": np.array([True, False, True]),
    }
    check_layer(
        BehaviorSearch,
        {"num_selected": 2, "order": "time", "check": True},
        inputs,
        same_under_policies=True,
        zero_when_masked=False,
    )
