"""Which way edges run in each part of a picture: what two drawings of one thing share where their colors differ."""

from __future__ import annotations

import math
import typing

import keras
from keras import ops

DIRECTIONS = 8  # of a full turn
_FAINT = 0.3  # added to a cell's length: faint cells stay faint


def oriented_gradients(pixels: typing.Any, cell: int) -> typing.Any:
    """Returns histograms of the directions in which brightness changes, cell by cell (Dalal and Triggs, 2005).

    At each pixel the color that changes most counts, as much as it changes, shared by the two directions nearest to its
    own. A cell's sums enter as square roots, divided by their length and a little more. No gradient reaches the pixels.

    Args:
        pixels: float32 [B, S, S, 3]; beyond the border they are 0.
        cell: int, pixels a side of a cell; a rest of S at the right and the bottom is left out.
    Returns:
        float32 [B, S // cell, S // cell, 8], each cell at most 1 long; direction n points at n / 8 of a turn from right
        to bottom, toward larger values.
    """
    around = ops.pad(ops.stop_gradient(pixels), [[0, 0], [1, 1], [1, 1], [0, 0]])
    right = around[:, 1:-1, 2:] - around[:, 1:-1, :-2]
    down = around[:, 2:, 1:-1] - around[:, :-2, 1:-1]
    strength = ops.sqrt(ops.square(right) + ops.square(down))
    turns = ops.arctan2(down, right) / (2.0 * math.pi)
    away = turns[..., None] - ops.arange(DIRECTIONS, dtype="float32") / DIRECTIONS
    away = ops.abs(away - ops.round(away))  # turns, at most a half
    shares = ops.relu(1.0 - DIRECTIONS * away) * strength[..., None]  # [B, S, S, 3, 8]
    strongest = ops.one_hot(ops.argmax(strength, axis=-1), 3)
    of_pixels = ops.sum(shares * strongest[..., None], axis=-2)
    cells = ops.sqrt(ops.average_pool(of_pixels, cell, cell) * cell**2)
    return cells / (ops.sqrt(ops.sum(ops.square(cells), axis=-1, keepdims=True)) + _FAINT)


@keras.saving.register_keras_serializable("tfmm")
class OrientedGradients(keras.layers.Layer):
    """`oriented_gradients` as a layer without weights; float32 whatever the policy, since thresholds decide.

    Args:
        cell: int > 0, pixels a side of a cell.
    """

    def __init__(self, cell: int, **kwargs: typing.Any) -> None:
        if not isinstance(cell, int) or cell < 1:
            raise ValueError(f"`cell` must be a whole number of pixels, at least 1. Received: {cell!r}.")
        super().__init__(**{"dtype": "float32", **kwargs})
        self.cell = cell

    def call(self, pixels: typing.Any) -> typing.Any:
        return oriented_gradients(ops.cast(pixels, "float32"), self.cell)

    def compute_output_shape(self, pixels_shape: typing.Any) -> tuple[typing.Any, ...]:
        batch, height, width = pixels_shape[:3]
        return batch, height // self.cell, width // self.cell, DIRECTIONS

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "cell": self.cell}
