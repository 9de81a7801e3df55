"""tfmm layers beside those of keras-rs: SimTier's counts and keras-rs's feature crosses in one model.

Trained and saved on any backend; on TensorFlow also exported and loaded in C++. keras-rs 0.2 does not import beside
TensorFlow 2.16.
"""

import sys
import tempfile

import keras
import keras_rs
import numpy as np
from clicks import DIM, LENGTH, by_name, make_data, score_in_cpp

from tfmm.layers import SimTierLayer


def main() -> None:
    keras.utils.set_random_seed(0)
    target = keras.Input((DIM,), name="target")
    behaviors = keras.Input((LENGTH, DIM), name="behaviors")
    mask = keras.Input((LENGTH,), dtype="bool", name="behaviors_mask")
    features = keras.layers.Concatenate()(
        [SimTierLayer(20, "log1p")(target, behaviors, behaviors_mask=mask), target]
    )
    crossed = keras_rs.layers.FeatureCross()(features, features)
    model = keras.Model([target, behaviors, mask], keras.layers.Dense(1, "sigmoid")(crossed))
    model.compile(keras.optimizers.Adam(1e-2), "binary_crossentropy", metrics=["auc"])
    inputs, clicks = make_data()
    auc = model.fit(inputs, clicks, epochs=5, batch_size=64, verbose=0).history["auc"][-1]
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.models.load_model(f"{folder}/model.keras")
        np.testing.assert_allclose(
            again.predict(inputs, verbose=0), model.predict(inputs, verbose=0), atol=1e-6
        )
        if keras.backend.backend() == "tensorflow":
            model.export(f"{folder}/exported", verbose=False)
            np.testing.assert_allclose(score_in_cpp(f"{folder}/exported", by_name(inputs)), model(inputs), atol=1e-5)
    print(f"trained with keras-rs on {keras.backend.backend()}; AUC {auc:.3f}")
    sys.exit(0 if auc > 0.9 else 1)


if __name__ == "__main__":
    main()
