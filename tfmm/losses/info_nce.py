"""InfoNCE over a memory bank (section 3.3, equation 1), with a learnable temperature."""

from __future__ import annotations

import inspect
import math
import typing

import keras
from keras import ops

from tfmm.layers.checks import id_dtype, require_ids_fit, shapes_agree
from tfmm.losses import checks
from tfmm.losses.bank_logsumexp import MASKED_LOGIT, bank_logsumexp, same_id

CHUNK_SIZE = 768  # slots of the bank per streamed chunk: 3.1 MB of logits at B = 1,024


def info_nce(
    queries: typing.Any,
    positives: typing.Any,
    memory_bank: typing.Any = None,
    *,
    temperature: typing.Any,
    in_batch_negatives: bool = False,
    positive_ids: typing.Any = None,
    memory_bank_ids: typing.Any = None,
    memory_bank_mask: typing.Any = None,
    batch_positives: typing.Any = None,
    batch_ids: typing.Any = None,
    chunk_size: int | None = CHUNK_SIZE,
    gemm_dtype: str = "float32",
) -> typing.Any:
    """Computes the InfoNCE loss of each query against its positive and the memory bank (equation 1).

    loss = -log(exp(q.k+ / t) / (exp(q.k+ / t) + sum over negatives of exp(q.k / t))), t the temperature: with
    K negatives of equal logits it is log(1 + K). Gradients reach `queries`, `positives` and `temperature`;
    wrap `positives` in `ops.stop_gradient` where a momentum encoder made them. The bank gets no gradient.

    Differs from the paper: equation 1 as printed puts the temperature outside exp, where it cancels; here it
    divides the dot product, as in the InfoNCE and MoCo papers that it cites. In-batch negatives beside the
    bank and the masking of false negatives by id are options of ours, off by default; a slot of the bank that
    was never filled can be masked.

    Args:
        queries: float [B, D], L2-normalized.
        positives: float [B, D], L2-normalized; row i is the positive of query i.
        memory_bank: float [K, D], L2-normalized negatives, K >= 1; None leaves the in-batch negatives alone.
            Kept in bfloat16 or float16 it takes half the memory.
        temperature: positive float, or float scalar tensor that can be learned (its sign is read where it can be:
            in an eager call).
        in_batch_negatives: True adds the positives of the other queries to the negatives; a row without any, as in
            a batch of one whose size is not static, has loss 0.
        positive_ids: optional integers [B], item id of each positive: negatives with the same id are left out.
            Signed and unsigned 64-bit ids compare bit for bit.
        memory_bank_ids: integers [K], item id of each slot; needed beside a bank where `positive_ids` is given.
        memory_bank_mask: optional bool [K], True where the slot is filled.
        batch_positives: optional float [G, D], the positives of a whole batch of which these rows are a part, theirs
            among them: the in-batch negatives, where several devices share a batch. Gradients reach them.
        batch_ids: integers [G], their item ids, beside `batch_positives` and `positive_ids`: a row's own positive is
            told by its id.
        chunk_size: a larger bank is streamed in chunks of so many slots: the [B, K] logits never exist, and
            the backward pass needs no further pass over the bank. None keeps the logits in memory.
        gemm_dtype: "float32", or "bfloat16" to multiply with the bank in that type, where the hardware is
            faster in it: a cosine is then right to about 2^-9. Sums and exponentials stay float32.
    Returns:
        float32 [B], at least 0; 0 where every negative is masked.
    Raises:
        ValueError: no negatives at all (K = 0), temperature <= 0, ranks, sizes or dims that do not fit, ids without
            a counterpart or that are no integers.

    >>> import numpy as np
    >>> query = np.array([[1.0, 0.0]])
    >>> bank = np.array([[0.0, 1.0], [0.0, -1.0], [0.0, 1.0]])           # orthogonal: q.k = 0
    >>> loss = info_nce(query, query, bank, temperature=0.5)             # -log(e^2 / (e^2 + 3))
    >>> bool(abs(float(loss[0]) - np.log(1 + 3 * np.exp(-2))) < 1e-6)
    True
    """
    queries, positives = ops.convert_to_tensor(queries), ops.convert_to_tensor(positives)
    memory_bank = None if memory_bank is None else ops.convert_to_tensor(memory_bank)
    positive_ids = checks.item_ids("positive_ids", positive_ids)
    memory_bank_ids = checks.item_ids("memory_bank_ids", memory_bank_ids)
    memory_bank_mask = None if memory_bank_mask is None else ops.cast(memory_bank_mask, "bool")
    batch = _Batch(batch_positives, checks.item_ids("batch_ids", batch_ids))
    masks = (positive_ids, memory_bank_ids, memory_bank_mask)
    checks.require_gemm(chunk_size, gemm_dtype)
    checks.require_positive("temperature", temperature)
    _require_shapes(queries, positives, memory_bank, in_batch_negatives, *masks, *batch)
    positives = ops.cast(positives, "float32")
    # One scalar division: the gradient of a division of [B, D] would hold three more of them.
    scaled = ops.cast(queries, "float32") * (1.0 / ops.cast(temperature, "float32"))  # [B, D]
    positive_logit = ops.sum(scaled * positives, axis=-1)  # [B]
    negatives = []
    if memory_bank is not None:
        negatives.append(bank_logsumexp(scaled, memory_bank, *masks, chunk_size=chunk_size, gemm_dtype=gemm_dtype))
    if in_batch_negatives:
        negatives.append(_in_batch_logsumexp(scaled, positives, positive_ids, batch))
    negative_logit = ops.logsumexp(ops.stack(negatives), axis=0)  # logaddexp has a wrong gradient at a tie
    return ops.softplus(negative_logit - positive_logit)


class _Batch(typing.NamedTuple):
    """The positives of a whole batch, float [G, D], and their ids [G]; None of both: the rows are the batch."""

    positives: typing.Any
    ids: typing.Any


def _in_batch_logsumexp(
    scaled: typing.Any, positives: typing.Any, positive_ids: typing.Any, batch: _Batch
) -> typing.Any:
    if batch.positives is not None:
        logits = ops.matmul(scaled, ops.transpose(ops.cast(batch.positives, "float32")))  # [B, G]
        return ops.logsumexp(ops.where(same_id(positive_ids, batch.ids), MASKED_LOGIT, logits), axis=-1)
    logits = ops.matmul(scaled, ops.transpose(positives))  # [B, B]
    rows = ops.arange(ops.shape(logits)[0])
    excluded = same_id(rows, rows)
    if positive_ids is not None:
        excluded = ops.logical_or(excluded, same_id(positive_ids, positive_ids))
    return ops.logsumexp(ops.where(excluded, MASKED_LOGIT, logits), axis=-1)


def _require_shapes(
    queries: typing.Any,
    positives: typing.Any,
    memory_bank: typing.Any,
    in_batch_negatives: bool,
    positive_ids: typing.Any = None,
    memory_bank_ids: typing.Any = None,
    memory_bank_mask: typing.Any = None,
    batch_positives: typing.Any = None,
    batch_ids: typing.Any = None,
) -> None:
    """Raises the ValueErrors of `info_nce` that shapes alone decide."""
    checks.require_pairs(queries=queries, positives=positives)
    batch = queries.shape[0]
    if (batch_positives is None) != (batch_ids is None):
        raise ValueError(
            "A row finds its own positive in `batch_positives` [G, D] by `batch_ids` [G]. Received: only one of them. "
            "Pass both, or neither."
        )
    if batch_positives is not None:
        if not in_batch_negatives or positive_ids is None:
            raise ValueError(
                "`batch_positives` are the in-batch negatives, told apart by id. Received: "
                f"in_batch_negatives={in_batch_negatives}, `positive_ids` {'' if positive_ids is None else 'not '}"
                "None. Set `in_batch_negatives=True` and pass `positive_ids`, or leave them out."
            )
        if len(batch_positives.shape) != 2 or not shapes_agree(queries.shape[1:], batch_positives.shape[1:]):
            raise ValueError(
                f"`batch_positives` must be [G, D] with the D of `queries`, {queries.shape[1]}. Received: "
                f"{tuple(batch_positives.shape)}."
            )
        checks.require_rows("batch_ids", batch_ids, "batch_positives", batch_positives.shape[0])
    checks.require_rows("positive_ids", positive_ids, "queries", batch)
    if memory_bank is not None:
        checks.require_bank(tuple(queries.shape), memory_bank)
        if (positive_ids is None) != (memory_bank_ids is None):
            raise ValueError(
                "False negatives are masked by comparing `positive_ids` [B] with `memory_bank_ids` [K]. "
                "Received: only one of them. Pass both, or neither."
            )
        checks.require_rows("memory_bank_ids", memory_bank_ids, "memory_bank", memory_bank.shape[0])
        checks.require_rows("memory_bank_mask", memory_bank_mask, "memory_bank", memory_bank.shape[0])
    elif memory_bank_ids is not None or memory_bank_mask is not None:
        raise ValueError(
            "`memory_bank_ids` and `memory_bank_mask` describe a `memory_bank`. Received: none. "
            "Pass the bank too, or leave them out."
        )
    elif not in_batch_negatives or (batch if batch_positives is None else batch_positives.shape[0]) == 1:
        raise ValueError(
            "InfoNCE needs at least one negative (K >= 1). Received: no `memory_bank`, "
            f"`in_batch_negatives={in_batch_negatives}` and a batch of {batch}. Pass a memory bank, or set "
            "`in_batch_negatives=True` and drop batches of one row."
        )


@keras.saving.register_keras_serializable("tfmm")
class LogTemperatureRange(keras.constraints.Constraint):
    """Keeps a log temperature inside [log(min), log(max)] after each step; the gradient is left alone."""

    def __init__(self, min_temperature: float, max_temperature: float) -> None:
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature

    def __call__(self, value):
        return ops.clip(value, math.log(self.min_temperature), math.log(self.max_temperature))

    def get_config(self) -> dict[str, typing.Any]:
        return {"min_temperature": self.min_temperature, "max_temperature": self.max_temperature}


@keras.saving.register_keras_serializable("tfmm")
class InfoNCE(keras.layers.Layer):
    """Averages the InfoNCE loss of a batch and owns the learnable temperature (equation 1).

    The temperature is learned through its logarithm and kept in [`min_temperature`, `max_temperature`] by a
    constraint that the optimizer applies. Leave the weight `log_temperature` out of weight decay.

    Args:
        temperature: where the learning starts; positive.
        learnable: False freezes it.
        in_batch_negatives: True adds the positives of the other queries to the negatives.
        min_temperature: 0.01 as in CLIP.
        max_temperature: 1 by default.
        chunk_size: a larger memory bank is streamed in chunks of so many slots; None keeps the logits.
        gemm_dtype: "float32", or "bfloat16" where the hardware is faster in it.
        check: True refuses NaN and vectors that are not of length 1 (to 1e-3). It reads the values, so it
            works in eager steps only (a compiled one raises), and it costs one pass over the bank.

    Call with `queries`, `positives` float [B, D], and as wanted `memory_bank` float [K, D], `positive_ids`
    int [B], `memory_bank_ids` int [K], `memory_bank_mask` bool [K], `batch_positives` float [G, D], `batch_ids` int
    [G], as in `info_nce`. Returns a float32 scalar.

    Raises:
        ValueError: a temperature that is not positive or outside its range, an unknown `gemm_dtype`; when called,
            what `info_nce` refuses, and with `check` vectors that are not of length 1.

    >>> layer, vectors = InfoNCE(temperature=0.5, in_batch_negatives=True), ops.eye(3)
    >>> round(float(layer(vectors, vectors)), 4)                         # log(1 + 2 e^-2): two orthogonal negatives
    0.2395
    """

    def __init__(
        self,
        temperature: float = 0.07,
        learnable: bool = True,
        in_batch_negatives: bool = False,
        min_temperature: float = 0.01,
        max_temperature: float = 1.0,
        chunk_size: int | None = CHUNK_SIZE,
        gemm_dtype: str = "float32",
        check: bool = False,
        **kwargs: typing.Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        for name, value in (
            ("temperature", temperature),
            ("min_temperature", min_temperature),
            ("max_temperature", max_temperature),
        ):
            checks.require_positive(name, value)
        checks.require_gemm(chunk_size, gemm_dtype)
        if not min_temperature <= temperature <= max_temperature:
            raise ValueError(
                f"`temperature` must lie in [`min_temperature`, `max_temperature`] = "
                f"[{min_temperature}, {max_temperature}]. Received: {temperature}. Widen the range."
            )
        self.temperature = temperature
        self.learnable = learnable
        self.in_batch_negatives = in_batch_negatives
        self.min_temperature = min_temperature
        self.max_temperature = max_temperature
        self.chunk_size = chunk_size
        self.gemm_dtype = gemm_dtype
        self.check = check

    def build(
        self,
        queries_shape,
        positives_shape=None,
        memory_bank_shape=None,
        positive_ids_shape=None,
        memory_bank_ids_shape=None,
        memory_bank_mask_shape=None,
        batch_positives_shape=None,
        batch_ids_shape=None,
    ) -> None:
        self.log_temperature = self.add_weight(
            name="log_temperature",
            shape=(),
            dtype="float32",
            autocast=False,
            trainable=self.learnable,
            initializer=keras.initializers.Constant(math.log(self.temperature)),
            constraint=LogTemperatureRange(self.min_temperature, self.max_temperature),
        )
        self.built = True

    def __call__(self, *args, **kwargs):
        if id_dtype() == "int32":  # Keras converts the arguments before `call`, and cuts 64-bit ids while it does
            given = inspect.signature(self.call).bind_partial(*args, **kwargs).arguments
            for name in ("positive_ids", "memory_bank_ids", "batch_ids"):
                require_ids_fit(name, given.get(name))
        return super().__call__(*args, **kwargs)

    def call(
        self,
        queries,
        positives,
        memory_bank=None,
        positive_ids=None,
        memory_bank_ids=None,
        memory_bank_mask=None,
        batch_positives=None,
        batch_ids=None,
    ):
        if self.check:
            checks.require_unit_vectors("queries", queries)
            checks.require_unit_vectors("positives", positives)
            checks.require_unit_vectors("memory_bank", memory_bank, memory_bank_mask)
            checks.require_unit_vectors("batch_positives", batch_positives)
        losses = info_nce(
            queries,
            positives,
            memory_bank,
            temperature=ops.exp(self.log_temperature),
            in_batch_negatives=self.in_batch_negatives,
            positive_ids=positive_ids,
            memory_bank_ids=memory_bank_ids,
            memory_bank_mask=memory_bank_mask,
            batch_positives=batch_positives,
            batch_ids=batch_ids,
            chunk_size=self.chunk_size,
            gemm_dtype=self.gemm_dtype,
        )
        return ops.mean(losses)

    def compute_output_shape(
        self,
        queries_shape,
        positives_shape=None,
        memory_bank_shape=None,
        positive_ids_shape=None,
        memory_bank_ids_shape=None,
        memory_bank_mask_shape=None,
        batch_positives_shape=None,
        batch_ids_shape=None,
    ):
        return ()

    def compute_output_spec(self, queries, positives, memory_bank=None, **masks):
        _require_shapes(queries, positives, memory_bank, self.in_batch_negatives, **masks)
        return keras.KerasTensor((), dtype="float32")  # whatever the policy

    def get_config(self) -> dict[str, typing.Any]:
        names = (
            "temperature",
            "learnable",
            "in_batch_negatives",
            "min_temperature",
            "max_temperature",
            "chunk_size",
            "gemm_dtype",
            "check",
        )
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
