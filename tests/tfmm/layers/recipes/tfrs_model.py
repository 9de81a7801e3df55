"""tfmm layers (Keras 3) inside a `tfrs.Model` (Keras 2): the process needs TF_USE_LEGACY_KERAS=1.

A Keras 2 model does not see Keras 3 layers' variables: hold them in `tf_variables`, and let `train_step` take
gradients by those. Export a tf.Module that tracks the variables themselves, which TF Serving's loader needs.
"""

import os
import sys
import tempfile

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import keras
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from clicks import DIM, LENGTH, make_data, score_in_cpp

from tfmm.layers import DINAttention, SimTierLayer

NUM_TIERS = 20


class ClickModel(tfrs.Model):
    def __init__(self):
        super().__init__()
        self.tower = keras.Sequential([keras.layers.Dense(16, "relu"), keras.layers.Dense(1, "sigmoid")])
        self.tiers = SimTierLayer(NUM_TIERS, tier_output="log1p")
        self.attention = DINAttention(units=(16,))
        self.task = tfrs.tasks.Ranking(loss=tf.keras.losses.BinaryCrossentropy())
        self.tower.build((None, NUM_TIERS + 2 * DIM))
        self.attention.build((None, DIM), (None, LENGTH, DIM))
        trained = (*self.tower.variables, *self.attention.variables)
        self.tf_variables = [variable.value for variable in trained]

    def call(self, features):
        target, behaviors, mask = (features[name] for name in ("target", "behaviors", "behaviors_mask"))
        counts = self.tiers(target, behaviors, behaviors_mask=mask)
        interest = self.attention(target, behaviors, behaviors_mask=mask)
        return self.tower(tf.concat([counts, interest, target], axis=-1))

    def compute_loss(self, inputs, training=False):
        features, clicks = inputs
        return self.task(labels=clicks, predictions=self(features))

    def train_step(self, inputs):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(inputs, training=True)
        gradients = tape.gradient(loss, self.tf_variables)
        self.optimizer.apply_gradients(zip(gradients, self.tf_variables, strict=True))
        return {"loss": loss}


class Servable(tf.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
        self.kept = model.tf_variables  # the C++ loader finds what a tf.Module tracks

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, DIM], name="target"),
            tf.TensorSpec([None, LENGTH, DIM], name="behaviors"),
            tf.TensorSpec([None, LENGTH], tf.bool, name="behaviors_mask"),
        ]
    )
    def serve(self, target, behaviors, behaviors_mask):
        return {
            "score": self.model({"target": target, "behaviors": behaviors, "behaviors_mask": behaviors_mask})
        }


def main() -> None:
    keras.utils.set_random_seed(0)
    (target, behaviors, mask), clicks = make_data()
    features = {"target": target, "behaviors": behaviors, "behaviors_mask": mask}
    model = ClickModel()
    model.compile(optimizer=tf.keras.optimizers.legacy.Adam(1e-2))
    data = tf.data.Dataset.from_tensor_slices((features, clicks[:, None].astype("float32"))).batch(64)
    losses = model.fit(data, epochs=5, verbose=0).history["loss"]
    with tempfile.TemporaryDirectory() as folder:
        servable = Servable(model)
        tf.saved_model.save(servable, folder, signatures=servable.serve)
        scores = score_in_cpp(folder, features)
    np.testing.assert_allclose(scores, model(features), atol=1e-5)
    print(f"trained in tfrs.Model and loaded in C++; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    sys.exit(0 if losses[-1] < 0.5 * losses[0] else 1)


if __name__ == "__main__":
    main()
