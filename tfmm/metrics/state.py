"""State of the metric classes: it adds up over batches, and over workers that never met."""

from __future__ import annotations

import typing

import keras
import numpy as np
from keras import ops

from tfmm.metrics.inputs import as_array, binary_labels, check_column, check_length, probabilities, sample_weights


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

    The sums are float64, and float32 on the JAX backend, which has no float64 by default. What rounding takes
    from a sum is kept beside it: float32 alone counts no further than 2^24 rows.
    """

    def __init__(self, size: int, name: str | None, dtype: typing.Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.sums = self.add_variable((size,), "zeros", dtype=sum_dtype(), name="sums")
        self.lost = self.add_variable((size,), "zeros", dtype=sum_dtype(), name="lost")

    def add(self, increments: typing.Any) -> None:
        """Adds a vector, with what rounding took from the addition before (Kahan; the error by Knuth's TwoSum)."""
        sums = ops.convert_to_tensor(self.sums)
        increments = ops.convert_to_tensor(increments) + self.lost
        total = sums + increments
        added = total - sums
        self.lost.assign((sums - (total - added)) + (increments - added))
        self.sums.assign(total)

    def totals(self) -> typing.Any:
        """Returns the sums as a tensor."""
        return self.sums + self.lost

    def state(self) -> dict[str, np.ndarray]:
        sums, lost = (ops.convert_to_numpy(each).astype(np.float64) for each in (self.sums, self.lost))
        return {"sums": sums + lost}

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        rounded = state["sums"].astype(sum_dtype())
        self.add(rounded)
        self.add((state["sums"] - rounded).astype(sum_dtype()))


class RowsMetric(MergeableMetric):
    """A metric that keeps every row in host memory, because its value needs all of them at once."""

    def __init__(self, name: str | None, dtype: typing.Any) -> None:
        super().__init__(name=name, dtype=dtype)
        self.batches: list[dict[str, np.ndarray]] = []

    def state(self) -> dict[str, np.ndarray]:
        names = self.batches[0] if self.batches else ()
        return {name: _joined(name, [batch[name] for batch in self.batches]) for name in names}

    def add_state(self, state: typing.Mapping[str, np.ndarray]) -> None:
        if not any(column.shape[0] for column in state.values()):
            return  # no rows are no state
        if self.batches:
            _check_same_columns(self.batches[0], state)
        self.batches.append(dict(state))

    def reset_state(self) -> None:
        self.batches = []


def _check_same_columns(first: typing.Mapping[str, np.ndarray], batch: typing.Mapping[str, np.ndarray]) -> None:
    for name in first.keys() ^ batch.keys():
        raise ValueError(
            f"`{name}` must be given with every batch or with none. Received: both kinds. "
            "Add it to the batches without it, or drop it."
        )
    for name, column in batch.items():
        if column.shape[1:] != first[name].shape[1:]:
            raise ValueError(
                f"`{name}` must have rows of shape {first[name].shape[1:]}, as in the batches before. "
                f"Received: {column.shape[1:]}. Give each encoder a metric of its own."
            )


def _joined(name: str, columns: list[np.ndarray]) -> np.ndarray:
    """Concatenates the batches of a column, where none changes by taking their common type."""
    joined = np.concatenate(columns)
    is_new_kind = joined.dtype.kind not in {column.dtype.kind for column in columns}  # uint64 and int64: float64
    for column in columns:
        if column.dtype != joined.dtype and (is_new_kind or not _survives(column, joined.dtype)):
            raise ValueError(
                f"`{name}` must have one type in all batches. Received: {column.dtype}, which becomes "
                f"{joined.dtype} beside the others. Convert them to one type before `update_state`."
            )
    return joined


def _survives(column: np.ndarray, dtype: np.dtype) -> bool:
    if dtype.kind in "US":
        return column.dtype.kind in "US"  # not the id 1 as "1"
    with np.errstate(invalid="ignore"):
        return np.array_equal(column.astype(dtype).astype(column.dtype), column)


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
        return as_array(values)
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
        ValueError: a label other than 0 and 1, a score outside [0, 1], a negative weight, other shapes,
            lengths that differ.
    """
    host_labels, host_scores = readable(labels), readable(scores)
    if host_labels is not None and host_scores is not None:
        size = binary_labels(host_labels).size
        probabilities(host_scores, size)
        sample_weights(None if weights is None else readable(weights), size)
    columns = {"labels": labels, "scores": scores} | ({} if weights is None else {"weights": weights})
    columns = {name: ops.cast(values, sum_dtype()) for name, values in columns.items()}
    for name, column in columns.items():
        check_column(name, column.shape)
        check_length(name, column.shape[0], columns["labels"].shape[0])
    size = ops.shape(columns["labels"])[0]
    labels, scores, *given = (ops.reshape(column, (-1,)) for column in columns.values())
    weights = given[0] if given else ops.ones_like(labels)
    right = ops.logical_and(ops.logical_or(labels == 0, labels == 1), ops.logical_and(scores >= 0, scores <= 1))
    for column in (labels, scores, weights):  # a size that the trace did not know
        right = ops.logical_and(right, ops.equal(ops.shape(column)[0], size))
    return labels, scores, ops.where(ops.logical_and(right, weights >= 0), weights, float("nan"))
