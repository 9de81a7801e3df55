"""How fast is SimTier against what one would write from the paper, and against the machine?

Sides: the loop of Algorithm 1 (as section 4.2 reads: similarities, then one comparison per tier; with the similarities
as a sum of products or by einsum), the one-hot form, the layer under XLA and without it, on float32 vectors and on int8
rows; from item ids; and one user's history against many candidates, shared and tiled. References run as plain
TensorFlow graphs, and under XLA (`..._xla`) as well. Floor: the bytes of the vectors over the memory bandwidth of the
same run; of the request, its FLOP over the rate of a matrix product.
"""

import argparse

import graphs
import numpy as np
import recording
import tensorflow as tf

from tfmm.layers import FrozenEmbedding, SimTierLayer

DIM, NUM_TIERS, TABLE_ROWS = 128, 20, 2_000_000
SHAPES = {"B256_L1000": (256, 1000), "B1024_L50": (1024, 50), "B32_L10000": (32, 10_000)}
REQUEST = (500, 1000)  # candidates, behaviors of one user


def naive(target, behaviors, mask):
    """Algorithm 1: the similarities, then for each tier the number of those inside."""
    return loop_over_tiers(tf.reduce_sum(behaviors * target[:, None, :], axis=-1), mask)


def naive_einsum(target, behaviors, mask):
    return loop_over_tiers(tf.einsum("bd,bld->bl", target, behaviors), mask)


def loop_over_tiers(similarity, mask):
    counts = []
    for n in range(NUM_TIERS):
        low, high = -1 + 2 * n / NUM_TIERS, -1 + 2 * (n + 1) / NUM_TIERS
        inside = (similarity >= low) & (similarity < high) & mask
        counts.append(tf.reduce_sum(tf.cast(inside, tf.float32), axis=-1))
    return tf.stack(counts, axis=-1)


def one_hot(target, behaviors, mask):
    similarity = tf.einsum("bd,bld->bl", target, behaviors)
    tier = tf.clip_by_value(tf.cast(tf.floor((similarity + 1) * (NUM_TIERS / 2)), tf.int32), 0, NUM_TIERS - 1)
    return tf.reduce_sum(tf.one_hot(tier, NUM_TIERS) * tf.cast(mask, tf.float32)[..., None], axis=1)


def tiled(target, history, mask):
    count = tf.shape(target)[0]
    return one_hot(target, tf.tile(history, [count, 1, 1]), tf.tile(mask, [count, 1]))


def layer_on_floats(target, behaviors, mask):
    return SimTierLayer(NUM_TIERS)(target, behaviors, behaviors_mask=mask)


def layer_on_rows(target, target_scales, behaviors, behaviors_scales, mask):
    scales = {"target_scales": target_scales, "behaviors_scales": behaviors_scales}
    return SimTierLayer(NUM_TIERS)(target, behaviors, behaviors_mask=mask, **scales)


def batch(rng, size, length, repeats, bandwidth):
    target, behaviors = graphs.unit(rng, size, DIM), graphs.unit(rng, size, length, DIM)
    mask = tf.constant(rng.random((size, length)) < 0.9)
    floats = [tf.constant(target), tf.constant(behaviors), mask]
    rows = [tf.constant(x) for x in (*graphs.quantized(target), *graphs.quantized(behaviors))] + [mask]
    sides = {
        "naive_loop": graphs.compiled(naive, *floats),
        "naive_loop_xla": graphs.compiled(naive, *floats, jit_compile=True),
        "naive_loop_einsum_xla": graphs.compiled(naive_einsum, *floats, jit_compile=True),
        "one_hot": graphs.compiled(one_hot, *floats),
        "one_hot_xla": graphs.compiled(one_hot, *floats, jit_compile=True),
        "layer_xla": graphs.compiled(layer_on_floats, *floats, jit_compile=True),
        "layer": graphs.compiled(layer_on_floats, *floats),
        "layer_int8_xla": graphs.compiled(layer_on_rows, *rows, jit_compile=True),
    }
    floor_s = size * length * DIM * 4 / bandwidth
    return graphs.measure(sides, repeats, ["naive_loop", "naive_loop_xla", "naive_loop_einsum_xla"], floor_s)


def from_ids(rng, repeats, num_rows):
    size, length = SHAPES["B256_L1000"]
    rows = rng.integers(-127, 128, size=(num_rows, DIM), dtype=np.int8)
    scales = np.empty(num_rows, np.float32)
    for start in range(0, num_rows, 100_000):
        part = rows[start : start + 100_000].astype(np.float32)
        scales[start : start + 100_000] = 1 / np.linalg.norm(part, axis=-1)
    table = FrozenEmbedding.from_table(np.arange(1, num_rows + 1), rows, scales, by_index=True, output_form="rows")
    floats = tf.Variable(tf.zeros([num_rows, DIM]), trainable=False)
    floats.assign(rows * scales[:, None])
    target = tf.constant(rng.integers(1, num_rows + 1, size=size))
    behaviors = tf.constant(rng.integers(1, num_rows + 1, size=(size, length)))
    mask = tf.ones([size, length], tf.bool)

    def layer(target, behaviors):
        t, b = table(target), table(behaviors)
        return layer_on_rows(t["rows"], t["scales"], b["rows"], b["scales"], b["mask"])

    def float_gather(target, behaviors):
        return one_hot(tf.gather(floats, target - 1), tf.gather(floats, behaviors - 1), mask)

    sides = {
        "float_gather_one_hot": graphs.compiled(float_gather, target, behaviors),
        "float_gather_one_hot_xla": graphs.compiled(float_gather, target, behaviors, jit_compile=True),
        "layer_int8_xla": graphs.compiled(layer, target, behaviors, jit_compile=True),
        "layer_int8": graphs.compiled(layer, target, behaviors),
    }
    return graphs.measure(sides, repeats, ["float_gather_one_hot", "float_gather_one_hot_xla"])


def request(rng, repeats, flop_per_s):
    candidates, length = REQUEST
    target, history = graphs.unit(rng, candidates, DIM), graphs.unit(rng, 1, length, DIM)
    mask = tf.ones([1, length], tf.bool)
    floats = [tf.constant(target), tf.constant(history), mask]
    rows = [tf.constant(x) for x in (*graphs.quantized(target), *graphs.quantized(history))] + [mask]
    sides = {
        "tiled": graphs.compiled(tiled, *floats),
        "tiled_xla": graphs.compiled(tiled, *floats, jit_compile=True),
        "layer_shared_xla": graphs.compiled(layer_on_floats, *floats, jit_compile=True),
        "layer_shared": graphs.compiled(layer_on_floats, *floats),
        "layer_shared_int8_xla": graphs.compiled(layer_on_rows, *rows, jit_compile=True),
    }
    return graphs.measure(sides, repeats, ["tiled", "tiled_xla"], 2 * candidates * length * DIM / flop_per_s)


def bars(results):
    """The project's bars, for what was measured."""
    found = {}
    if "B256_L1000" in results:
        side = results["B256_L1000"]["layer_xla"]
        found["SimTier B256_L1000, times the floor"] = recording.bar(side["times_floor"], at_most=2.3)
        found["SimTier B256_L1000, temporary MB"] = recording.bar(side["peak_bytes"] / 1e6, at_most=5)
    for name, at_least in (("B256_L1000", 2.9), ("B1024_L50", 2.7), ("B32_L10000", 2.7)):
        if name in results:
            side = results[name]["layer_xla"]
            found[f"SimTier {name}, times the naive loop"] = graphs.times(side, "naive_loop", at_least)
    if "from_ids" in results:
        side = results["from_ids"]["layer_int8_xla"]
        title = "SimTier from ids, times float gather, einsum, one-hot"
        found[title] = graphs.times(side, "float_gather_one_hot", 2.8)
    if "request" in results:
        side = results["request"]["layer_shared_xla"]
        found["SimTier, 1 user x 500 candidates, times tiled"] = graphs.times(side, "tiled", 20)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--table-rows", type=int, default=TABLE_ROWS)
    parser.add_argument("--only", nargs="*", default=[*SHAPES, "from_ids", "request"])
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    results = {"floors": graphs.floors(arguments.repeats)}
    for name in arguments.only:
        if name in SHAPES:
            results[name] = batch(rng, *SHAPES[name], arguments.repeats, results["floors"]["read_bytes_per_s"])
        elif name == "from_ids":
            results[name] = from_ids(rng, arguments.repeats, arguments.table_rows)
        else:
            results[name] = request(rng, arguments.repeats, results["floors"]["gemm_float32_flop_per_s"])
    recording.write("simtier", __doc__.splitlines()[0], results, seed=0, bars=bars(results))


if __name__ == "__main__":
    main()
