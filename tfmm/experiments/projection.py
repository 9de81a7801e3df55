"""Item vectors turned by a matrix that learns with the click model: what training both together would add, in small."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm import layers
from tfmm.ctr.integrations import Context, Integration
from tfmm.vectors import Vectors


class Projection(Integration):
    """A matrix on the vectors of target and behaviors, beside the ID embeddings in the attention and for the target.

    The vectors stay as they are; the gradient of clicks reaches the matrix, as it would reach an encoder's last layer.

    Args:
        units: int, values of a projected vector.
    """

    is_zero_without_target = True

    def __init__(self, units: int = 32, name: str | None = None) -> None:
        super().__init__(name=name)
        self.matrix = keras.layers.Dense(units, use_bias=False, name="matrix")

    def start(self, dim: int) -> None:
        self.matrix.build((None, dim))

    def _project(self, vectors: Vectors) -> typing.Any:
        rows = layers.unit_vectors(vectors.rows, vectors.scales) * vectors.rows.shape[-1] ** 0.5
        return ops.where(vectors.mask[..., None], self.matrix(rows), 0.0)

    def beside(self, context: Context) -> tuple[typing.Any, typing.Any]:
        return self._project(context.target_vectors), self._project(context.behavior_vectors)

    def parts(self, context: Context) -> list[typing.Any]:
        return [self._project(context.target_vectors)]
