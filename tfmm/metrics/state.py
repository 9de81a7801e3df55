"""State of the metric classes: it adds up over batches, and over workers that never met."""

from __future__ import annotations

import typing

import keras
import numpy as np
from keras import ops

from tfmm.metrics.inputs import binary_labels, probabilities, sample_weights


class MergeableMetric(keras.metrics.Metric):
    """A Keras metric that merges: `merge_state` adds what other workers saw, pickling keeps the state.

    Merging is exact and its order does not matter, but for the rounding of float sums.
    """

    def state(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name; a copy."""
        raise NotImplementedError

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        """Adds a state that `state` returned."""
        raise NotImplementedError

    def merge_state(self, metrics: typing.Iterable[MergeableMetric]) -> None:
        """Adds the states of `metrics`, of this class with the same settings.

        Raises:
            ValueError: another class, or other settings.
        """
        own = self._settings()
        for metric in metrics:
            if type(metric) is not type(self) or metric._settings() != own:
                raise ValueError(
                    f"Only metrics of one class and one configuration merge. Received: {metric!r} with "
                    f"{metric.get_config()} into {type(self).__name__} with {own}. Make the workers' metrics "
                    "with `from_config(metric.get_config())`."
                )
            self.add_state(metric.state())

    def _settings(self) -> dict[str, typing.Any]:
        return {name: value for name, value in self.get_config().items() if name != "name"}

    def __reduce__(self):
        return _restore, (type(self), self.get_config(), self.state())


def _restore(cls: type[MergeableMetric], config: dict, state: dict) -> MergeableMetric:
    metric = cls.from_config(config)
    metric.add_state(state)
    return metric


class SumMetric(MergeableMetric):
    """A metric whose state is one vector of sums; it works in compiled steps.

    The sums are float64, and float32 on the JAX backend, which has no float64 by default.
    """

    def __init__(self, size: int, name: str | None, dtype: typing.Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.sums = self.add_variable((size,), "zeros", dtype=sum_dtype(), name="sums")

    def state(self) -> dict[str, np.ndarray]:
        return {"sums": np.array(ops.convert_to_numpy(self.sums))}

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        self.sums.assign_add(ops.cast(state["sums"], self.sums.dtype))

    def reset_state(self) -> None:
        self.sums.assign(ops.zeros(self.sums.shape, self.sums.dtype))


class RowsMetric(MergeableMetric):
    """A metric that keeps every row in host memory, because its value needs all of them at once."""

    def __init__(self, name: str | None, dtype: typing.Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.batches: list[dict[str, np.ndarray]] = []

    def state(self) -> dict[str, np.ndarray]:
        names = {name for batch in self.batches for name in batch}
        return {name: np.concatenate([self._column(batch, name) for batch in self.batches]) for name in names}

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        if state:
            self.batches.append(dict(state))

    def reset_state(self) -> None:
        self.batches = []

    @staticmethod
    def _column(batch: dict[str, np.ndarray], name: str) -> np.ndarray:
        if name not in batch:
            raise ValueError(f"`{name}` must be given with every batch or with none. Received: both kinds.")
        return batch[name]


def sum_dtype() -> str:
    """Returns the type of sums over many rows: float64 where the backend has it."""
    return "float32" if keras.backend.backend() == "jax" else "float64"


def host_array(metric: keras.metrics.Metric, values: typing.Any, way_out: str) -> np.ndarray:
    """Returns a copy of `values` in host memory.

    Raises:
        TypeError: inside a compiled step, where values cannot be read.
    """
    array = readable(values)
    if array is None:
        raise TypeError(
            f"{type(metric).__name__} keeps every row on the host, so `update_state` needs values. "
            f"Received: a symbolic tensor, inside a compiled step. {way_out}"
        )
    return np.array(array)


def readable(values: typing.Any) -> np.ndarray | None:
    """Returns `values` as an array, or None where they are symbolic (inside a compiled step)."""
    if isinstance(values, (np.ndarray, list, tuple, float, int)):
        return np.asarray(values)
    try:
        return np.asarray(ops.convert_to_numpy(values))
    except (NotImplementedError, TypeError, ValueError):  # what TensorFlow, JAX and Keras symbols raise
        return None


def checked_batch(labels: typing.Any, scores: typing.Any, weights: typing.Any) -> tuple:
    """Checks a batch of labels and probabilities: by raising where it can be read, else by NaN.

    Args:
        labels: 0 or 1, [n] or [n, 1].
        scores: in [0, 1], [n] or [n, 1].
        weights: at least 0, [n] or [n, 1], or None.
    Returns:
        labels, scores and weights as tensors [n] of `sum_dtype`; inside a compiled step the weight of a row
        that breaks the rules is NaN, so that no number comes out that could pass for a result.
    Raises:
        ValueError: a label other than 0 and 1, a score outside [0, 1], a negative weight, lengths that
            differ.
    """
    host_labels, host_scores = readable(labels), readable(scores)
    if host_labels is not None and host_scores is not None:
        size = binary_labels(host_labels).size
        probabilities(host_scores, size)
        sample_weights(None if weights is None else readable(weights), size)
    labels, scores = (ops.reshape(ops.cast(values, sum_dtype()), (-1,)) for values in (labels, scores))
    weights = ops.ones_like(labels) if weights is None else ops.reshape(ops.cast(weights, sum_dtype()), (-1,))
    right = ops.logical_or(labels == 0, labels == 1)
    right = ops.logical_and(right, ops.logical_and(scores >= 0, scores <= 1))
    return labels, scores, ops.where(ops.logical_and(right, weights >= 0), weights, float("nan"))
