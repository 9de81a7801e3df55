"""Similarity of a target item and the behaviors (equation 2), on float vectors and on int8 rows."""

from __future__ import annotations

import typing

import numpy as np
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

    Several targets share one history in one matrix product where its batch size is known to be 1. In a
    SavedModel `model.export()` makes that size unknown, and a slower form serves; keep the fast one with
    `model.export(path, input_signature=...)` that gives the history as [1, L, D] (see `SimTierLayer`).

    Args:
        target: float [B, D], or int8 [B, D] with `target_scales`; or [C, D] with one history.
        behaviors: float [B, L, D], or int8 [B, L, D] with `behaviors_scales`; or [1, L, D], shared by all
            targets.
        target_scales: float32 [B], 1 / norm of each target row; None: the vectors have norm 1.
        behaviors_scales: float32 [B, L] (or [1, L]), likewise.
    Returns:
        float32 [B, L]; [C, L] with one history. Not clipped: rounding may pass 1 by a few 1e-7. Where a row
        or its scale is 0, which stands for a missing embedding, it is 0, and no mask travels with it: give
        `SimScore` and `SemanticTargetAttention` `similarity_mask=target_mask[:, None] & behaviors_mask`.
    Raises:
        ValueError: other ranks, batch sizes, lengths or dims that do not fit, scales of another shape, rows
            that are not float and lack scales, or neither int8 nor float and have them, or int8 rows of more
            than 1040 values (no longer exact).

    >>> cosine_similarity([[1.0, 0.0]], [[[0.6, 0.8], [-1.0, 0.0]]]).numpy()
    array([[ 0.6, -1. ]], dtype=float32)
    """
    target, behaviors = ops.convert_to_tensor(target), ops.convert_to_tensor(behaviors)
    require_vectors(target, behaviors, target_scales, behaviors_scales)
    similarity = _dot(target, behaviors)
    if target_scales is not None:
        similarity = similarity * ops.expand_dims(ops.cast(target_scales, "float32"), -1)
    if target_scales is not None and behaviors_scales is not None:
        similarity = ops.minimum(similarity, _LARGEST)  # so that the graph optimiser joins no products
    if behaviors_scales is not None:
        similarity = similarity * ops.cast(behaviors_scales, "float32")
    return similarity


def require_vectors(
    target: typing.Any, behaviors: typing.Any, target_scales: typing.Any, behaviors_scales: typing.Any
) -> None:
    """Raises the ValueErrors of `cosine_similarity`, which shapes and dtypes alone decide."""
    checks.require_history(target, behaviors)
    checks.require_scales("target", target, "target_scales", target_scales)
    checks.require_scales("behaviors", behaviors, "behaviors_scales", behaviors_scales)
    for rows in (target, behaviors):
        dim = rows.shape[-1]
        checks.require(
            "int8" not in str(rows.dtype) or dim is None or dim <= MAX_INT8_DIM,
            f"int8 rows must have at most {MAX_INT8_DIM} values, else their dots are not exact.",
            dim,
        )


def _dot(target: typing.Any, behaviors: typing.Any) -> typing.Any:
    """Returns float32 [B, L] of target [B, D] and behaviors [B, L, D], or [C, L] with behaviors [1, L, D]."""
    target = ops.cast(target, "float32")
    if checks.is_shared(target, behaviors):
        return ops.matmul(target, ops.transpose(ops.cast(behaviors[0], "float32")))
    if is_traced_for_xla() and target.shape[-1] is not None:
        return _sliced_dot(target, behaviors)
    behaviors = ops.cast(behaviors, "float32")
    if target.shape[0] is None or behaviors.shape[0] is None:  # one history may turn out to be shared
        dots = ops.matmul(ops.expand_dims(target, 1), ops.transpose(behaviors, (0, 2, 1)))
        return ops.squeeze(dots, axis=1)
    return ops.einsum("bd,bld->bl", target, behaviors)


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
    Raises:
        ValueError: scales of another shape.

    >>> unit_vectors([[3, 4]], [0.2]).numpy()
    array([[0.6, 0.8]], dtype=float32)
    """
    rows, scales = ops.cast(rows, "float32"), ops.cast(scales, "float32")
    checks.require_shape("scales", scales, tuple(rows.shape)[:-1])
    return rows * ops.expand_dims(scales, -1)


class Comparison(typing.NamedTuple):
    """A target and its behaviors, compared: what `SimTierLayer` and `BehaviorSearch` start from."""

    similarity: typing.Any  # float32 [B, L], not clipped
    has_target: typing.Any  # bool [B], True where the target has an embedding; None: all have
    has_embedding: typing.Any  # bool [B, L] or [1, L], True where the behavior has one; None: all have
    present: typing.Any  # bool [B, L] or [1, L], True where a behavior exists; None: not told

    def both_exist(self) -> typing.Any:
        """Returns bool [B, L], True where target and behavior have embeddings."""
        mask = ops.ones_like(self.similarity, dtype="bool")
        if self.has_embedding is not None:
            mask = ops.logical_and(mask, self.has_embedding)
        if self.has_target is not None:
            mask = ops.logical_and(mask, ops.expand_dims(self.has_target, -1))
        return mask


def compare(
    target: typing.Any = None,
    behaviors: typing.Any = None,
    behaviors_mask: typing.Any = None,
    target_mask: typing.Any = None,
    target_scales: typing.Any = None,
    behaviors_scales: typing.Any = None,
    behaviors_present: typing.Any = None,
    similarity: typing.Any = None,
) -> Comparison:
    """Checks and compares what `SimTierLayer` and `BehaviorSearch` are called with.

    Missing is not zero: an embedding is missing where its mask is False, and where its scale is 0.

    Raises:
        ValueError: see `require_inputs`.
    """
    if similarity is None:
        target, behaviors = (None if x is None else ops.convert_to_tensor(x) for x in (target, behaviors))
    else:
        similarity = ops.cast(similarity, "float32")
    pairs = require_inputs(
        target, behaviors, behaviors_mask, target_mask, target_scales, behaviors_scales, behaviors_present, similarity
    )
    if similarity is None:
        similarity = cosine_similarity(target, behaviors, target_scales, behaviors_scales)
    return Comparison(
        similarity=similarity,
        has_target=checks.as_mask("target_mask", target_mask, pairs[0][:1], scales=target_scales),
        has_embedding=checks.as_mask("behaviors_mask", behaviors_mask, *pairs, scales=behaviors_scales),
        present=checks.as_mask("behaviors_present", behaviors_present, *pairs),
    )


def require_inputs(
    target: typing.Any = None,
    behaviors: typing.Any = None,
    behaviors_mask: typing.Any = None,
    target_mask: typing.Any = None,
    target_scales: typing.Any = None,
    behaviors_scales: typing.Any = None,
    behaviors_present: typing.Any = None,
    similarity: typing.Any = None,
) -> list[tuple[int | None, ...]]:
    """Raises a ValueError where shapes and dtypes, also of symbolic tensors, do not fit together.

    Returns:
        The shapes that what is known of each target and behavior may have: [B, L]; also [1, L], where the
        history is shared, or may be.
    """
    if similarity is None:
        given = target is not None and behaviors is not None
        checks.require(given, "Pass `target` and `behaviors`, or `similarity`.", None)
        require_vectors(target, behaviors, target_scales, behaviors_scales)
        pairs: list[tuple[int | None, ...]] = [*checks.pair_shapes(target, behaviors)]
    else:
        vectors = (target, behaviors, target_scales, behaviors_scales)
        names = ("target", "behaviors", "target_scales", "behaviors_scales")
        others = [name for name, value in zip(names, vectors) if value is not None]
        rule = "Pass either `similarity`, or `target` and `behaviors` with their scales, not both."
        checks.require(not others, rule, ["similarity", *others])
        checks.require_rank("similarity", similarity, 2, "[B, L]")
        rows, length = similarity.shape
        pairs = [(rows, length)] if rows == 1 else [(rows, length), (1, length)]
    for name, mask in (("behaviors_mask", behaviors_mask), ("behaviors_present", behaviors_present)):
        if mask is not None:
            checks.require_shape(name, mask, *pairs)
    if target_mask is not None:
        checks.require_shape("target_mask", target_mask, pairs[0][:1])
    return pairs


def verify_similarity(
    similarity: typing.Any,
    mask: typing.Any,
    target: typing.Any = None,
    behaviors: typing.Any = None,
    behaviors_mask: typing.Any = None,
    target_mask: typing.Any = None,
    target_scales: typing.Any = None,
    behaviors_scales: typing.Any = None,
) -> typing.Any:
    """Checks values: similarities are numbers in [-1, 1], vectors times scales have norm 1, scales are no less than 0.

    Args:
        similarity: float32 [B, L]; mask: bool [B, L], True where it counts. The others: as a layer received
            them; what their masks hide is not checked.
    Returns:
        bool [], True where all hold. Where values can be read (eager), a broken rule raises instead.
    Raises:
        ValueError: the first rule that is broken, the first place and the value there.
    """
    rule = "`similarity` must be finite where the mask is True (NaN or infinity in a vector?)."
    holds = [_holds(rule, similarity, ops.logical_not(ops.isfinite(similarity)), mask)]
    if behaviors is None:
        rule = "`similarity` must lie in [-1, 1]: divide a dot product by the norms of its vectors."
        holds.append(_holds(rule, similarity, ops.abs(similarity) > 1.0 + _NORM_TOLERANCE, mask))
        return ops.all(ops.stack(holds))
    of_behaviors = ops.any(mask, axis=0, keepdims=True) if behaviors.shape[0] == 1 else mask
    for name, rows, scales, exists, counts in (
        ("target", target, target_scales, target_mask, ops.any(mask, axis=1)),
        ("behaviors", behaviors, behaviors_scales, behaviors_mask, of_behaviors),
    ):
        rows = ops.cast(rows, "float32")
        norm = ops.sqrt(ops.sum(rows * rows, axis=-1))
        if scales is not None:
            scales = ops.cast(scales, "float32")
            rule = f"`{name}_scales` must be 1 / norm, or 0 where an embedding is missing."
            holds.append(_holds(rule, scales, ops.logical_not(scales >= 0.0), exists))
            norm = norm * scales
        rule = (
            f"`{name}` must have norm 1 (times its scales): normalise it, pass scales = 1 / norm, or mask what is "
            "missing."
        )
        is_unit = ops.abs(norm - 1.0) < _NORM_TOLERANCE
        holds.append(_holds(rule, norm, ops.logical_not(is_unit), counts))
    return ops.all(ops.stack(holds))


def _holds(rule: str, values: typing.Any, broken: typing.Any, mask: typing.Any) -> typing.Any:
    """Returns bool []: broken nowhere under the mask. Raises the ValueError where that can be read now."""
    if mask is not None:
        broken = ops.logical_and(broken, ops.cast(mask, "bool"))
    places = checks.concrete(broken)
    if places is not None and places.any():
        place = np.argwhere(places)[0].tolist()
        value = np.broadcast_to(np.asarray(ops.convert_to_numpy(values)), places.shape)[tuple(place)]
        raise ValueError(f"{rule} Received: {value:.6g} at {place}.")
    return ops.logical_not(ops.any(broken))
