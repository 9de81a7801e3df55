"""What the benchmarks of layers and losses share: inputs, compiled calls, their memory, and the machine's floors."""

import statistics
import typing

import numpy as np
import recording
import tensorflow as tf

Call = typing.Callable[[], typing.Any]
BLOCK_S = 0.03


def unit(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Returns float32 vectors of norm 1 along the last axis."""
    vectors = rng.normal(size=shape).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def quantized(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns int8 rows and float32 scales, 1 / norm of each row."""
    rows = np.round(vectors * 127 / np.abs(vectors).max(-1, keepdims=True)).astype(np.int8)
    return rows, (1 / np.linalg.norm(rows.astype(np.float32), axis=-1)).astype(np.float32)


def compiled(function: typing.Callable, *tensors: typing.Any, jit_compile: bool = False) -> Call:
    """Traces `function` for `tensors`, with XLA or without; the call returns its outputs as NumPy arrays."""
    concrete = tf.function(function, jit_compile=jit_compile, autograph=False).get_concrete_function(*tensors)
    return lambda: tf.nest.map_structure(lambda tensor: tensor.numpy(), concrete(*tensors))


def peak_bytes(call: Call) -> int:
    """Bytes that a warm call takes beyond what was held before it, in blocks of TensorFlow's allocator.

    A block may be larger than the tensor in it, by up to a half; tensors below 256 KiB are not in it, and count 0.
    """
    tf.config.experimental.reset_memory_stats("CPU:0")
    before = tf.config.experimental.get_memory_info("CPU:0")["current"]
    call()
    return tf.config.experimental.get_memory_info("CPU:0")["peak"] - before


def floors(repeats: int) -> dict[str, float]:
    """Bytes read per second, from 268 MB, and FLOP per second of 2048 x 2048 products, on this machine now."""
    flat = tf.ones([2**26])
    sides = {"read": compiled(tf.reduce_sum, flat)}
    for kind in ("float32", "bfloat16"):
        sides[kind] = compiled(lambda x: tf.reduce_sum(x @ x), tf.ones([2048, 2048], kind))
    best = {name: min(values) for name, values in recording.interleave(sides, repeats).items()}
    rates = {f"gemm_{kind}_flop_per_s": 2 * 2048**3 / best[kind] for kind in ("float32", "bfloat16")}
    return {"read_bytes_per_s": 2**28 / best["read"], **rates}


def measure(
    sides: dict[str, Call], repeats: int, references: typing.Sequence[str], floor_s: float | None = None
) -> dict[str, typing.Any]:
    """Times sides in turn, in blocks; a ratio is the median over rounds of reference / side.

    Returns:
        Per side: "seconds" of a call, "min_s", "times_<reference>" for each reference, "peak_bytes", and with a
        floor "times_floor", the median over the floor.
    """
    seconds = recording.interleave(sides, repeats, warm_ups=2, block_s=BLOCK_S)
    result = {}
    for name, values in seconds.items():
        result[name] = {"seconds": recording.spread(values), "min_s": min(values)}
        for reference in references:
            ratios = [a / b for a, b in zip(seconds[reference], values)]
            result[name][f"times_{reference}"] = statistics.median(ratios)
        result[name]["peak_bytes"] = peak_bytes(sides[name])
        if floor_s is not None:
            result[name]["times_floor"] = statistics.median(values) / floor_s
    return result


def times(side: dict[str, typing.Any], reference: str, at_least: float) -> dict[str, typing.Any]:
    """Returns the bar of a side against a reference, with its ratios to the other references beside it."""
    others = {name: value for name, value in side.items() if name.startswith("times_")}
    return recording.bar(others.pop(f"times_{reference}"), at_least=at_least, beside=others)
