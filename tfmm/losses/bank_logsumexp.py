"""log sum exp over the memory bank: the sum under InfoNCE (section 3.3, equation 1), dense and streaming."""

from __future__ import annotations

import functools
import typing

from keras import ops

MASKED_LOGIT = -1e30  # stands for "no negative here"; finite, so that a row without negatives has gradient 0
SAFE_EXPONENT = 40.0  # exp(-40), and the sum of any number of exp(40), are normal float32 numbers
SMALLEST_SUM, LARGEST_SUM = 1e-18, 1e30  # between them no summand that matters has left float32's range


def bank_logsumexp(
    scaled_queries: typing.Any,
    memory_bank: typing.Any,
    positive_ids: typing.Any = None,
    memory_bank_ids: typing.Any = None,
    memory_bank_mask: typing.Any = None,
    *,
    chunk_size: int | None = None,
    gemm_dtype: str = "float32",
) -> typing.Any:
    """Computes log sum exp(q.k / t) over the memory bank.

    With a `chunk_size` below K it streams: the bank is read once, chunk by chunk, and the [B, K] logits never
    exist. What the backward pass needs, the mean of the bank under the softmax, [B, D], is summed in the same
    pass, so that backward costs no matrix product. Equal to the dense form up to float32 rounding. Costs 4 B K D
    FLOP and B K exponentials; memory is a few [B, D] and one [B, chunk_size]. Where |query / temperature| reaches 40
    the loop keeps a running maximum, which costs two more passes over each chunk; vectors far longer than 1, and
    rows of which all slots are masked, take a second loop with it.

    Args:
        scaled_queries: float32 [B, D], query / temperature.
        memory_bank: float [K, D]; no gradient reaches it. K need not be static.
        positive_ids: optional int64 [B]; a slot with the same id is left out of that row.
        memory_bank_ids: int64 [K], beside `positive_ids`.
        memory_bank_mask: optional bool [K], True where the slot counts; what a masked slot holds has no
            effect.
        chunk_size: slots per chunk; None, or at least K, keeps the logits in memory.
        gemm_dtype: the type of the two matrix products' inputs; sums and exponentials are float32.
    Returns:
        float32 [B]; -1e30 or less where nothing counts, NaN where the bank turns out to have no slot.
    """
    memory_bank = ops.stop_gradient(ops.convert_to_tensor(memory_bank))
    bank = _Bank(memory_bank, positive_ids, memory_bank_ids, memory_bank_mask, gemm_dtype)
    is_static = memory_bank.shape[0] is not None
    if chunk_size is None or (is_static and memory_bank.shape[0] <= chunk_size):
        queries = ops.cast(scaled_queries, gemm_dtype)
        value = ops.logsumexp(bank.logits(queries, *bank.read(0, None)), axis=-1)
    else:
        value = _stream(scaled_queries, bank, chunk_size)
    return value if is_static else ops.where(bank.size == 0, float("nan"), value)


def same_id(row_ids: typing.Any, column_ids: typing.Any) -> typing.Any:
    """Returns bool [B, K], True where the ids int [B] and int [K] are equal."""
    return ops.equal(ops.convert_to_tensor(row_ids)[:, None], ops.convert_to_tensor(column_ids)[None, :])


class _Bank:
    """The bank with its masks, readable by chunk."""

    def __init__(self, rows, positive_ids, ids, mask, gemm_dtype) -> None:
        self.rows = rows
        self.size = ops.shape(rows)[0]  # an int where it is static
        self.positive_ids = positive_ids
        self.ids = None if ids is None else ops.convert_to_tensor(ids)
        self.mask = None if mask is None else ops.cast(mask, "bool")
        self.gemm_dtype = gemm_dtype

    def read(self, start, length):
        """Returns rows [length, D] in the product's type, bool [length] (None: all count) and ids or None."""
        rows, counts, ids = (
            column if column is None or length is None else _slice(column, start, length)
            for column in (self.rows, self.mask, self.ids)
        )
        rows = ops.cast(rows, self.gemm_dtype)
        if counts is not None:
            rows = ops.where(counts[:, None], rows, ops.zeros_like(rows))
        return rows, counts, ids

    def logits(self, queries, rows, counts, ids):
        """Returns float32 [B, length], -1e30 where a slot does not count for a query of the product's type."""
        logits = ops.cast(ops.matmul(queries, ops.transpose(rows)), "float32")
        if counts is not None:
            logits = ops.where(counts[None, :], logits, MASKED_LOGIT)
        if ids is not None:
            logits = ops.where(same_id(self.positive_ids, ids), MASKED_LOGIT, logits)
        return logits


def _slice(column, start, length):
    first = [start] + [0] * (len(column.shape) - 1)
    return ops.slice(column, first, (length, *column.shape[1:]))


def _stream(scaled_queries, bank: _Bank, chunk_size: int):
    queries = ops.stop_gradient(scaled_queries)
    sums = {running: functools.partial(_sum_chunks, queries, bank, chunk_size, running) for running in (False, True)}
    # |q.k| <= |q| for unit vectors: below this bound float32 needs no maximum to be taken off.
    longest = ops.sqrt(ops.max(ops.sum(ops.square(queries), axis=-1)))
    column = ops.zeros_like(queries[:, :1])
    nothing = (column, column, ops.zeros_like(queries))
    state = ops.cond(longest < SAFE_EXPONENT, sums[False], lambda: nothing)
    # Nothing summed yet, or a bank of longer vectors: what left float32's range is summed again.
    fits = ops.all(ops.logical_and(state[1] > SMALLEST_SUM, state[1] < LARGEST_SUM))
    shift, total, weighted = ops.cond(fits, lambda: state, sums[True])
    is_empty = total == 0
    divisor = ops.where(is_empty, 1.0, total)
    value = ops.where(is_empty, MASKED_LOGIT, shift + ops.log(divisor))[:, 0]
    # The second term is 0 and carries the gradient, so that nothing is differentiated through the loop.
    return value + ops.sum((scaled_queries - queries) * (weighted / divisor), axis=-1)


def _sum_chunks(queries, bank: _Bank, chunk_size: int, running: bool):
    """Sums exp(logit - shift) over the bank, and the rows weighted by it; shift: a running maximum, or 0.

    Returns:
        shift and sum float32 [B, 1], weighted rows float32 [B, D].
    """
    factor = ops.cast(queries, bank.gemm_dtype)  # once: a cast inside the loop keeps one more [B, chunk] in memory

    def add(state, start, length):
        shift, total, weighted = state
        # This adds 0, for NaN too; it holds the chunk back until both sums of the one before are made, else
        # TensorFlow runs up to ten ahead, each with logits of its own in memory.
        start = start + ops.cast(ops.abs(total[0, 0] + weighted[0, 0]) < 0.0, "int32")
        rows, counts, ids = bank.read(start, length)
        weights = bank.logits(factor, rows, counts, ids)
        if running:
            new_shift = ops.maximum(shift, ops.max(weights, axis=-1, keepdims=True))
            scale = ops.exp(shift - new_shift)
            shift, total, weighted = new_shift, total * scale, weighted * scale
            weights = weights - shift
        weights = ops.exp(weights)
        total = total + ops.sum(weights, axis=-1, keepdims=True)
        weighted = weighted + ops.cast(ops.matmul(ops.cast(weights, bank.gemm_dtype), rows), "float32")
        return shift, total, weighted

    zeros = ops.zeros_like(queries[:, :1])
    state = (zeros + MASKED_LOGIT if running else zeros, zeros, ops.zeros_like(queries))
    if not isinstance(bank.size, int):  # XLA compiles the loop also where the bank is smaller than a chunk
        chunk_size = ops.minimum(bank.size, chunk_size)
        num_chunks = bank.size // ops.maximum(chunk_size, 1)
    else:
        num_chunks = bank.size // chunk_size
    rest = bank.size - num_chunks * chunk_size
    state = ops.fori_loop(0, num_chunks, lambda i, state: add(state, i * chunk_size, chunk_size), state)
    if isinstance(rest, int) and rest == 0:
        return state
    return add(state, num_chunks * chunk_size, rest)
