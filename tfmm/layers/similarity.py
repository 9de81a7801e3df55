"""Similarity of a target item and the behaviors (equation 2), on float vectors and on int8 rows."""

from __future__ import annotations

import typing

from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import is_traced_for_xla

MAX_INT8_DIM = 1040  # 127 * 127 * 1040 < 2 ** 24: dots of int8 rows are whole numbers, exact in float32
_NORM_TOLERANCE = 0.02  # float16 vectors pass; vectors that were never normalised do not
_LARGEST = 3e38  # above any similarity
_LANES = 16  # float32 values in one 512-bit register


def cosine_similarity(
    target: typing.Any,
    behaviors: typing.Any,
    target_scales: typing.Any = None,
    behaviors_scales: typing.Any = None,
) -> typing.Any:
    """Computes s_i = v_i . v_c (equation 2), the cosine of vectors of norm 1.

    In float32 and in this order: (dot * target_scale) * behavior_scale. With int8 rows the dot is a whole
    number, exact whatever the order of summation, so that every form, batch size and machine gives the same
    similarity, bit for bit. (TensorFlow's graph optimiser joins products, and then rounds otherwise; this
    form stops it.)

    Args:
        target: float or int8 [B, D]; or [C, D] with one history.
        behaviors: float or int8 [B, L, D]; or [1, L, D], shared by all targets.
        target_scales: float32 [B], 1 / norm of each target row; None: the rows have norm 1.
        behaviors_scales: float32 [B, L] (or [1, L]), likewise.
    Returns:
        float32 [B, L]; [C, L] with one history. Not clipped: rounding may pass 1 by a few 1e-7.
    Raises:
        ValueError: other ranks, dims that differ, or int8 rows of more than 1040 values (no longer exact).

    >>> cosine_similarity([[1.0, 0.0]], [[[0.6, 0.8], [-1.0, 0.0]]]).numpy()
    array([[ 0.6, -1. ]], dtype=float32)
    """
    target, behaviors = ops.convert_to_tensor(target), ops.convert_to_tensor(behaviors)
    checks.require_rank("target", target, 2, "[B, D]")
    checks.require_rank("behaviors", behaviors, 3, "[B, L, D]")
    dim = target.shape[-1]
    checks.require_same_dim("target", dim, "behaviors", behaviors.shape[-1])
    if "int8" in str(behaviors.dtype):
        checks.require(
            dim is None or dim <= MAX_INT8_DIM,
            f"int8 rows must have at most {MAX_INT8_DIM} values, else their dots are not exact.",
            dim,
        )
        checks.require(
            target_scales is not None and behaviors_scales is not None,
            "int8 rows need `target_scales` and `behaviors_scales` (1 / norm of each row).",
            None,
        )
    similarity = _dot(target, behaviors)
    if target_scales is not None:
        similarity = similarity * ops.expand_dims(ops.cast(target_scales, "float32"), -1)
    if target_scales is not None and behaviors_scales is not None:
        similarity = ops.minimum(similarity, _LARGEST)  # so that the graph optimiser joins no products
    if behaviors_scales is not None:
        similarity = similarity * ops.cast(behaviors_scales, "float32")
    return similarity


def _dot(target: typing.Any, behaviors: typing.Any) -> typing.Any:
    """Returns float32 [B, L] of target [B, D] and behaviors [B, L, D], or [C, L] with behaviors [1, L, D]."""
    target = ops.cast(target, "float32")
    if checks.is_shared(target, behaviors):
        return ops.matmul(target, ops.transpose(ops.cast(behaviors[0], "float32")))
    if is_traced_for_xla() and target.shape[-1] is not None:
        return _sliced_dot(target, behaviors)
    return ops.einsum("bd,bld->bl", target, ops.cast(behaviors, "float32"))


def _sliced_dot(target: typing.Any, behaviors: typing.Any) -> typing.Any:
    """The dot in slices of 16, which XLA fuses with the cast and the reduction: no [B, L, D] buffer."""
    dim = target.shape[-1]
    whole = dim - dim % _LANES
    target = ops.expand_dims(target, 1)
    parts = [
        ops.cast(behaviors[..., i : i + _LANES], "float32") * target[..., i : i + _LANES]
        for i in range(0, whole, _LANES)
    ]
    total = ops.cast(0.0, "float32")
    if parts:
        accumulated = parts[0]
        for part in parts[1:]:
            accumulated = accumulated + part
        total = total + ops.sum(accumulated, axis=-1)
    if whole < dim:
        total = total + ops.sum(ops.cast(behaviors[..., whole:], "float32") * target[..., whole:], axis=-1)
    return total


def unit_vectors(rows: typing.Any, scales: typing.Any) -> typing.Any:
    """Turns int8 rows with their scales into vectors of norm 1.

    Args:
        rows: int8 [..., D]; scales: float32 [...], 1 / norm of each row (0 gives a zero vector).
    Returns:
        float32 [..., D].

    >>> unit_vectors([[3, 4]], [0.2]).numpy()
    array([[0.6, 0.8]], dtype=float32)
    """
    return ops.cast(rows, "float32") * ops.expand_dims(ops.cast(scales, "float32"), -1)


def verify_similarity(
    similarity: typing.Any,
    mask: typing.Any,
    target: typing.Any,
    behaviors: typing.Any,
    target_scales: typing.Any,
    behaviors_scales: typing.Any,
) -> typing.Any:
    """Checks unmasked values: similarities are numbers, and vectors times scales have norm 1.

    Returns:
        bool [], True where all hold. Where values can be read (eager), a broken rule raises instead.
    Raises:
        ValueError: a NaN, an infinity, or a vector whose norm is not 1.
    """
    valid = ops.all(ops.logical_or(ops.isfinite(similarity), ops.logical_not(mask)))
    checks_made = [
        ("`similarity` must be finite where the mask is True (NaN or infinity in a vector?).", valid)
    ]
    if behaviors is not None:
        for name, rows, scales, exists in (
            ("target", target, target_scales, ops.any(mask, axis=1)),
            ("behaviors", behaviors, behaviors_scales, mask),
        ):
            rows = ops.cast(rows, "float32")
            norm = ops.sqrt(ops.sum(rows * rows, axis=-1))
            if scales is not None:
                norm = norm * ops.cast(scales, "float32")
            is_unit = ops.logical_or(ops.abs(norm - 1.0) < _NORM_TOLERANCE, ops.logical_not(exists))
            checks_made.append(
                (
                    f"`{name}` must have norm 1 (times its scales); normalise it, pass scales = 1 / norm, "
                    "or mask the vectors that are missing.",
                    ops.all(is_unit),
                )
            )
    for rule, holds in checks_made:
        value = checks.concrete(holds)
        checks.require(value is None or bool(value), rule, "a value that breaks it")
        valid = ops.logical_and(valid, holds)
    return valid
