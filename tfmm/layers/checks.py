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


def require_mask(name: str, mask: typing.Any, shape: tuple[int | None, ...]) -> None:
    """Raises a ValueError unless a mask's static shape agrees with `shape` (1 broadcasts)."""
    received = tuple(mask.shape)
    agrees = len(received) == len(shape) and all(
        a is None or b is None or a == b or a == 1 for a, b in zip(received, shape)
    )
    require(agrees, f"`{name}` must have the shape {shape}, True where a vector exists.", received)


def require_history(target: typing.Any, behaviors: typing.Any, dims_agree: bool = True) -> None:
    """Raises a ValueError unless target [B, D] and behaviors [B, L, D] agree, or [C, D] and [1, L, D].

    Only sizes that are known are compared; `dims_agree=False` leaves D out.
    """
    require_rank("target", target, 2, "[B, D]")
    require_rank("behaviors", behaviors, 3, "[B, L, D]")
    if dims_agree:
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
