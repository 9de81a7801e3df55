"""Counts of behaviors per tier in packed integers: the form of `tier_counts` that is fast under XLA."""

from __future__ import annotations

import typing

import keras
from keras import ops

_COUNTER_BITS = (3, 6, 12)
_LONGEST_SUM = 32


def packed_counts(tier: typing.Any, num_tiers: int) -> typing.Any:
    """Many counters in one integer: one shift counts a behavior for up to 20 tiers, and no [B, L, N] exists.

    The counters are narrow at first, 3 bits. Before they could overflow, each integer is split into its even and
    its odd counters, which leaves each counter twice the bits: 6, then 12. At 12 bits they are unpacked.
    Every sum runs over at most 32 values, since XLA:CPU rewrites a longer one into a slow window; a history whose
    length has no fitting divisors is padded by a few behaviors in no tier.

    Args:
        tier: int32 [B, L], in [0, N], N where a behavior counts in no tier; L static.
        num_tiers: int N > 0.
    Returns:
        float32 [B, N].

    >>> packed_counts(ops.array([[0, 2, 2, 3]]), 3).numpy()
    array([[1., 0., 2.]], dtype=float32)
    """
    length = tier.shape[1]
    padded, sizes = group_sizes(length)
    if padded > length:
        tier = ops.pad(tier, ((0, 0), (0, padded - length)), constant_values=num_tiers)
    bits, word = (31, "int32") if keras.backend.backend() == "jax" else (63, "int64")
    per_word = bits // 12 * 4
    counts = []
    for first in range(0, num_tiers, per_word):
        # a tier outside this word adds to the top bit, which nobody reads; below `first`: large when unsigned
        shift = ops.minimum(ops.cast((tier - first) * 3, "uint32"), ops.cast(bits, "uint32"))
        columns = [ops.left_shift(ops.cast(1, word), ops.cast(shift, word))]  # counter i: in columns[i % len]
        width, left = 3, padded
        for size in sizes[:3]:
            left //= size
            columns = [_sum_groups(column, size, left, fused=width == 3) for column in columns]
            if left == 1 or width == 12:
                break
            even = _constant(sum((2**width - 1) << i for i in range(0, bits - width + 1, 2 * width)), word)
            odd = [ops.right_shift(column, _constant(width, word)) for column in columns]
            columns = [ops.bitwise_and(column, even) for column in columns + odd]
            width *= 2
        for i in range(min(per_word, num_tiers - first)):
            column = ops.right_shift(columns[i % len(columns)], _constant(i // len(columns) * width, word))
            counter, remaining = ops.bitwise_and(column, _constant(2**width - 1, word)), left
            for size in sizes[3:]:
                remaining //= size
                counter = _sum_groups(counter, size, remaining, fused=False)
            counts.append(ops.sum(counter, axis=1))
    return ops.cast(ops.stack(counts, axis=-1), "float32")


def _sum_groups(values: typing.Any, size: int, left: int, fused: bool) -> typing.Any:
    """Sums [B, size * left] to [B, left]; `fused` as additions of slices, which XLA joins with what made them."""
    if not fused:
        return ops.sum(ops.reshape(values, (-1, size, left)), axis=1)
    total = values[:, :left]
    for start in range(left, size * left, left):
        total = total + values[:, start : start + left]
    return total


def _constant(value: int, dtype: str) -> typing.Any:
    return ops.convert_to_tensor(value, dtype=dtype)


def group_sizes(length: int) -> tuple[int, list[int]]:
    """Returns the least padded length that divides well, and how many values each sum but the last joins.

    The first three sums fill counters of 3, 6 and 12 bits; further ones follow the unpacking. The last one runs over
    what they leave, at most 32 values.

    >>> group_sizes(1000), group_sizes(1004)
    ((1000, [5, 10, 20]), (1008, [7, 9, 16]))
    """
    padded = length
    while (sizes := _divide(padded)) is None:
        padded += 1
    return padded, sizes


def _divide(length: int) -> list[int] | None:
    """The sizes of `group_sizes` without padding; None where one of them would be less than 4."""
    sizes: list[int] = []
    left, most = length, 1
    while left > 1 and (len(sizes) < len(_COUNTER_BITS) or left > _LONGEST_SUM):
        limit = (2 ** _COUNTER_BITS[len(sizes)] - 1) // most if len(sizes) < len(_COUNTER_BITS) else left
        size = next(n for n in range(min(limit, _LONGEST_SUM, left), 0, -1) if left % n == 0)
        if size < min(left, 4):
            return None
        sizes.append(size)
        left, most = left // size, most * size
    return sizes
