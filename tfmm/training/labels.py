"""What a row's label counts: its sample weight and its negatives' rate, in the loss and in metrics alike."""

from __future__ import annotations

import typing

import numpy as np

from tfmm.labels import LABEL, NEGATIVE_RATE, SAMPLE_WEIGHT, Label


def weighing(columns: typing.Mapping[str, typing.Any], label: Label) -> dict[str, typing.Any]:
    """Returns what `make.model.loss` takes beside the labels: `weight` and `negative_rate`; {} where none is declared.

    Args:
        columns: of examples, or a batch of them.
        label: the declaration.
    """
    result: dict[str, typing.Any] = {}
    if label.weight:
        result["weight"] = columns[SAMPLE_WEIGHT]
    if label.negative_rate_column:
        result["negative_rate"] = columns[NEGATIVE_RATE]
    elif label.is_sampled:
        result["negative_rate"] = label.negative_rate
    return result


def metric_weights(columns: typing.Mapping[str, np.ndarray], label: Label) -> np.ndarray | None:
    """Returns how many rows each row stands for, float64 [n]; None where each stands for itself.

    A kept negative stands for all that were dropped beside it, 1 / rate in all; a click for itself. Weights multiply.

    >>> columns = {"label": np.array([1, 0]), "sample_weight": np.array([3.0, 2.0])}
    >>> metric_weights(columns, Label(weight="w", negative_rate=0.5)).tolist()
    [3.0, 4.0]
    """
    found = weighing(columns, label)
    if not found:
        return None
    rates = np.asarray(found.get("negative_rate", 1.0), np.float64)
    return np.asarray(found.get("weight", 1.0), np.float64) / np.where(columns[LABEL] == 1, 1.0, rates)


def weights_of(weights: np.ndarray | None, rows: typing.Any) -> np.ndarray | None:
    """Returns the weights of some rows, which a mask, places or a slice name; None where each row counts once."""
    return None if weights is None else weights[rows]


def click_rate(columns: typing.Mapping[str, np.ndarray], label: Label) -> float:
    """Returns the share of clicks among what the rows stand for, inside (0, 1) by a click and a non-click more.

    >>> round(click_rate({"label": np.array([1, 0, 0])}, Label(negative_rate=0.1)), 4)  # 2 of 23
    0.087
    """
    weights = metric_weights(columns, label)
    weights = np.ones(len(columns[LABEL])) if weights is None else weights
    return float((weights @ columns[LABEL] + 1.0) / (weights.sum() + 2.0))


def check(columns: typing.Mapping[str, np.ndarray]) -> None:
    """Refuses labels, weights and rates of examples that cannot be.

    Raises:
        ValueError: a label other than 0 and 1, a weight below 0 or not finite, no weight above 0, a rate outside
            (0, 1].
    """
    if LABEL in columns and not np.isin(columns[LABEL], (0, 1)).all():
        raise ValueError(f"`label` must be 0 or 1. Received: {np.unique(columns[LABEL])[:5].tolist()}.")
    if SAMPLE_WEIGHT in columns:
        weights = columns[SAMPLE_WEIGHT]
        wrong = weights[~(np.isfinite(weights) & (weights >= 0))]
        if len(wrong) or not weights.any():
            raise ValueError(
                f"`{SAMPLE_WEIGHT}` must be finite, at least 0, and above 0 in one row. Received: "
                f"{np.unique(wrong)[:5].tolist() or 'only 0'}."
            )
    if NEGATIVE_RATE in columns:
        rates = columns[NEGATIVE_RATE]
        wrong = rates[~((rates > 0) & (rates <= 1))]
        if len(wrong):
            raise ValueError(f"`{NEGATIVE_RATE}` must lie in (0, 1]. Received: {np.unique(wrong)[:5].tolist()}.")
