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
        places = sorted(np.flatnonzero(mask), key=lambda i: (-similarity[i], -i))
    else:
        places = sorted(np.flatnonzero(present), reverse=True)
    return list(places)[:count]


@given(
    st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**32 - 1), st.sampled_from(["similarity", "time"])
)
def test_selection_is_the_sorted_one(length, count, seed, order):
    rng = np.random.default_rng(seed)
    similarity = (rng.integers(-3, 4, size=(5, length)) / 3).astype(np.float32)  # with ties
    present = rng.random((5, length)) < 0.8
    mask = present & (rng.random((5, length)) < 0.7)
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


def test_gather_takes_each_rows_own_behaviors(rng):
    values, indices = rng.normal(size=(3, 6, 2)), rng.integers(0, 6, size=(3, 4))
    expected = np.stack([values[b, indices[b]] for b in range(3)])
    np.testing.assert_array_equal(gather_behaviors(values, indices), expected)


@pytest.mark.parametrize(
    "arguments, rule",
    [
        ({"num_selected": 0}, "`num_selected` must be at least 1"),
        ({"num_selected": 2, "order": "age"}, "`order` must be one of"),
    ],
)
def test_wrong_arguments_are_refused(arguments, rule):
    with pytest.raises(ValueError, match=rule):
        BehaviorSearch(**arguments)


def test_missing_inputs_are_refused():
    with pytest.raises(ValueError, match="Pass `target` and `behaviors`, or `similarity`"):
        BehaviorSearch(2)(behaviors_mask=np.ones((2, 3), bool))


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
        {"num_selected": 2, "order": "time"},
        inputs,
        same_under_policies=True,
        zero_when_masked=False,
    )
