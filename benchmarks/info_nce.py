"""How fast is streaming InfoNCE, forward and backward, and how much memory does it take, against plain TensorFlow?

Sides: MoCo's form (concatenated logits over the temperature, softmax cross-entropy), the same by logsumexp, logsumexp
of queries that were divided by the temperature first (two passes over the logits fewer), and ours, streamed, on float32
and on bfloat16; each by autodiff of the loss in the queries and the temperature. Floor: two matrix products of [B, D]
with the bank at the rate of a 2048 x 2048 product in the same run. `largest_error` is against the plain logsumexp form:
of the loss, and of the gradients relative to the largest.
"""

import argparse
import functools

import graphs
import numpy as np
import recording
import tensorflow as tf

from tfmm.losses import info_nce

DIM, TEMPERATURE = 128, 0.07
REFERENCES = ("plain_cross_entropy", "plain_log_sum_exp", "plain_log_sum_exp_scaled_queries")


def cross_entropy(queries, positives, bank, temperature):
    own = tf.reduce_sum(queries * positives, axis=-1, keepdims=True)
    logits = tf.concat([own, tf.matmul(queries, bank, transpose_b=True)], axis=1) / temperature
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.zeros([queries.shape[0]], tf.int32), logits)


def log_sum_exp(queries, positives, bank, temperature):
    own = tf.reduce_sum(queries * positives, axis=-1) / temperature
    others = tf.reduce_logsumexp(tf.matmul(queries, bank, transpose_b=True) / temperature, axis=1)
    return tf.nn.softplus(others - own)


def log_sum_exp_scaled_queries(queries, positives, bank, temperature):
    return log_sum_exp(queries / temperature, positives, bank, 1.0)


def streamed(queries, positives, bank, temperature, **options):
    return info_nce(queries, positives, bank, temperature=temperature, **options)


def step(loss_of, queries, positives, bank):
    """A compiled step: loss, and its gradients by queries and log temperature."""

    def compute(queries, positives, bank, log_temperature):
        with tf.GradientTape() as tape:
            tape.watch([queries, log_temperature])
            loss = tf.reduce_mean(loss_of(queries, positives, bank, tf.exp(log_temperature)))
        return loss, *tape.gradient(loss, [queries, log_temperature])

    log_temperature = tf.constant(np.log(TEMPERATURE), tf.float32)
    return graphs.compiled(compute, queries, positives, bank, log_temperature)


def largest_errors(found, expected):
    errors = [np.max(np.abs(a - b)) / (np.max(np.abs(b)) if i else 1) for i, (a, b) in enumerate(zip(found, expected))]
    return dict(zip(("loss", "queries_gradient", "temperature_gradient"), map(float, errors)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--bank", type=int, default=196_800)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    sizes = (arguments.batch, arguments.batch, arguments.bank)
    queries, positives, bank = (tf.constant(graphs.unit(rng, size, DIM)) for size in sizes)
    half = tf.cast(bank, tf.bfloat16)
    make = functools.partial(step, queries=queries, positives=positives)
    sides = {
        "plain_cross_entropy": make(cross_entropy, bank=bank),
        "plain_log_sum_exp": make(log_sum_exp, bank=bank),
        "plain_log_sum_exp_scaled_queries": make(log_sum_exp_scaled_queries, bank=bank),
        "streamed": make(streamed, bank=bank),
        "streamed_bfloat16_bank": make(streamed, bank=half),
        "streamed_bfloat16_products": make(functools.partial(streamed, gemm_dtype="bfloat16"), bank=half),
    }
    floors = graphs.floors(arguments.repeats)
    floor_s = 4 * arguments.batch * arguments.bank * DIM / floors["gemm_float32_flop_per_s"]
    logits_bytes = 4 * arguments.batch * arguments.bank
    step_of = graphs.measure(sides, arguments.repeats, REFERENCES, floor_s)
    expected = sides["plain_log_sum_exp"]()
    for name, side in step_of.items():
        side["share_of_logits"] = side["peak_bytes"] / logits_bytes
        side["largest_error"] = largest_errors(sides[name](), expected)
    ours, ours_bfloat16 = step_of["streamed"], step_of["streamed_bfloat16_products"]
    bars = {
        "InfoNCE float32, times plain": graphs.times(ours, "plain_cross_entropy", 2),
        "InfoNCE float32, % of the logits' memory": recording.bar(100 * ours["share_of_logits"], at_most=1),
        "InfoNCE bfloat16, times plain": graphs.times(ours_bfloat16, "plain_cross_entropy", 2.7),
        "InfoNCE bfloat16, % of the logits' memory": recording.bar(100 * ours_bfloat16["share_of_logits"], at_most=1),
    }
    results = {"batch": arguments.batch, "bank": arguments.bank, "floors": floors, "floor_s": floor_s,
               "logits_bytes": logits_bytes, "step": step_of}
    recording.write("info_nce", __doc__.splitlines()[0], results, seed=0, bars=bars)


if __name__ == "__main__":
    main()
