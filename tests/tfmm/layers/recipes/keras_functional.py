"""SimTier and MAKE's attention in a plain Keras functional model: train, save, export, load in C++."""

import sys
import tempfile

import keras
import numpy as np
from clicks import DIM, LENGTH, by_name, make_data, score_in_cpp

from tfmm.layers import DINAttention, SimTierLayer


def build_model() -> keras.Model:
    target = keras.Input((DIM,), name="target")
    behaviors = keras.Input((LENGTH, DIM), name="behaviors")
    mask = keras.Input((LENGTH,), dtype="bool", name="behaviors_mask")
    tiers = SimTierLayer(num_tiers=20, tier_output="log1p")(target, behaviors, behaviors_mask=mask)
    interest = DINAttention(units=(16,))(target, behaviors, behaviors_mask=mask)
    hidden = keras.layers.Dense(16, "relu")(keras.layers.Concatenate()([tiers, interest, target]))
    return keras.Model([target, behaviors, mask], keras.layers.Dense(1, "sigmoid", name="score")(hidden))


def main() -> None:
    keras.utils.set_random_seed(0)
    inputs, clicks = make_data()
    model = build_model()
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=["auc"])
    history = model.fit(inputs, clicks, epochs=5, batch_size=64, verbose=0).history
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        np.testing.assert_allclose(
            keras.models.load_model(f"{folder}/model.keras")(inputs), model(inputs), atol=1e-6
        )
        model.export(f"{folder}/exported", verbose=False)
        np.testing.assert_allclose(score_in_cpp(f"{folder}/exported", by_name(inputs)), model(inputs), atol=1e-5)
    print(f"trained, saved, exported and loaded in C++; AUC {history['auc'][-1]:.3f}")
    sys.exit(0 if history["auc"][-1] > 0.9 else 1)


if __name__ == "__main__":
    main()
