"""AUC from counts in 20,000 score bins: of fixed size, for compiled steps."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.layers.checks import require_int
from tfmm.metrics.state import SumMetric, checked_batch


@keras.saving.register_keras_serializable("tfmm")
class BinnedAUC(SumMetric):
    """AUC from score bins of equal width, scores in one bin counting as ties; for `compile(metrics=[...])`.

    The error is at most half the share of click/non-click pairs that meet in one bin; `AUC` has none.
    `result()` is NaN while one class is missing, and after a label other than 0 and 1, or a score outside
    [0, 1], in a compiled step; an eager step raises ValueError.

    Args:
        num_bins: at least 2.

    >>> metric = BinnedAUC(num_bins=10)
    >>> metric.update_state([0, 1, 0, 1], [0.15, 0.45, 0.41, 0.85])     # 0.45 and 0.41 share a bin and tie
    >>> float(metric.result())
    0.875
    """

    def __init__(self, num_bins: int = 20_000, name: str = "binned_auc", dtype: typing.Any = None) -> None:
        num_bins = require_int("num_bins", num_bins, minimum=2)
        super().__init__(2 * num_bins, name=name, dtype=dtype)
        self.num_bins = num_bins

    def update_state(self, labels, scores, sample_weight=None) -> None:
        """Adds a batch: labels 0 or 1, probabilities and weights, each float [n] or [n, 1]."""
        labels, scores, weights = checked_batch(labels, scores, sample_weight)
        bins = ops.clip(ops.cast(ops.floor(scores * self.num_bins), "int32"), 0, self.num_bins - 1)
        bins = bins + self.num_bins * ops.cast(labels > 0.5, "int32")
        if keras.backend.backend() == "torch" and weights.device.type == "meta":
            counts = ops.zeros(2 * self.num_bins, weights.dtype)  # Keras asks for shapes; `segment_sum` has none
        else:
            counts = ops.segment_sum(weights, bins, num_segments=2 * self.num_bins)
        self.add(counts)

    def result(self):
        negatives, positives = ops.split(self.totals(), 2)
        below = ops.cumsum(negatives) - negatives
        pairs = ops.sum(positives) * ops.sum(negatives)
        won = ops.sum(positives * (below + 0.5 * negatives))
        return ops.where(pairs == 0, float("nan"), won / ops.where(pairs == 0, 1.0, pairs))

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "num_bins": self.num_bins}
