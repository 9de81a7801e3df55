"""How fast is SimTier against what one would write from the paper, and against the machine?

Sides: the loop of Algorithm 1 (as section 4.2 reads: similarities, then one comparison per tier), the one-hot
form, the layer under XLA and without it, on float32 vectors and on int8 rows; from item ids; and one user's
history against many candidates, shared and tiled. Floor: the bytes of the vectors over the memory bandwidth
of the same run.
"""

import argparse
import statistics

import numpy as np
import recording
import tensorflow as tf

from tfmm.layers import FrozenEmbedding, SimTierLayer

DIM, NUM_TIERS, TABLE_ROWS = 128, 20, 2_000_000
SHAPES = {"B256_L1000": (256, 1000), "B1024_L50": (1024, 50), "B32_L10000": (32, 10_000)}
REQUEST = (500, 1000)  # candidates, behaviors of one user


def naive(target, behaviors, mask):
    """Algorithm 1: the similarities, then for each tier the number of those inside."""
    similarity = tf.reduce_sum(behaviors * target[:, None, :], axis=-1)
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


def graph(function, jit_compile=False):
    return tf.function(function, jit_compile=jit_compile, autograph=False)


def peak_bytes(call) -> int:
    """Bytes that a warm call takes beyond what was held before it."""
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    call()
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def unit(rng, *shape):
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def quantized(vectors):
    rows = np.round(vectors * 127 / np.abs(vectors).max(-1, keepdims=True)).astype(np.int8)
    return rows, (1 / np.linalg.norm(rows.astype(np.float32), axis=-1)).astype(np.float32)


def bind(function, *tensors):
    return lambda: function(*tensors).numpy()


def floors(repeats):
    """Seconds to read 268 MB, and to multiply two 2048 x 2048 matrices, on this machine now."""
    flat, square = tf.ones([2**26]), tf.ones([2048, 2048])
    seconds = recording.interleave(
        {
            "read": bind(graph(tf.reduce_sum), flat),
            "gemm": bind(graph(lambda x: tf.reduce_sum(x @ x)), square),
        },
        repeats,
    )
    best = {name: min(values) for name, values in seconds.items()}
    return {"read_bytes_per_s": 2**28 / best["read"], "gemm_flop_per_s": 2 * 2048**3 / best["gemm"]}


def measure(sides, repeats, reference, floor_s=None):
    """Times sides in turn; a ratio is the median over rounds of reference / side."""
    seconds = recording.interleave(sides, repeats, warm_ups=2)
    result = {}
    for name, values in seconds.items():
        ratios = [a / b for a, b in zip(seconds[reference], values)]
        result[name] = {
            "seconds": recording.spread(values),
            "min_s": min(values),
            f"times_{reference}": statistics.median(ratios),
            "peak_bytes": peak_bytes(sides[name]),
        }
        if floor_s is not None:
            result[name]["times_floor"] = min(values) / floor_s
    return result


def batch(rng, size, length, repeats, bandwidth):
    target, behaviors = unit(rng, size, DIM), unit(rng, size, length, DIM)
    rows = [tf.constant(x) for x in (*quantized(target), *quantized(behaviors))]
    target, behaviors = tf.constant(target), tf.constant(behaviors)
    mask = tf.constant(rng.random((size, length)) < 0.9)
    layer = SimTierLayer(NUM_TIERS)

    def of_floats(t, b, m):
        return layer(t, b, behaviors_mask=m)

    def of_rows(t, ts, b, bs, m):
        return layer(t, b, behaviors_mask=m, target_scales=ts, behaviors_scales=bs)

    sides = {
        "naive_loop": bind(graph(naive), target, behaviors, mask),
        "one_hot": bind(graph(one_hot), target, behaviors, mask),
        "layer_xla": bind(graph(of_floats, True), target, behaviors, mask),
        "layer": bind(graph(of_floats), target, behaviors, mask),
        "layer_int8_xla": bind(graph(of_rows, True), *rows, mask),
    }
    return measure(sides, repeats, "naive_loop", size * length * DIM * 4 / bandwidth)


def from_ids(rng, repeats, num_rows):
    size, length = SHAPES["B256_L1000"]
    rows = rng.integers(-127, 128, size=(num_rows, DIM), dtype=np.int8)
    scales = np.empty(num_rows, np.float32)
    for start in range(0, num_rows, 100_000):
        part = rows[start : start + 100_000].astype(np.float32)
        scales[start : start + 100_000] = 1 / np.linalg.norm(part, axis=-1)
    table = FrozenEmbedding.from_table(
        np.arange(1, num_rows + 1), rows, scales, by_index=True, output_form="rows"
    )
    floats = tf.Variable(tf.zeros([num_rows, DIM]), trainable=False)
    floats.assign(rows * scales[:, None])
    target = tf.constant(rng.integers(1, num_rows + 1, size=size))
    behaviors = tf.constant(rng.integers(1, num_rows + 1, size=(size, length)))
    mask = tf.ones([size, length], tf.bool)
    layer = SimTierLayer(NUM_TIERS)

    def of_ids(target, behaviors):
        t, b = table(target), table(behaviors)
        return layer(
            t["rows"],
            b["rows"],
            behaviors_mask=b["mask"],
            target_scales=t["scales"],
            behaviors_scales=b["scales"],
        )

    def float_gather(target, behaviors):
        return one_hot(tf.gather(floats, target - 1), tf.gather(floats, behaviors - 1), mask)

    return measure(
        {
            "float_gather_one_hot": bind(graph(float_gather), target, behaviors),
            "layer_int8_xla": bind(graph(of_ids, True), target, behaviors),
            "layer_int8": bind(graph(of_ids), target, behaviors),
        },
        repeats,
        "float_gather_one_hot",
    )


def request(rng, repeats):
    candidates, length = REQUEST
    target, history = unit(rng, candidates, DIM), unit(rng, 1, length, DIM)
    rows = [tf.constant(x) for x in (*quantized(target), *quantized(history))]
    target, history, mask = tf.constant(target), tf.constant(history), tf.ones([1, length], tf.bool)
    layer = SimTierLayer(NUM_TIERS)

    def of_floats(t, b, m):
        return layer(t, b, behaviors_mask=m)

    def of_rows(t, ts, b, bs, m):
        return layer(t, b, behaviors_mask=m, target_scales=ts, behaviors_scales=bs)

    return measure(
        {
            "tiled": bind(graph(tiled), target, history, mask),
            "layer_shared_xla": bind(graph(of_floats, True), target, history, mask),
            "layer_shared": bind(graph(of_floats), target, history, mask),
            "layer_shared_int8_xla": bind(graph(of_rows, True), *rows, mask),
        },
        repeats,
        "tiled",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--table-rows", type=int, default=TABLE_ROWS)
    parser.add_argument("--only", nargs="*", default=[*SHAPES, "from_ids", "request"])
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    results = {"floors": floors(arguments.repeats)}
    bandwidth = results["floors"]["read_bytes_per_s"]
    for name in arguments.only:
        if name in SHAPES:
            results[name] = batch(rng, *SHAPES[name], arguments.repeats, bandwidth)
        elif name == "from_ids":
            results[name] = from_ids(rng, arguments.repeats, arguments.table_rows)
        else:
            results[name] = request(rng, arguments.repeats)
    recording.write("simtier", __doc__.splitlines()[0], results, seed=0)


if __name__ == "__main__":
    main()
