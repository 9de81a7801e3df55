"""Log loss, normalized entropy and calibration: how right the probabilities are, not only their order."""

from __future__ import annotations

import typing

import keras
import numpy as np
import numpy.typing as npt
from keras import ops

from tfmm.metrics.inputs import binary_labels, probabilities, sample_weights
from tfmm.metrics.state import SumMetric, checked_batch

EPSILON = float(np.finfo(np.float32).eps)  # probabilities are clipped to [EPSILON, 1 - EPSILON] in the logarithm


def log_loss(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Computes the mean of -log(probability given to what happened), in nats.

    Args:
        labels: 0 or 1, [n], n >= 1.
        scores: probabilities [n]; clipped to [2^-23, 1 - 2^-23]: a certain error costs 16, not infinity.
        weights: optional floats [n] >= 0.
    Returns:
        float >= 0.
    Raises:
        ValueError: labels other than 0 and 1, scores outside [0, 1], or no row that counts.

    >>> round(log_loss([1, 0], [0.5, 0.75]), 4)           # (log 2 + log 4) / 2
    1.0397
    """
    clicked, predicted, row_weights = read_rows(labels, scores, weights)
    return float(np.average(row_losses(clicked, predicted), weights=row_weights))


def normalized_entropy(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> float:
    """Computes the log loss divided by that of always answering the click rate: below 1 is better than that.

    Args:
        labels: 0 or 1, [n]; both classes must occur.
        scores: probabilities [n].
        weights: optional floats [n] >= 0.
    Returns:
        float >= 0.
    Raises:
        ValueError: as `log_loss`, and rows of one class only.

    >>> round(normalized_entropy([1, 0, 0, 0], [0.25, 0.25, 0.25, 0.25]), 6)
    1.0
    """
    clicked, _, row_weights = read_rows(labels, scores, weights)
    rate = float(np.average(clicked, weights=row_weights))
    if rate in (0.0, 1.0):
        raise ValueError(
            f"Normalized entropy needs both classes. Received: a click rate of {rate}. Widen the sample."
        )
    return log_loss(labels, scores, weights) / entropy(rate)


def calibration(labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None) -> float:
    """Computes predicted clicks over observed clicks: 1 is calibrated, above 1 promises too much.

    Args:
        labels: 0 or 1, [n], with at least one click.
        scores: probabilities [n].
        weights: optional floats [n] >= 0.
    Returns:
        float >= 0.
    Raises:
        ValueError: labels other than 0 and 1, scores outside [0, 1], or no click.

    >>> calibration([1, 0, 0, 0], [0.25, 0.5, 0.25, 0.5])
    1.5
    """
    clicked, predicted, row_weights = read_rows(labels, scores, weights)
    observed = float(np.average(clicked, weights=row_weights))
    if observed == 0.0:
        raise ValueError(
            f"Calibration needs at least one click. Received: none in {clicked.size} rows. Widen the sample."
        )
    return float(np.average(predicted, weights=row_weights)) / observed


def entropy(rate: float) -> float:
    """Returns the entropy in nats of a click with probability `rate` in (0, 1)."""
    return float(-(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate)))


def row_losses(clicked: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Returns -log(probability given to what happened), float64 [n], of bool [n] and float64 [n]."""
    predicted = np.clip(predicted, EPSILON, 1.0 - EPSILON)
    return -np.where(clicked, np.log(predicted), np.log1p(-predicted))


def read_rows(
    labels: npt.ArrayLike, scores: npt.ArrayLike, weights: npt.ArrayLike | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Returns checked labels, probabilities and weights, the largest weight 1, so that no sum overflows."""
    clicked = binary_labels(labels)
    predicted = probabilities(scores, clicked.size)
    row_weights = sample_weights(weights, clicked.size)
    if clicked.size == 0 or (row_weights is not None and not row_weights.any()):
        raise ValueError(
            f"At least one row with a weight above 0 is needed. Received: {clicked.size} rows. Widen the sample."
        )
    return clicked, predicted, None if row_weights is None else row_weights / row_weights.max()


class _ProbabilityMetric(SumMetric):
    """Sums of weight, loss, clicks and predicted clicks.

    `result()` is NaN while it has no value, and after a label other than 0 and 1, or a score outside [0, 1],
    in a compiled step, where nothing can be raised; an eager step raises ValueError.
    """

    def __init__(self, name: str, dtype: typing.Any) -> None:
        super().__init__(4, name=name, dtype=dtype)

    def update_state(self, labels, scores, sample_weight=None) -> None:
        """Adds a batch: labels 0 or 1, probabilities and weights, each float [n] or [n, 1]."""
        labels, scores, weights = checked_batch(labels, scores, sample_weight)
        clipped = ops.clip(scores, EPSILON, 1.0 - EPSILON)
        losses = -ops.where(labels > 0.5, ops.log(clipped), ops.log1p(-clipped))
        rows = ops.stack([ops.ones_like(losses), losses, labels, scores])  # [4, n]
        self.add(ops.sum(rows * weights[None, :], axis=-1))

    def _ratio(self, numerator, denominator):
        return ops.where(
            denominator == 0, float("nan"), numerator / ops.where(denominator == 0, 1.0, denominator)
        )


@keras.saving.register_keras_serializable("tfmm")
class LogLoss(_ProbabilityMetric):
    """Log loss over all batches, in nats, as `log_loss`.

    >>> metric = LogLoss()
    >>> metric.update_state([1], [0.5])
    >>> metric.update_state([0], [0.75])
    >>> round(float(metric.result()), 4)
    1.0397
    """

    def __init__(self, name: str = "log_loss", dtype: typing.Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def result(self):
        weight, loss, _, _ = ops.unstack(self.totals())
        return self._ratio(loss, weight)


@keras.saving.register_keras_serializable("tfmm")
class NormalizedEntropy(_ProbabilityMetric):
    """Normalized entropy over all batches, as `normalized_entropy`.

    >>> metric = NormalizedEntropy()
    >>> metric.update_state([1, 0], [0.5, 0.5])
    >>> metric.update_state([1, 0], [0.25, 0.75])             # log losses log 2, log 4; entropy of 1/2: log 2
    >>> round(float(metric.result()), 4)
    1.5
    """

    def __init__(self, name: str = "normalized_entropy", dtype: typing.Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def result(self):
        weight, loss, clicks, _ = ops.unstack(self.totals())
        rate = self._ratio(clicks, weight)
        return -loss / weight / (rate * ops.log(rate) + (1.0 - rate) * ops.log1p(-rate))  # 0 log 0: NaN


@keras.saving.register_keras_serializable("tfmm")
class Calibration(_ProbabilityMetric):
    """Predicted clicks over observed clicks over all batches, as `calibration`.

    >>> metric = Calibration()
    >>> metric.update_state([1, 0], [0.25, 0.5])
    >>> metric.update_state([0, 0], [0.25, 0.5])
    >>> float(metric.result())
    1.5
    """

    def __init__(self, name: str = "calibration", dtype: typing.Any = None) -> None:
        super().__init__(name=name, dtype=dtype)

    def result(self):
        _, _, clicks, predicted = ops.unstack(self.totals())
        return self._ratio(predicted, clicks)
