"""Checks of what a caller hands to a layer: ranks and dims at trace time, values where they can be read."""

from __future__ import annotations

import typing

import keras
import numpy as np
from keras import ops


def require(holds: bool, rule: str, received: object) -> None:
    """Raises a ValueError that names the rule and the value where `holds` is False."""
    if not holds:
        plain = received.item() if isinstance(received, np.generic) else received
        raise ValueError(f"{rule} Received: {plain!r}.")


def require_int(name: str, value: typing.Any, minimum: int = 1) -> int:
    """Returns `value` as a Python int; raises a ValueError unless it is a whole number of at least `minimum`."""
    is_int = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_int or value < minimum:
        raise ValueError(f"`{name}` must be an int of at least {minimum}. Received: {value!r}.")
    return int(value)


def require_ints(name: str, values: typing.Any, minimum: int = 1) -> tuple[int, ...]:
    """Returns `values` as a tuple of Python ints; raises a ValueError unless it is a sequence of such."""
    if not isinstance(values, (list, tuple, np.ndarray)):
        raise ValueError(f"`{name}` must be a sequence of ints. Received: {values!r}.")
    return tuple(require_int(name, value, minimum) for value in values)


def require_bool(name: str, value: typing.Any) -> bool:
    """Returns `value` as a Python bool; raises a ValueError unless it is one, so that "no" is not taken for True."""
    if not isinstance(value, (bool, np.bool_)):
        raise ValueError(f"`{name}` must be True or False. Received: {value!r}.")
    return bool(value)


def require_number(name: str, value: typing.Any) -> float:
    """Returns `value` as a Python float; raises a ValueError unless it is an int or a float."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise ValueError(f"`{name}` must be a number. Received: {value!r}.")
    return float(value)


def require_rank(name: str, tensor: typing.Any, rank: int, axes: str) -> None:
    """Raises a ValueError unless `tensor` has `rank` axes; `axes` shows them, such as "[B, L, D]"."""
    shape = tuple(tensor.shape)
    require(len(shape) == rank, f"`{name}` must have {rank} axes {axes}.", shape)


def require_same_dim(name: str, size: int | None, other_name: str, other_size: int | None) -> None:
    """Raises a ValueError where two static sizes are known and differ."""
    if size is not None and other_size is not None and size != other_size:
        raise ValueError(
            f"`{name}` must have as many values per vector as `{other_name}` ({other_size}). "
            f"Received: {size}. Embed both with the same encoder."
        )


def require_history(target: typing.Any, behaviors: typing.Any) -> None:
    """Raises a ValueError unless target [B, D] and behaviors [B, L, D] agree, or [C, D] and [1, L, D].

    Only sizes that are known are compared.
    """
    require_rank("target", target, 2, "[B, D]")
    require_rank("behaviors", behaviors, 3, "[B, L, D]")
    require_same_dim("target", target.shape[-1], "behaviors", behaviors.shape[-1])
    rows, histories = target.shape[0], behaviors.shape[0]
    require(
        rows is None or histories is None or histories in (1, rows),
        f"`behaviors` must hold one history per target, {rows}, or one that all targets share.",
        tuple(behaviors.shape),
    )


def is_shared(target: typing.Any, behaviors: typing.Any) -> bool:
    """Returns True where several targets [C, D] share one history [1, L, D]."""
    return behaviors.shape[0] == 1 and target.shape[0] != 1


def concrete(tensor: typing.Any) -> np.ndarray | None:
    """Returns a tensor's values where they can be read now (eager), else None (inside a graph)."""
    if isinstance(tensor, keras.KerasTensor):
        return None
    try:
        return np.asarray(ops.convert_to_numpy(tensor))
    except Exception:  # each backend has its own error for a traced tensor
        return None


def shapes_agree(left: typing.Sequence[int | None], right: typing.Sequence[int | None]) -> bool:
    """Returns True where two static shapes may be one; None agrees with any size."""
    return len(left) == len(right) and all(a is None or b is None or a == b for a, b in zip(left, right))


def require_shape(name: str, tensor: typing.Any, *shapes: typing.Sequence[int | None]) -> None:
    """Raises a ValueError unless a static shape agrees with one of `shapes`; None agrees with any size."""
    received = np.shape(tensor) if isinstance(tensor, (list, tuple)) else tuple(tensor.shape)
    agrees = any(shapes_agree(received, shape) for shape in shapes)
    expected = " or ".join(str(tuple(shape)) for shape in shapes)
    require(agrees, f"`{name}` must have the shape {expected}.", received)


def as_mask(
    name: str, mask: typing.Any, *shapes: typing.Sequence[int | None], scales: typing.Any = None
) -> typing.Any:
    """Returns a mask as a bool tensor, None as None; where `scales` are given, a scale of 0 hides as well.

    Raises:
        ValueError: the mask has none of `shapes`.
    """
    if mask is not None:
        require_shape(name, mask, *shapes)
        mask = ops.cast(np.array(mask) if isinstance(mask, (list, tuple)) else mask, "bool")
    if scales is None:
        return mask
    has_vector = ops.cast(scales, "float32") > 0.0
    return has_vector if mask is None else ops.logical_and(mask, has_vector)


def pair_shapes(target: typing.Any, behaviors: typing.Any) -> list[tuple[int | None, int | None]]:
    """Returns the shapes of what is known per target and behavior: [B, L], and [1, L] with a shared history."""
    rows, length = target.shape[0], behaviors.shape[1]
    return [(rows, length), (1, length)] if is_shared(target, behaviors) else [(rows, length)]


def require_scales(name: str, rows: typing.Any, scales_name: str, scales: typing.Any) -> None:
    """Raises a ValueError unless there is one scale per int8 or float vector, or none and the vectors are float."""
    if scales is not None:
        dtype = keras.backend.standardize_dtype(rows.dtype)
        require(dtype == "int8" or "float" in dtype, f"`{name}` with `{scales_name}` must be int8 or float.", dtype)
        require_shape(scales_name, scales, tuple(rows.shape)[:-1])
    else:
        require_float(name, rows, f"int8 `{name}` need `{scales_name}` (1 / norm of each row).")


def require_float(name: str, tensor: typing.Any, way_out: str) -> None:
    """Raises a ValueError unless a tensor holds floats."""
    dtype = keras.backend.standardize_dtype(tensor.dtype)
    require("float" in dtype, f"`{name}` must be float; {way_out}", dtype)


def require_activation(name: str, value: typing.Any, others: typing.Sequence[str | None] = ()) -> None:
    """Raises a ValueError unless `value` is one of `others` or the name of a Keras activation."""
    try:  # the only way to ask: Keras publishes no list of names
        is_known = value in others or (isinstance(value, str) and callable(keras.activations.get(value)))
    except ValueError:
        is_known = False
    rule = f"`{name}` must be the name of a Keras activation, such as 'relu' or 'sigmoid'"
    require(is_known, f"{rule}, or one of {tuple(others)}." if others else f"{rule}.", value)


def id_dtype() -> str:
    """Returns the type of item ids in tensors: int64, or int32 where JAX runs without 64-bit types."""
    if keras.backend.backend() != "jax":
        return "int64"
    return str(keras.backend.standardize_dtype(ops.convert_to_tensor(np.zeros(1, np.int64)).dtype))


def require_ids_fit(name: str, ids: typing.Any) -> None:
    """Raises a ValueError where integers of the host do not fit `id_dtype`, to which JAX would cut them."""
    if not isinstance(ids, (np.ndarray, np.integer)) or ids.dtype.kind not in "iu" or ids.size == 0:
        return
    least, most, limits = int(ids.min()), int(ids.max()), np.iinfo(id_dtype())
    on_jax = "32 bits on JAX; set JAX_ENABLE_X64=1 before the import, or number the items."
    rule = f"`{name}` must fit {on_jax if limits.bits == 32 else 'int64.'}"
    require(limits.min <= least and most <= limits.max, rule, (least, most))
