"""A click model that takes item ids: frozen table, search, SimTier, a frozen MAKE, semantic attention, semantic ids.

Trained, saved, exported and loaded in C++ like any Keras model; the table travels inside.
"""

import sys
import tempfile

import keras
import numpy as np
import tensorflow as tf
from clicks import score_in_cpp

from tfmm import layers
from tfmm.index import encode

NUM_ITEMS, DIM, LENGTH, NUM_SELECTED = 400, 16, 60, 12
NUM_WITHOUT_VECTOR = 20  # the last items have an id and no vector


def make_vectors(rng) -> np.ndarray:
    """Items of 8 kinds: what a shopper likes is of one kind."""
    vectors = rng.normal(size=(8, DIM))[np.arange(NUM_ITEMS) % 8] + 0.4 * rng.normal(size=(NUM_ITEMS, DIM))
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype("float32")


def make_clicks(rng, rows: int = 768):
    """Returns ids of targets [rows] and histories [rows, LENGTH], oldest first, 0 before them; and the clicks."""
    likes = rng.integers(8, size=(rows, 1))
    behaviors = likes + 8 * rng.integers(NUM_ITEMS // 8, size=(rows, LENGTH))
    behaviors = np.where(rng.random((rows, LENGTH)) < 0.5, behaviors, rng.integers(NUM_ITEMS, size=(rows, LENGTH)))
    behaviors = np.where(np.arange(LENGTH) >= rng.integers(0, LENGTH, size=(rows, 1)), behaviors + 1, 0)
    clicks = rng.integers(2, size=rows)
    target = np.where(clicks, likes[:, 0], likes[:, 0] + rng.integers(1, 8, size=rows)) % 8
    target = target + 8 * rng.integers(NUM_ITEMS // 8, size=rows) + 1
    return {"target_id": target, "behavior_ids": behaviors}, clicks.astype("float32")[:, None]


def pre_train_make(vectors, ids, clicks) -> layers.MAKEBlock:
    """MAKE alone, on the vectors of the same clicks, for several epochs."""
    target, behaviors = keras.Input((DIM,)), keras.Input((LENGTH, DIM))
    mask = keras.Input((LENGTH,), dtype="bool")
    block = layers.MAKEBlock(units=(32, 16, 8), attention_units=(16,), softmax=True, name="make")
    model = keras.Model([target, behaviors, mask], block(target, behaviors, behaviors_mask=mask)["logit"])
    model.compile(keras.optimizers.Adam(1e-2), keras.losses.BinaryCrossentropy(from_logits=True))
    padded = np.pad(vectors[:-NUM_WITHOUT_VECTOR], ((1, NUM_WITHOUT_VECTOR), (0, 0)))
    known = np.isin(ids["behavior_ids"], np.arange(1, NUM_ITEMS - NUM_WITHOUT_VECTOR + 1))
    model.fit([padded[ids["target_id"]], padded[ids["behavior_ids"]], known], clicks, epochs=3, verbose=0)
    return block.freeze()


def build_model(vectors, make: layers.MAKEBlock) -> keras.Model:
    rows, scales = encode.quantize(vectors[:-NUM_WITHOUT_VECTOR])
    item_ids = np.arange(1, len(rows) + 1)
    table = layers.FrozenEmbedding.from_table(item_ids, rows, scales, output_form="rows", name="table")
    id_embedding = keras.layers.Embedding(NUM_ITEMS + 1, 8)
    target_id = keras.Input((), dtype="int64", name="target_id")
    behavior_ids = keras.Input((LENGTH,), dtype="int64", name="behavior_ids")
    target, history = table(target_id), table(behavior_ids)
    vectors_of = {
        "target": target["rows"], "target_scales": target["scales"], "target_mask": target["mask"],
        "behaviors": history["rows"], "behaviors_scales": history["scales"], "behaviors_mask": history["mask"],
    }  # fmt: skip
    tiers = layers.SimTierLayer(20, "log1p", name="tiers")(**vectors_of)
    knowledge = make.knowledge(make(**vectors_of))
    found = layers.BehaviorSearch(NUM_SELECTED)(**vectors_of, behaviors_present=behavior_ids > 0)
    selected = layers.gather_behaviors(behavior_ids, found["indices"])
    known = keras.ops.logical_and(
        keras.ops.expand_dims(target["mask"], 1), layers.gather_behaviors(history["mask"], found["indices"])
    )
    interest = layers.SemanticTargetAttention(8)(
        id_embedding(target_id), id_embedding(selected), similarity=found["similarity"],
        behaviors_mask=found["mask"], similarity_mask=known,
    )  # fmt: skip
    codes = layers.SemanticId.from_vectors(layers.unit_vectors(rows, scales), num_levels=2, codebook_size=8, dim=4)
    semantic_id = codes(target["rows"], vectors_mask=target["mask"], vectors_scales=target["scales"])
    features = keras.layers.Concatenate()([tiers, knowledge, interest, semantic_id, id_embedding(target_id)])
    hidden = keras.layers.Dense(16, "relu")(features)
    score = keras.layers.Dense(1, "sigmoid", name="score")(hidden)
    return keras.Model({"target_id": target_id, "behavior_ids": behavior_ids}, score)


def main() -> None:
    keras.utils.set_random_seed(0)
    rng = np.random.default_rng(0)
    vectors, (ids, clicks) = make_vectors(rng), make_clicks(rng)
    make = pre_train_make(vectors, ids, clicks)
    before = make.get_weights()
    model = build_model(vectors, make)
    model.compile(keras.optimizers.Adam(5e-3), "binary_crossentropy", metrics=["auc"], jit_compile=False)
    auc = model.fit(ids, clicks, epochs=3, batch_size=64, verbose=0).history["auc"][-1]
    for old, new in zip(before, make.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    expected = model.predict(ids, verbose=0)
    fused = tf.function(model, jit_compile=True)({name: tf.constant(x) for name, x in ids.items()})
    np.testing.assert_allclose(fused, expected, atol=1e-5)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
        assert len(again.trainable_variables) == len(model.trainable_variables)  # MAKE is still frozen
        np.testing.assert_allclose(again.predict(ids, verbose=0), expected, atol=1e-6)
        model.export(f"{folder}/exported", verbose=False)
        np.testing.assert_allclose(score_in_cpp(f"{folder}/exported", ids), expected, atol=1e-5)
    print(f"trained from ids, saved, exported and loaded in C++; AUC {auc:.3f}")
    sys.exit(0 if auc > 0.9 else 1)


if __name__ == "__main__":
    main()
