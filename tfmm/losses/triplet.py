"""Triplet loss on cosine similarity: query, positive and hard negative (section 6.1.2)."""

from __future__ import annotations

import typing

import keras
from keras import ops


def triplet_loss(
    queries: typing.Any, positives: typing.Any, negatives: typing.Any, *, margin: float = 0.2
) -> typing.Any:
    """Computes max(0, margin - cos(query, positive) + cos(query, negative)) of each triplet (section 6.1.2).

    Differs from the paper: it cites FaceNet's loss on squared distances and prints no formula. On unit
    vectors ||a - b||^2 = 2 - 2 cos(a, b), so this is FaceNet's loss with margin 2 * `margin`, halved.

    Args:
        queries: float [B, D]; any length, the cosine normalizes.
        positives: float [B, D].
        negatives: float [B, D]; the hard negative of each query.
        margin: float in (0, 2], in cosine.
    Returns:
        float32 [B], in [0, 2 + margin].
    Raises:
        ValueError: shapes that differ, or a margin outside (0, 2].

    >>> import numpy as np
    >>> query, positive, negative = np.array([[1.0, 0.0]]), np.array([[0.6, 0.8]]), np.array([[0.8, 0.6]])
    >>> round(float(triplet_loss(query, positive, negative, margin=0.2)[0]), 4)   # 0.2 - 0.6 + 0.8
    0.4
    """
    _check_margin(margin)
    shapes = [tuple(tensor.shape) for tensor in (queries, positives, negatives)]
    if len(shapes[0]) != 2 or any(len(shape) != 2 or shape[1] != shapes[0][1] for shape in shapes[1:]):
        raise ValueError(
            "`queries`, `positives` and `negatives` must all be [B, D]. "
            f"Received: {shapes[0]}, {shapes[1]} and {shapes[2]}."
        )
    queries, positives, negatives = (
        unit_vectors(ops.cast(tensor, "float32")) for tensor in (queries, positives, negatives)
    )
    return ops.relu(margin + ops.sum(queries * (negatives - positives), axis=-1))


def unit_vectors(vectors: typing.Any) -> typing.Any:
    """Returns float32 [B, D] rows of length 1; a row of zeros stays zero, and so does its gradient."""
    return vectors * ops.rsqrt(ops.maximum(ops.sum(ops.square(vectors), axis=-1, keepdims=True), 1e-12))


@keras.saving.register_keras_serializable("tfmm")
class TripletLoss(keras.layers.Layer):
    """Averages the triplet loss over the triplets that have a hard negative.

    Args:
        margin: float in (0, 2], in cosine.

    Call with `queries`, `positives`, `negatives` float [B, D] and optionally `negatives_mask` bool [B], True
    where a hard negative exists. Returns a float32 scalar; 0 where no row has one.
    """

    def __init__(self, margin: float = 0.2, **kwargs: typing.Any) -> None:
        super().__init__(autocast=False, **kwargs)
        _check_margin(margin)
        self.margin = margin

    def build(self, queries_shape, positives_shape, negatives_shape, negatives_mask_shape=None) -> None:
        self.built = True

    def call(self, queries, positives, negatives, negatives_mask=None):
        losses = triplet_loss(queries, positives, negatives, margin=self.margin)
        if negatives_mask is None:
            return ops.mean(losses)
        mask = ops.cast(negatives_mask, "float32")
        return ops.sum(losses * mask) / ops.maximum(ops.sum(mask), 1.0)

    def compute_output_shape(
        self, queries_shape, positives_shape, negatives_shape, negatives_mask_shape=None
    ):
        return ()

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "margin": self.margin}


def _check_margin(margin: float) -> None:
    if not 0.0 < margin <= 2.0:
        raise ValueError(
            f"`margin` must lie in (0, 2], the range of a cosine difference. Received: {margin!r}."
        )
