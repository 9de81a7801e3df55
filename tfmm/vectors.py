"""Item vectors as they pass between tables, layers and models: int8 rows, their scales, and which of them exist."""

from __future__ import annotations

import typing

TARGET = "target"  # the side of the item scored; other sides are named as the sequence is


class Vectors(typing.NamedTuple):
    """The vectors of one modality on one side: of targets, or of a sequence of behaviors.

    Attributes:
        rows: int8 [B, D] of targets, [B, L, D] of behaviors.
        scales: float32 [B] or [B, L], one over the norm of each row.
        mask: bool [B] or [B, L], True where the item has a vector.
    """

    rows: typing.Any
    scales: typing.Any
    mask: typing.Any


def names(modality: str, side: str) -> Vectors:
    """Returns the names under which models and signatures take a side's vectors.

    >>> names("image", "target").mask
    'image_target_mask'
    """
    return Vectors(*(f"{modality}_{side}_{part}" for part in Vectors._fields))


def named(modality: str, side: str, vectors: Vectors) -> dict[str, typing.Any]:
    """Returns vectors as inputs by name."""
    return dict(zip(names(modality, side), vectors))


def take(inputs: typing.Mapping[str, typing.Any], modality: str, side: str) -> Vectors:
    """Returns a side's vectors out of inputs by name."""
    return Vectors(*(inputs[name] for name in names(modality, side)))


def spec(dim: int, rows: int | None, length: int | None = None, *, is_sequence: bool) -> Vectors:
    """Returns (shape, dtype) of each part: [rows, length] before D where it is a sequence, else [rows]."""
    shape = [rows, length] if is_sequence else [rows]
    return Vectors(([*shape, dim], "int8"), (shape, "float32"), (shape, "bool"))
