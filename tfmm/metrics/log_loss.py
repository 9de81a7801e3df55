"""Log loss, normalized entropy and calibration: how right the probabilities are, not only their order."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from tfmm.metrics.inputs import binary_labels, probabilities, sample_weights

EPSILON = float(
    np.finfo(np.float32).eps
)  # probabilities are clipped to [EPSILON, 1 - EPSILON] in the logarithm


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
    clicked, predicted, row_weights = _read(labels, scores, weights)
    predicted = np.clip(predicted, EPSILON, 1.0 - EPSILON)
    losses = -np.where(clicked, np.log(predicted), np.log1p(-predicted))
    return float(np.average(losses, weights=row_weights))


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
    clicked, _, row_weights = _read(labels, scores, weights)
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
    clicked, predicted, row_weights = _read(labels, scores, weights)
    observed = float(np.average(clicked, weights=row_weights))
    if observed == 0.0:
        raise ValueError(
            f"Calibration needs at least one click. Received: none in {clicked.size} rows. Widen the sample."
        )
    return float(np.average(predicted, weights=row_weights)) / observed


def entropy(rate: float) -> float:
    """Returns the entropy in nats of a click with probability `rate` in (0, 1)."""
    return float(-(rate * np.log(rate) + (1.0 - rate) * np.log1p(-rate)))


def _read(labels, scores, weights) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    clicked = binary_labels(labels)
    predicted = probabilities(scores, clicked.size)
    row_weights = sample_weights(weights, clicked.size)
    if clicked.size == 0 or (row_weights is not None and row_weights.sum() == 0.0):
        raise ValueError(f"At least one row with a weight above 0 is needed. Received: {clicked.size} rows.")
    return clicked, predicted, row_weights
