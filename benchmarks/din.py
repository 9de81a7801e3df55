"""How much does a ranking request gain where all candidates share the user's history?

One user with 1,000 behaviors and 500 candidates through DIN attention, SimTier and an MLP: as it is usually
written (history copied per candidate, the activation unit over joined vectors) against the layers with the
history shared. The floor is the FLOP of the factorised form over the rate of a matrix product measured in the
same run.
"""

import argparse

import graphs
import keras
import numpy as np
import recording
import simtier
import tensorflow as tf

from tfmm.layers import DINAttention, SimTierLayer

CANDIDATES, LENGTH, DIM = 500, 1000, simtier.DIM
UNITS, TOWER = (80, 40), (200, 80)


def build(rng):
    """Returns the shared form and the tiled form of one model, with the same weights."""
    attention = DINAttention(UNITS, activation="sigmoid")
    tiers = SimTierLayer(simtier.NUM_TIERS)
    tower = keras.Sequential([*[keras.layers.Dense(units, "relu") for units in TOWER], keras.layers.Dense(1)])

    def shared(target, history, mask):
        pooled = attention(target, history, behaviors_mask=mask)
        counts = tiers(target, history, behaviors_mask=mask)
        return tower(tf.concat([pooled, target, tf.math.log1p(counts)], axis=-1))

    def tiled(target, history, mask):
        count = target.shape[0]
        history, mask = tf.tile(history, [count, 1, 1]), tf.tile(mask, [count, 1])
        query = tf.repeat(target[:, None], LENGTH, axis=1)
        x = tf.concat([query, history, query - history, query * history], axis=-1)
        x = tf.sigmoid(x @ attention.kernel.value + attention.bias.value)
        for i, dense in enumerate(attention.dense_layers):
            x = x @ dense.kernel.value + dense.bias.value
            x = tf.sigmoid(x) if i + 1 < len(attention.dense_layers) else x
        weights = x[..., 0] * tf.cast(mask, tf.float32)
        pooled = tf.reduce_sum(weights[..., None] * history, axis=1)
        counts = simtier.one_hot(target, history, mask)
        return tower(tf.concat([pooled, target, tf.math.log1p(counts)], axis=-1))

    shared(tf.zeros([2, DIM]), tf.zeros([1, 3, DIM]), tf.ones([1, 3], tf.bool))
    for weight in attention.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.1)
    return shared, tiled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--candidates", type=int, default=CANDIDATES)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    shared, tiled = build(rng)
    target = tf.constant(graphs.unit(rng, arguments.candidates, DIM))
    history = tf.constant(graphs.unit(rng, 1, LENGTH, DIM))
    mask = tf.constant(rng.random((1, LENGTH)) < 0.9)
    difference = np.abs(shared(target[:20], history, mask) - tiled(target[:20], history, mask)).max()
    floors = graphs.floors(arguments.repeats)
    flop = 2 * arguments.candidates * LENGTH * (DIM * UNITS[0] + UNITS[0] * UNITS[1] + UNITS[1] + 2 * DIM)
    arrays = target, history, mask
    sides = {
        "tiled": graphs.compiled(tiled, *arrays),
        "tiled_xla": graphs.compiled(tiled, *arrays, jit_compile=True),
        "shared": graphs.compiled(shared, *arrays),
        "shared_xla": graphs.compiled(shared, *arrays, jit_compile=True),
    }
    floor_s = flop / floors["gemm_float32_flop_per_s"]
    request = graphs.measure(sides, arguments.repeats, ["tiled", "tiled_xla"], floor_s)
    for side in request.values():
        side["memory_of_tiled"] = side["peak_bytes"] / request["tiled"]["peak_bytes"]
    results = {"floors": floors, "request": request, "largest_difference": float(difference)}
    best = request["shared_xla"]
    bars = {
        "DIN + SimTier + MLP request, times tiled": graphs.times(best, "tiled", 2.8),
        "DIN + SimTier + MLP request, % of its memory": recording.bar(100 * best["memory_of_tiled"], at_most=10),
    }
    recording.write("din", __doc__.splitlines()[0], results, seed=0, bars=bars)


if __name__ == "__main__":
    main()
