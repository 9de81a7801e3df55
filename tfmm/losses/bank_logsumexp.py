"""log sum exp over the memory bank: the sum under InfoNCE (section 3.3, equation 1)."""

from __future__ import annotations

import typing

import keras
from keras import ops

MASKED_LOGIT = -1e30  # stands for "no negative here"; finite, so that a row without negatives has gradient 0


def bank_logsumexp(
    scaled_queries: typing.Any,
    memory_bank: typing.Any,
    positive_ids: typing.Any = None,
    memory_bank_ids: typing.Any = None,
    memory_bank_mask: typing.Any = None,
) -> typing.Any:
    """Computes log sum exp(q.k / t) over the memory bank, with the [B, K] logits in memory.

    Args:
        scaled_queries: float32 [B, D], query / temperature.
        memory_bank: float [K, D]; no gradient reaches it.
        positive_ids: optional int [B]; a slot with the same id is left out of that row.
        memory_bank_ids: int [K], beside `positive_ids`.
        memory_bank_mask: optional bool [K], True where the slot counts.
    Returns:
        float32 [B]; about -1e30 where nothing counts.
    """
    memory_bank = ops.stop_gradient(ops.convert_to_tensor(memory_bank))
    dtype = gemm_dtype(memory_bank)
    logits = ops.matmul(ops.cast(scaled_queries, dtype), ops.transpose(ops.cast(memory_bank, dtype)))
    logits = ops.cast(logits, "float32")
    if memory_bank_mask is not None:
        logits = ops.where(ops.cast(memory_bank_mask, "bool")[None, :], logits, MASKED_LOGIT)
    if positive_ids is not None:
        logits = ops.where(same_id(positive_ids, memory_bank_ids), MASKED_LOGIT, logits)
    return ops.logsumexp(logits, axis=-1)


def gemm_dtype(memory_bank: typing.Any) -> str:
    """Returns the type in which the bank is multiplied: its own where it is a 16-bit float, else float32."""
    dtype = keras.backend.standardize_dtype(memory_bank.dtype)
    return dtype if dtype in ("bfloat16", "float16") else "float32"


def same_id(row_ids: typing.Any, column_ids: typing.Any) -> typing.Any:
    """Returns bool [B, K], True where the ids int [B] and int [K] are equal."""
    return ops.equal(ops.convert_to_tensor(row_ids)[:, None], ops.convert_to_tensor(column_ids)[None, :])
