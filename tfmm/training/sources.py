"""Where trainers take their rows from: in time order, any of them by its place, batch by batch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import os
import tempfile
import typing

import numpy as np
import tensorflow as tf

from tfmm import vectors as vectors_lib
from tfmm.data import examples as data_examples
from tfmm.data import records
from tfmm.data import shards as shards_lib
from tfmm.features import KEYS, LABEL, Column, FeatureSet, Sequence
from tfmm.index import item_vectors
from tfmm.index.item_vectors import ItemVectors
from tfmm.preprocessing import Preprocessor
from tfmm.training import examples as examples_lib
from tfmm.training import labels
from tfmm.training.examples import IS_ROW, Columns

_RELEASE_EVERY = 64  # batches, after which what was read leaves the process' memory


class ExampleSource(typing.Protocol):
    """Rows in time order.

    Attributes:
        num_rows: n.
    """

    num_rows: int

    @property
    def digest(self) -> str:
        """Hash of the rows: two runs on the same rows may share a checkpoint."""

    def column(self, name: str) -> np.ndarray:
        """Returns a key, a label or `timestamp` of all rows, [n]."""

    def gather(self, places: np.ndarray) -> Columns:
        """Returns what a step reads of rows, [k, ...] by name, for their places int64 [k]."""

    def release(self) -> None:
        """Gives back memory that reading took, where it can."""


class InMemory:
    """Columns [n, ...] in memory."""

    def __init__(self, columns: Columns):
        self.columns = columns
        self.num_rows = len(next(iter(columns.values())))

    @property
    def digest(self) -> str:
        return examples_lib.digest(self.columns)

    def column(self, name: str) -> np.ndarray:
        return self.columns[name]

    def gather(self, places: np.ndarray) -> Columns:
        return {name: values[places] for name, values in self.columns.items()}

    def release(self) -> None:
        pass


class Spooled:
    """TFRecords, read once into a file of records in the system's folder for such, which nobody else sees.

    Memory is that of the keys and labels, some 40 bytes a row; the file has the rows with their histories.

    Args:
        files, feature_set, tables, preprocessor: see `open_source`.
    Raises:
        ValueError: a column is missing, or an index is not in the vocabulary.
    """

    def __init__(
        self,
        files: typing.Sequence[str],
        feature_set: FeatureSet,
        tables: typing.Mapping[str, ItemVectors],
        preprocessor: Preprocessor | None,
    ):
        inputs = [column.input for column in feature_set.columns] if preprocessor else []
        ids, scalars = [s.item_ids for s in feature_set.sequences], (*KEYS, "timestamp", *feature_set.label.sources)
        keys: dict[str, list[np.ndarray]] = {name: [] for name in scalars}
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            path, writer = os.path.join(folder, f"rows{records.SUFFIX}"), None
            for piece in examples_lib.read_pieces(files, feature_set, {*scalars, *ids, *inputs}):
                if preprocessor:
                    _require_known(piece, feature_set, preprocessor.sizes)
                columns = item_vectors.add_slots(piece, tables, feature_set)
                rows = records.structured({name: values for name, values in columns.items() if name not in ids})
                writer = writer or stack.enter_context(records.Writer(path, rows.dtype))
                writer.append(rows)
                for name, parts in keys.items():
                    parts.append(piece[name])
            stack.close()
            self._rows = records.Records(path)  # stays readable when its name is gone
        found = {name: np.concatenate(parts) for name, parts in keys.items()}
        labels.check(found)
        self._order = data_examples.time_order(found)
        self._keys = {name: values[self._order] for name, values in found.items()}
        self.num_rows = len(self._order)

    @functools.cached_property
    def digest(self) -> str:
        total = hashlib.sha256(str(self._rows.array.dtype).encode())
        for start in range(0, self.num_rows, shards_lib.PIECE):
            total.update(self._rows.array[self._order[start : start + shards_lib.PIECE]].tobytes())
            self.release()
        return total.hexdigest()[:16]

    def column(self, name: str) -> np.ndarray:
        return self._keys[name]

    def gather(self, places: np.ndarray) -> Columns:
        rows = self._rows.array[self._order[places]]
        return {name: np.ascontiguousarray(rows[name]) for name in rows.dtype.names}

    def release(self) -> None:
        self._rows.release()


class OnDisk:
    """Shards of rows, with the model's inputs and the slots of item vectors made as they are read.

    What is of an item, its inputs and its slots, is computed once per item when the source is opened; a batch takes it
    by the items' places. Memory is that of the items, whatever the rows.

    Args:
        files: the shards of a split.
        feature_set: what is read of them; a part of what they hold.
        tables: item vectors by modality, whose slots are added.
        preprocessor: adds the model's inputs; None: keys, labels and slots alone.
    Raises:
        ValueError: the examples lack a column, or have sequences of another length.
    """

    def __init__(
        self,
        files: typing.Sequence[str],
        feature_set: FeatureSet,
        tables: typing.Mapping[str, ItemVectors],
        preprocessor: Preprocessor | None = None,
    ):
        self._shards, self._features, self._preprocessor = shards_lib.Shards(files), feature_set, preprocessor
        self._verify()
        self.num_rows = self._shards.num_rows
        self._slots = {name: table.slots(self._shards.items["item_id"]) for name, table in tables.items()}
        self._item_inputs = self._of_items(preprocessor) if preprocessor else {}
        self._functions: dict[tuple[str, ...], typing.Any] = {}  # the preprocessor, by the columns that it is given

    @property
    def digest(self) -> str:
        return self._shards.digest

    def column(self, name: str) -> np.ndarray:
        return _narrowed(name, self._shards.column(name))

    def release(self) -> None:
        self._shards.release()

    def gather(self, places: np.ndarray) -> Columns:
        rows = self._shards.rows(places)
        result = {name: _narrowed(name, rows[name]) for name in self._features.label.sources}
        result |= self._taken(rows[shards_lib.ITEM], None)
        if self._preprocessor:
            own = [c for c in self._features.columns if c.sequence is None and not shards_lib.is_of_items(c.feature)]
            result |= self._inputs({column: rows[column.name] for column in own})
        for sequence in self._features.sequences:
            acts, mask = self._shards.window(rows, sequence)
            at = np.zeros(mask.shape, np.int32)
            at[mask] = acts[shards_lib.ITEM]
            result |= self._taken(at, sequence)
            if self._preprocessor:
                riding = [c for c in self._features.columns if c.sequence == sequence]
                own = [column for column in riding if not shards_lib.is_of_items(column.feature)]
                values = {c: shards_lib.values_of(acts, c, self._shards.items, rows, mask) for c in own}
                result |= {name: _padded(found, mask) for name, found in self._inputs(values).items()}
        return result

    def _taken(self, at: np.ndarray, sequence: Sequence | None) -> Columns:
        """Returns inputs and slots of a side's items, for their places in the table of items."""
        side = vectors_lib.TARGET if sequence is None else sequence.name
        inputs = {c.input for c in self._features.columns if c.sequence == sequence}
        taken = {name: values[at] for name, values in self._item_inputs.items() if name in inputs}
        return taken | {item_vectors.slots_name(name, side): slots[at] for name, slots in self._slots.items()}

    def _of_items(self, preprocessor: Preprocessor) -> Columns:
        """Returns the inputs that are an item's, [m] by name."""
        own = [column for column in self._features.columns if shards_lib.is_of_items(column.feature)]
        raw = {column.name: tf.constant(self._shards.items[column.feature.name]) for column in own}
        return {name: _narrow(values.numpy()) for name, values in preprocessor(raw).items()}

    def _inputs(self, raw: typing.Mapping[Column, np.ndarray]) -> Columns:
        if not raw or self._preprocessor is None:
            return {}
        tensors = {column.name: tf.constant(np.ascontiguousarray(values)) for column, values in raw.items()}
        function = self._functions.get(tuple(tensors))
        if function is None:  # traced once, though a batch has another number of behaviors than the one before
            specs = {name: tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype) for name, tensor in tensors.items()}
            function = self._functions[tuple(tensors)] = tf.function(self._preprocessor, input_signature=[specs])
        return {name: _narrow(values.numpy()) for name, values in function(tensors).items()}

    def _verify(self) -> None:
        found = {column.name: column for column in self._shards.feature_set.columns}
        wrong = [
            column.name
            for column in self._features.columns
            if column.name not in found or column.shape != found[column.name].shape
        ]
        wrong += sorted(set(self._features.label.sources) - set(self._shards.feature_set.label.sources))
        if wrong:
            lengths = {sequence.name: sequence.length for sequence in self._features.sequences}
            raise ValueError(
                f"Examples must have the columns {sorted(column.name for column in self._features.columns)} and "
                f"{sorted(self._features.label.sources)}, sequences with {lengths} values each. Received: "
                f"{self._shards.folder}, where {', '.join(wrong)} differ. Write the examples again."
            )


def open_source(
    files: typing.Sequence[str],
    feature_set: FeatureSet,
    tables: typing.Mapping[str, ItemVectors],
    preprocessor: Preprocessor | None = None,
) -> ExampleSource:
    """Opens examples: shards where they lie, or TFRecords, which are spooled.

    Args:
        files: of a split, see `training.examples.example_files`.
        feature_set: what a trainer reads of them.
        tables: item vectors by modality, whose slots are added.
        preprocessor: for the model's inputs; None: keys, labels and slots alone.
    Raises:
        ValueError: a column is missing, or an index is not in the vocabulary.
    """
    if shards_lib.is_shards(files):
        return OnDisk(files, feature_set, tables, preprocessor)
    return Spooled(files, feature_set, tables, preprocessor)


def dataset(
    source: ExampleSource,
    order: np.ndarray,
    batch_size: int,
    change: typing.Callable[[Columns, int], Columns] = lambda columns, batch: columns,
) -> tf.data.Dataset:
    """Returns rows in an order as batches of one shape, so that a step is compiled once.

    Args:
        source: of the rows.
        order: int64 [m], their places.
        batch_size: B.
        change: of a batch's columns and its number, what the batch shall be.
    Returns:
        A dataset of dicts: the columns [B, ...] and IS_ROW bool [B]. The last batch is filled with zeros, where that
        is False. Each batch follows from its number alone, so that `skip` goes on at any step.
    """

    def batch(number: int) -> Columns:
        places = order[number * batch_size : (number + 1) * batch_size]
        columns = change(source.gather(places), number) | {IS_ROW: np.ones(len(places), bool)}
        if (number + 1) % _RELEASE_EVERY == 0:
            source.release()
        filler = batch_size - len(places)
        return {n: np.pad(v, [(0, filler)] + [(0, 0)] * (v.ndim - 1)) if filler else v for n, v in columns.items()}

    num_batches = math.ceil(len(order) / batch_size)
    form = batch(max(num_batches - 1, 0))
    names = sorted(form)

    def values_of(number: np.ndarray) -> list[np.ndarray]:
        columns = batch(int(number))
        return [columns[name] for name in names]

    def read(number: tf.Tensor) -> dict[str, tf.Tensor]:
        values = tf.numpy_function(values_of, [number], [form[name].dtype for name in names])
        return {name: tf.ensure_shape(value, form[name].shape) for name, value in zip(names, values)}

    return tf.data.Dataset.range(num_batches).map(read, num_parallel_calls=2, deterministic=True).prefetch(2)


def _require_known(columns: Columns, feature_set: FeatureSet, sizes: typing.Mapping[str, int]) -> None:
    for column in feature_set.columns:
        if column.feature.is_embedded:
            highest, size = int(columns[column.input].max()), sizes[column.feature.embedding]
            if highest >= size or int(columns[column.input].min()) < 0:
                raise ValueError(
                    f"`{column.input}` must be below {size}, the size of vocabulary "
                    f"{column.feature.embedding!r}. Received: {highest}. Examples and `vocabulary_dir` must come "
                    "from the same Transform."
                )


def _narrow(values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if values.dtype == np.int64 else values


def _narrowed(name: str, values: np.ndarray) -> np.ndarray:
    return values.astype(np.int32) if name == LABEL else values


def _padded(values: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Returns inputs of behaviors [t] as rows [k, L], right-padded with what stands for missing."""
    return shards_lib.padded(values, mask, 0 if values.dtype.kind == "i" else np.nan)
