"""Checks of what a caller hands to `check_layer`: a typing error in a name must not skip a rule silently."""

from __future__ import annotations

import typing

import keras
import numpy as np

from tfmm.layers import checks

Arrays = typing.Mapping[str, np.ndarray]


def as_arrays(inputs: typing.Mapping[str, typing.Any]) -> dict[str, np.ndarray]:
    """Turns inputs into arrays, lists as Keras would (Python floats to float32).

    Raises:
        ValueError: no inputs, strings, fewer than 2 rows, or inputs with different numbers of rows.
    """
    arrays = {name: _as_array(name, x) for name, x in inputs.items()}
    checks.require(len(arrays) > 0, "`inputs` must hold at least one array.", inputs)
    for name, x in arrays.items():
        checks.require(
            x.ndim > 0 and len(x) >= 2,
            f"`{name}` must have the batch as first axis, of at least 2 rows, as rows are compared.",
            x.shape,
        )
    num_rows = {name: len(x) for name, x in arrays.items()}
    checks.require(len(set(num_rows.values())) == 1, "All inputs must have equally many rows.", num_rows)
    return arrays


def _as_array(name: str, values: typing.Any) -> np.ndarray:
    array = keras.ops.convert_to_numpy(values) if keras.ops.is_tensor(values) else np.asarray(values)
    checks.require(
        array.dtype.kind not in "OSU",
        f"`{name}` must hold numbers or bools, as results are compared as numbers. Look strings up before the layer "
        "that you check, with keras.layers.StringLookup, and pass the ids.",
        values,
    )
    if isinstance(values, np.ndarray):
        return values
    return np.asarray(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(values)))


def require_float_inputs(names: typing.Collection[str], inputs: Arrays) -> None:
    """Raises a ValueError unless each name in `differentiable` is a float input."""
    floats = sorted(name for name, x in inputs.items() if x.dtype.kind == "f")
    wrong = sorted(set(names) - set(floats))
    checks.require(not wrong, f"`differentiable` must name float inputs; there are {floats}.", wrong)


def inputs_hidden_by_masks(inputs: Arrays, masks: typing.Mapping[str, str | None]) -> dict[str, str | None]:
    """Finds which input each mask hides.

    Args:
        inputs: arrays by name.
        masks: what `check_layer` was told: mask -> the input that it hides, or None.
    Returns:
        the same for all masks: those in `masks`, and further inputs called `<...>_mask`.
    Raises:
        ValueError: a name without an input, a mask that fits no input, that is not bool or that hides nothing.
    """
    named = {*masks, *(name for name in masks.values() if name is not None)}
    unknown = sorted(named - set(inputs))
    checks.require(not unknown, f"`masks` must name inputs; there are {sorted(inputs)}.", unknown)
    hidden = dict(masks)
    for name in inputs:
        if name.endswith("_mask") and name not in hidden:
            hidden[name] = _hidden_input(name, inputs, masks)
    for mask_name, hidden_name in hidden.items():
        if hidden_name is not None:
            _require_mask_of(mask_name, hidden_name, inputs)
    return hidden


def _hidden_input(mask_name: str, inputs: Arrays, masks: typing.Collection[str]) -> str:
    """The input that gives the mask its name, else the only one that has the mask's axes first."""
    name = mask_name.removesuffix("_mask")
    if name in inputs:
        return name
    mask = inputs[mask_name]
    fitting = [
        other
        for other, x in inputs.items()
        if other not in masks and not other.endswith("_mask") and x.shape[: mask.ndim] == mask.shape
    ]
    checks.require(
        len(fitting) == 1,
        f"`{mask_name}` must be named for the input that it hides, or fit one by its shape alone. Pass "
        f"`masks={{'{mask_name}': '<input>'}}`, or None in the place of the input where it hides none.",
        fitting,
    )
    return fitting[0]


def _require_mask_of(mask_name: str, name: str, inputs: Arrays) -> None:
    mask, shape = inputs[mask_name], inputs[name].shape
    checks.require(mask.dtype == bool, f"`{mask_name}` must be bool, True where `{name}` counts.", mask.dtype)
    checks.require(
        mask.shape == shape[: mask.ndim], f"`{mask_name}` must have the first axes of `{name}` {shape}.", mask.shape
    )
    checks.require(not mask.all(), f"`{mask_name}` must hide something, else nothing is tested.", "True everywhere")


def paths_with_ends(ends: typing.Collection[str], paths: typing.Collection[str]) -> set[str]:
    """Finds the weights' paths that end in one of `ends`.

    Raises:
        ValueError: an end that no path has.

    >>> sorted(paths_with_ends(["bias"], ["block/dense/bias", "block/dense/kernel"]))
    ['block/dense/bias']
    """
    found = {end: {path for path in paths if f"/{path}".endswith(f"/{end}")} for end in ends}
    unknown = sorted(end for end in found if not found[end])
    checks.require(not unknown, f"`unreached_weights` must name trainable weights; there are {paths}.", unknown)
    return set().union(*found.values())
