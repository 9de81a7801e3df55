"""How fast is streaming InfoNCE, forward and backward, and how much memory does it take, against plain TensorFlow?

Sides: MoCo's form (concatenated logits, softmax cross-entropy), the same by logsumexp, and ours, streamed, on float32
and on bfloat16, by autodiff of the loss in the queries and the temperature. Floor: two matrix products of [B, D] with
the bank at the rate of a 2048 x 2048 product in the same run. `largest_error` is against the plain logsumexp form: of
the loss, and of the gradients relative to the largest.
"""

import argparse
import functools
import statistics

import numpy as np
import recording
import tensorflow as tf

from tfmm.losses import info_nce

DIM, TEMPERATURE = 128, 0.07


def cross_entropy(queries, positives, bank, temperature):
    own = tf.reduce_sum(queries * positives, axis=-1, keepdims=True)
    logits = tf.concat([own, tf.matmul(queries, bank, transpose_b=True)], axis=1) / temperature
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.zeros([queries.shape[0]], tf.int32), logits)


def log_sum_exp(queries, positives, bank, temperature):
    own = tf.reduce_sum(queries * positives, axis=-1) / temperature
    others = tf.reduce_logsumexp(tf.matmul(queries, bank, transpose_b=True) / temperature, axis=1)
    return tf.nn.softplus(others - own)


def streamed(queries, positives, bank, temperature, **options):
    return info_nce(queries, positives, bank, temperature=temperature, **options)


def step(loss_of, queries, positives, bank):
    """A compiled step: loss, and its gradients by queries and log temperature."""

    @functools.partial(tf.function, autograph=False)
    def compute(queries, positives, bank, log_temperature):
        with tf.GradientTape() as tape:
            tape.watch([queries, log_temperature])
            loss = tf.reduce_mean(loss_of(queries, positives, bank, tf.exp(log_temperature)))
        return loss, *tape.gradient(loss, [queries, log_temperature])

    log_temperature = tf.constant(np.log(TEMPERATURE), tf.float32)
    return lambda: [each.numpy() for each in compute(queries, positives, bank, log_temperature)]


def peak_bytes(call) -> int:
    """Bytes that a warm call takes beyond what was held before it."""
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    call()
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def unit(rng, rows):
    vectors = rng.normal(size=(rows, DIM)).astype(np.float32)
    return tf.constant(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def gemm_rates(repeats):
    """FLOP per second of a 2048 x 2048 product in float32 and bfloat16."""
    multiply = tf.function(lambda x: tf.reduce_sum(tf.matmul(x, x)))
    squares = {kind: tf.ones([2048, 2048], kind) for kind in ("float32", "bfloat16")}
    sides = {kind: functools.partial(lambda x: multiply(x).numpy(), x) for kind, x in squares.items()}
    return {kind: 2 * 2048**3 / min(times) for kind, times in recording.interleave(sides, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--bank", type=int, default=196_800)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    queries, positives, bank = (unit(rng, n) for n in (arguments.batch, arguments.batch, arguments.bank))
    half = tf.cast(bank, tf.bfloat16)
    make = functools.partial(step, queries=queries, positives=positives)
    in_bfloat16 = functools.partial(streamed, gemm_dtype="bfloat16")
    sides = {
        "plain_cross_entropy": make(cross_entropy, bank=bank),
        "plain_log_sum_exp": make(log_sum_exp, bank=bank),
        "streamed": make(streamed, bank=bank),
        "streamed_bfloat16_bank": make(streamed, bank=half),
        "streamed_bfloat16_products": make(in_bfloat16, bank=half),
    }
    rates = gemm_rates(arguments.repeats)
    floor_s = 4 * arguments.batch * arguments.bank * DIM / rates["float32"]
    logits_bytes = 4 * arguments.batch * arguments.bank
    expected = sides["plain_log_sum_exp"]()
    seconds = recording.interleave(sides, arguments.repeats)
    results = {"batch": arguments.batch, "bank": arguments.bank, "gemm_flop_per_s": rates, "floor_s": floor_s,
               "logits_bytes": logits_bytes}
    for name, values in seconds.items():
        peak = peak_bytes(sides[name])
        errors = [float(np.max(np.abs(a - b)) / (np.max(np.abs(b)) if i else 1))
                  for i, (a, b) in enumerate(zip(sides[name](), expected))]
        results[name] = {
            "seconds": recording.spread(values), "times_floor": min(values) / floor_s,
            **{f"times_{other}": statistics.median([a / b for a, b in zip(seconds[other], values)])
               for other in ("plain_cross_entropy", "plain_log_sum_exp")},
            "peak_bytes": peak, "share_of_logits": peak / logits_bytes,
            "largest_error": dict(zip(("loss", "queries_gradient", "temperature_gradient"), errors)),
        }
    recording.write("info_nce", __doc__.splitlines()[0], results, seed=0)


if __name__ == "__main__":
    main()
