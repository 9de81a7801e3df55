"""Checks of what a caller hands to a loss: shapes at trace time, values where they can be read."""

from __future__ import annotations

import math
import typing

import keras
import numpy as np
from keras import ops

from tfmm.layers.checks import concrete, id_dtype, require, require_ids_fit, require_int, shapes_agree

UNIT_TOLERANCE = 1e-3


def require_positive(name: str, value: typing.Any) -> None:
    """Refuses what is not one positive finite number; inside a compiled graph only its shape can be read."""
    require(not isinstance(value, (str, bool)) and value is not None, f"`{name}` must be a positive number.", value)
    shape = tuple(value.shape) if hasattr(value, "shape") else ()
    require(shape == (), f"`{name}` must be one number, of shape ().", shape)
    number = value if isinstance(value, (int, float)) else concrete(ops.convert_to_tensor(value))
    if number is not None and not (float(number) > 0.0 and math.isfinite(float(number))):
        raise ValueError(
            f"`{name}` must be a positive number. Received: {float(number)!r}. Learn its logarithm and "
            "pass the exponential to keep it positive."
        )


def require_gemm(chunk_size: int | None, gemm_dtype: str) -> None:
    """Refuses a chunk of no slots, and a type that the streamed sum does not hold."""
    if chunk_size is not None:
        require_int("chunk_size", chunk_size)
    if gemm_dtype not in ("float32", "bfloat16"):  # float16 ends at 65,504, and exp(cosine / temperature) does not
        raise ValueError(f"`gemm_dtype` must be float32 or bfloat16. Received: {gemm_dtype!r}.")


def require_pairs(**tensors: typing.Any) -> None:
    """Refuses tensors that are not all [B, D] with one B and one D."""
    shapes = [tuple(tensor.shape) for tensor in tensors.values()]
    if any(len(shape) != 2 for shape in shapes) or any(not shapes_agree(shapes[0], shape) for shape in shapes[1:]):
        names, received = (_and([*map(str, each)]) for each in ([f"`{name}`" for name in tensors], shapes))
        raise ValueError(f"{names} must all be [B, D], one row of each per query. Received: {received}.")


def require_rows(name: str, column: typing.Any, of: str, size: int | None) -> None:
    """Refuses a column that is not [size], one value per row of `of`."""
    if column is not None and not shapes_agree(tuple(column.shape), (size,)):
        raise ValueError(
            f"`{name}` must be [{size}], one value per row of `{of}`. Received: {tuple(column.shape)}."
        )


def require_bank(query_shape: tuple, memory_bank: typing.Any) -> None:
    """Refuses a memory bank that is not [K, D] with K >= 1 and the D of the queries."""
    shape = tuple(memory_bank.shape)
    if len(shape) != 2 or not shapes_agree(query_shape[1:], shape[1:]):
        raise ValueError(
            f"`memory_bank` must be [K, D] with the D of `queries`, {query_shape[1]}. Received: {shape}."
        )
    if shape[0] == 0:
        raise ValueError(
            "`memory_bank` must hold at least one slot (K >= 1). Received: K = 0. Pass None and set "
            "`in_batch_negatives=True` to train without a bank."
        )


def require_unit_vectors(name: str, vectors: typing.Any, mask: typing.Any = None) -> None:
    """Refuses NaN and rows whose length is not 1 to 1e-3.

    Args:
        name: how the error calls the argument.
        vectors: float [n, D], or None.
        mask: optional bool [n], True where the row counts.
    Raises:
        ValueError: a row that is not a unit vector, or values that cannot be read (inside a compiled step).
    """
    if vectors is None or isinstance(vectors, keras.KerasTensor):
        return
    values = concrete(ops.cast(vectors, "float32"))
    counts = None if mask is None else concrete(ops.cast(mask, "bool"))
    if values is None or (mask is not None and counts is None):
        raise ValueError(
            f"`check=True` reads the values of `{name}`, which a compiled step does not have. Received: a symbolic "
            "tensor. Check one eager call, or `compile(run_eagerly=True)`, and train with `check=False`."
        )
    norms = np.linalg.norm(values, axis=-1)
    wrong = ~(np.abs(norms - 1.0) <= UNIT_TOLERANCE)
    if counts is not None:
        wrong &= counts
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"`{name}` must be L2-normalized: every row of length 1. Received: row {row} of length "
            f"{norms[row]}. Divide each row by its length, and leave zero and NaN rows out."
        )


def item_ids(name: str, ids: typing.Any) -> typing.Any:
    """Returns ids as one type, so that two columns compare bit for bit.

    Args:
        name: how the error calls the argument.
        ids: integers [n], signed or not.
    Returns:
        int64 [n]; on JAX without 64 bits int32 [n].
    Raises:
        ValueError: ids that are no integers, or that JAX would cut to 32 bits.
    """
    if ids is None:
        return None
    kind = keras.backend.standardize_dtype(ids.dtype) if hasattr(ids, "dtype") else np.asarray(ids).dtype.name
    require("int" in kind, f"`{name}` must be integers (64-bit fingerprints of strings).", kind)
    if isinstance(ids, (list, tuple, np.ndarray)):
        ids = np.asarray(ids)
        ids = ids.view(np.int64) if ids.dtype == np.uint64 else ids.astype(np.int64)
    require_ids_fit(name, ids)
    return ops.cast(ids, id_dtype())


def _and(words: list[str]) -> str:
    return f"{', '.join(words[:-1])} and {words[-1]}"
