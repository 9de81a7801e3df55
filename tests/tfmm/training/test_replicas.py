"""What two replicas do together: tables of embeddings, and means over rows that count, spread unevenly."""

import os
import subprocess
import sys

TWO = """
import keras, numpy as np, tensorflow as tf
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from tfmm.ctr.optimizer import TwoRateAdam
from tfmm.losses import InfoNCE, TripletLoss
from tfmm.make.model import loss
from tfmm.training import loop, precision, replicas

rng = np.random.default_rng(0)
rows = {
    "ids": np.array([1, 1, 2, 3, 1, 4, 0, 0]), "label": np.array([1, 0, 0, 1, 0, 1, 0, 0]),
    "mask": np.array([1, 1, 1, 0, 1, 0, 0, 0], bool),  # three here, one there
    "weight": np.array([1, 5, 0, 1, 3, 1, 0, 0], np.float32), "rate": np.array([1, .5, .1, 1, .5, 1, 0, 0], np.float32),
}

def train(strategy, how):
    with strategy.scope(), precision.policy(how):
        keras.utils.set_random_seed(0)
        table, dense = keras.layers.Embedding(6, 3), keras.layers.Dense(1, dtype="float32")
        table.build(), dense.build((None, 3))
        variables = [*table.trainable_variables, *dense.trainable_variables]
        optimizer = precision.scaled(TwoRateAdam(1e-3, 0.5))
        optimizer.build(variables)
        def step(batch):
            with tf.GradientTape() as tape:
                logit = dense(table(batch["ids"]))[:, 0]
                value = loss(logit, batch["label"], batch["mask"], batch["weight"], batch["rate"])
                value += loss(logit, batch["label"], batch["mask"])
                loop.apply_gradients(tape, value, variables, optimizer)
            return {"loss": value}
        history = loop.run(step, lambda epoch: tf.data.Dataset.from_tensor_slices(rows).batch(8), 3)
        copies = [v.numpy() for v in strategy.experimental_local_results(table.embeddings.value)]
        for copy in copies[1:]:
            np.testing.assert_array_equal(copies[0], copy)  # replicas do not drift apart
        return [line["loss"] for line in history], copies[0], tf.convert_to_tensor(dense.kernel).numpy()

one, two = tf.distribute.get_strategy(), tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for how, tolerance in (("float32", 1e-6), ("mixed_float16", 5e-3)):
    for left, right in zip(train(one, how), train(two, how)):
        np.testing.assert_allclose(left, right, atol=tolerance)

vectors = [keras.ops.normalize(rng.normal(size=(8, 5)).astype("float32")) for _ in range(3)]
ids, bank_ids = tf.constant([1, 2, 1, 3, 4, 2, 5, 6], tf.int64), tf.constant([9, 2, 1], tf.int64)
layer = InfoNCE(temperature=0.2, in_batch_negatives=True)
with tf.GradientTape() as tape:
    tape.watch(vectors[:2])
    expected = layer(*vectors[:2], vectors[2][:3], positive_ids=ids, memory_bank_ids=bank_ids)
gradients = tape.gradient(expected, vectors[:2])

def here(batch):
    queries, positives, ids = batch
    with tf.GradientTape() as tape:
        tape.watch([queries, positives])
        among = {"batch_positives": replicas.gather(positives), "batch_ids": replicas.gather(ids)}
        value = layer(queries, positives, vectors[2][:3], positive_ids=ids, memory_bank_ids=bank_ids, **among) / 2.0
    return value, tape.gradient(value, [queries, positives])

parts = two.distribute_datasets_from_function(
    lambda context: tf.data.Dataset.from_tensor_slices((*vectors[:2], ids)).batch(4))
value, found = tf.function(lambda batch: two.run(here, args=(batch,)))(next(iter(parts)))
np.testing.assert_allclose(two.reduce("SUM", value, axis=None), expected, rtol=1e-6)
for left, right in zip(found, gradients):
    np.testing.assert_allclose(np.concatenate(two.experimental_local_results(left)), right, atol=1e-6)
print("EQUAL")
"""


def test_two_replicas_update_tables_and_count_rows_as_one_does(root):
    done = subprocess.run(
        [sys.executable, "-c", TWO], text=True, capture_output=True, cwd=root, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )  # fmt: skip
    assert done.stdout.split() == ["EQUAL"], done.stderr[-3000:]
