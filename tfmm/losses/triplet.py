"""Triplet loss on cosine similarity: query, positive and hard negative (section 6.1.2)."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.losses import checks


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
    queries, positives, negatives = (ops.convert_to_tensor(each) for each in (queries, positives, negatives))
    checks.require_pairs(queries=queries, positives=positives, negatives=negatives)
    queries, positives, negatives = (
        _normalize(ops.cast(tensor, "float32")) for tensor in (queries, positives, negatives)
    )
    return ops.relu(margin + ops.sum(queries * (negatives - positives), axis=-1))


def _normalize(vectors: typing.Any) -> typing.Any:
    """Returns float32 [B, D] rows of length 1; a row of zeros stays zero, and so does its gradient."""
    largest = ops.stop_gradient(ops.max(ops.abs(vectors), axis=-1, keepdims=True))  # else squares leave the range
    vectors = vectors / ops.where(largest == 0, 1.0, largest)
    squared = ops.sum(ops.square(vectors), axis=-1, keepdims=True)
    return vectors * ops.where(largest == 0, 0.0, ops.rsqrt(ops.where(largest == 0, 1.0, squared)))


@keras.saving.register_keras_serializable("tfmm")
class TripletLoss(keras.layers.Layer):
    """Averages the triplet loss over the triplets that have a hard negative.

    Args:
        margin: float in (0, 2], in cosine.

    Call with `queries`, `positives`, `negatives` float [B, D] and optionally `negatives_mask` bool [B], True
    where a hard negative exists. Returns a float32 scalar; 0 where no row has one.

    Raises:
        ValueError: a margin outside (0, 2]; when called, shapes that differ.

    >>> vectors = ops.array([[1.0, 0.0], [0.0, 1.0]])
    >>> layer = TripletLoss(margin=0.5)                                  # row 0: 0.5 - 1 + 1, row 1: no hard negative
    >>> float(layer(vectors, vectors, vectors, negatives_mask=ops.array([True, False])))
    0.5
    """

    def __init__(self, margin: float = 0.2, **kwargs: typing.Any) -> None:
        super().__init__(autocast=False, **kwargs)
        _check_margin(margin)
        self.margin = margin

    def build(self, queries_shape, positives_shape, negatives_shape, negatives_mask_shape=None) -> None:
        self.built = True

    def call(self, queries, positives, negatives, negatives_mask=None):
        if negatives_mask is None:
            return ops.mean(triplet_loss(queries, positives, negatives, margin=self.margin))
        mask = ops.cast(negatives_mask, "bool")
        checks.require_rows("negatives_mask", mask, "negatives", negatives.shape[0])
        negatives = ops.where(mask[:, None], negatives, ops.zeros_like(negatives))  # a masked row may hold anything
        losses = triplet_loss(queries, positives, negatives, margin=self.margin)
        losses = ops.where(mask, losses, ops.zeros_like(losses))
        return ops.sum(losses) / ops.maximum(ops.sum(ops.cast(mask, "float32")), 1.0)

    def compute_output_shape(
        self, queries_shape, positives_shape, negatives_shape, negatives_mask_shape=None
    ):
        return ()

    def compute_output_spec(self, queries, positives, negatives, negatives_mask=None):
        checks.require_pairs(queries=queries, positives=positives, negatives=negatives)
        checks.require_rows("negatives_mask", negatives_mask, "negatives", negatives.shape[0])
        return keras.KerasTensor((), dtype="float32")  # whatever the policy

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "margin": self.margin}


def _check_margin(margin: float) -> None:
    if isinstance(margin, (str, bool)) or not 0.0 < margin <= 2.0:
        raise ValueError(
            f"`margin` must lie in (0, 2], the range of a cosine difference. Received: {margin!r}."
        )
