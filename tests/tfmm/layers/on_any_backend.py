"""Runs every layer through the harness, and the counts against NumPy, on the backend that KERAS_BACKEND names.

A script, not a test module: one process has one backend. `make compat` runs it on JAX and PyTorch.
"""

import keras
import numpy as np

from tfmm import layers
from tfmm.layers import compilation
from tfmm.testing import check_layer

rng = np.random.default_rng(0)


def unit(*shape):
    vectors = rng.normal(size=shape)
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def quantized(*shape):
    vectors = unit(*shape)
    rows = np.round(vectors * 127 / np.abs(vectors).max(-1, keepdims=True)).astype(np.int8)
    return rows, (1 / np.linalg.norm(rows.astype(np.float32), axis=-1)).astype(np.float32)


def check_symbolic():
    """Keras' scope of symbolic calls, which has no public name, is found."""
    answers = []

    class Asks(keras.layers.Layer):
        def call(self, inputs):
            answers.append(compilation.is_symbolic())
            return inputs

    layer = Asks()
    layer(np.ones((2, 3), np.float32))
    layer(keras.Input((3,)))
    assert not answers[0] and answers[1:] and all(answers[1:])  # PyTorch derives shapes by several calls
    assert compilation.is_traced_for_xla() == (keras.backend.backend() == "jax")


def check_counts():
    """Counts of int8 rows are NumPy's exactly, batched, shared and tiled."""
    (target, target_scales), (history, history_scales) = quantized(30, 48), quantized(1, 90, 48)
    mask = rng.random((1, 90)) < 0.7
    dots = (target.astype(np.int64) @ history[0].astype(np.int64).T).astype(np.float32)
    similarity = np.clip(dots * target_scales[:, None] * history_scales, -1, 1)
    tier = np.minimum(np.floor((similarity + np.float32(1)) * np.float32(10)), 19).astype(int)
    expected = np.stack([np.bincount(row[mask[0]], minlength=20) for row in tier])
    layer = layers.SimTierLayer(20)
    for copies in (1, 30):
        rows, scales, exists = (np.repeat(x, copies, 0) for x in (history, history_scales, mask))
        counts = layer(
            target, rows, behaviors_mask=exists, target_scales=target_scales, behaviors_scales=scales
        )
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(counts), expected)


def check_search():
    """Of equally similar behaviors the newer wins, on short and on long histories."""
    for count, length in ((5, 40), (20, 1000), (10, 5000)):
        similarity = np.round(rng.uniform(-1, 1, (2, length)), 1).astype(np.float32)
        expected = [np.lexsort((-np.arange(length), -row))[:count] for row in similarity]
        found = layers.BehaviorSearch(count)(similarity=similarity)
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(found["indices"]), expected)


def check_layers():
    mask = rng.random((3, 7)) < 0.6
    mask[0, 0], mask[0, 1] = True, False
    similarity = rng.uniform(-1, 1, (3, 7)).astype(np.float32)
    target, behaviors = unit(3, 8), unit(3, 7, 8)
    vectors = {"target": target, "behaviors": behaviors, "behaviors_mask": mask}
    both = {"differentiable": ["target", "behaviors"], "ignores_hidden_nan": True}
    check_layer(
        layers.SimTierLayer, {"num_tiers": 10, "coarse_num_tiers": (5,)}, vectors, same_under_policies=True
    )
    check_layer(layers.DINAttention, {"units": (6, 5), "softmax": True}, vectors, **both)
    check_layer(layers.DINAttention, {"units": (6,), "activation": "dice"}, vectors, **both)
    make = {"units": (6, 5, 4), "attention_units": (3,), "combine": "concat"}
    check_layer(layers.MAKEBlock, make, vectors, zero_when_masked=False, **both)
    check_layer(
        layers.SemanticTargetAttention,
        {"units": 4},
        {**vectors, "similarity": similarity},
        differentiable=["target", "behaviors", "similarity"],
    )
    check_layer(
        layers.BehaviorSearch,
        {"num_selected": 3},
        {"similarity": similarity, "behaviors_mask": mask},
        same_under_policies=True,
    )
    check_layer(
        layers.SimScore,
        {"flag_missing": False},
        {"target": target, "behaviors": behaviors, "similarity": similarity},
        differentiable=["target", "behaviors", "similarity"],
    )
    check_layer(
        layers.VectorFusion,
        {"scale_inputs": False},
        {"target": target, "behaviors": behaviors, "target_vectors": target, "behaviors_vectors": behaviors},
        differentiable=["target", "behaviors", "target_vectors", "behaviors_vectors"],
    )
    check_layer(
        layers.SemanticId,
        {"num_levels": 2, "codebook_size": 4, "dim": 3},
        {"vectors": behaviors, "vectors_mask": mask},
        make_layer=lambda **settings: layers.SemanticId.from_vectors(behaviors.reshape(-1, 8), **settings),
    )
    rows, scales = quantized(5, 8)

    def table(**settings):
        layer = layers.FrozenEmbedding(**settings)
        layer.build()
        layer.set_table([11, -4, 7, 30, 2], rows, scales)
        return layer

    ids = np.array([[7, 30, 0], [-4, 9, 11]], np.int32)
    check_layer(
        layers.FrozenEmbedding,
        {"num_items": 5, "dim": 8},
        {"ids": ids},
        make_layer=table,
        same_under_policies=True,
    )
    np.testing.assert_array_equal(
        keras.ops.convert_to_numpy(table(num_items=5, dim=8).lookup(ids)[2]), np.isin(ids, [11, -4, 7, 30, 2])
    )


def check_large_ids():
    """An id of more than 32 bits finds no other item: it is unknown, or refused where the backend would cut it."""
    table = layers.FrozenEmbedding.from_table([7, 3], [[3, 4], [0, 5]], [0.2, 0.2])
    for function in (table, lambda ids: table.lookup(ids)[0]):
        try:
            found = function(np.array([2**32 + 7]))
        except ValueError as error:
            assert keras.backend.backend() == "jax" and "set JAX_ENABLE_X64=1" in str(error)
        else:
            np.testing.assert_array_equal(keras.ops.convert_to_numpy(found), [[0, 0]])


if __name__ == "__main__":
    check_symbolic()
    check_counts()
    check_search()
    check_large_ids()
    check_layers()
    print(f"every layer conforms on {keras.backend.backend()}")
