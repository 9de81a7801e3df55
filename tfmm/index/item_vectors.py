"""Item vectors for training: the index snapshot's int8 rows, gathered in the graph by slot."""

from __future__ import annotations

import functools
import hashlib
import pathlib
import typing

import numpy as np
import tensorflow as tf

from tfmm import artifacts
from tfmm import vectors as vectors_lib
from tfmm.features import FeatureSet
from tfmm.index import snapshot as snapshot_lib
from tfmm.training import replicas
from tfmm.vectors import Vectors

Columns = dict[str, np.ndarray]

NO_EMBEDDING = 0  # the slot of items without an embedding


class ItemVectors(tf.Module):
    """The int8 rows of one modality; slot 0 is kept for items without an embedding.

    Ids become slots once, when examples are read; a training step only gathers.

    >>> vectors = ItemVectors(np.array([7]), np.array([[127, 0]], np.int8), np.array([1 / 127], np.float32))
    >>> vectors.slots(np.array([7, 8, 0])).tolist()
    [1, 0, 0]
    >>> vectors.lookup(tf.constant([1, 0])).mask.numpy().tolist()
    [True, False]
    """

    def __init__(self, ids: np.ndarray, rows: np.ndarray, scales: np.ndarray) -> None:
        """Stores the rows.

        Args:
            ids: int64 [n], unique item ids, in any order.
            rows: int8 [n, D].
            scales: float32 [n], one over the norm of the row; 0 withdraws the item's embedding.
        Raises:
            ValueError: lengths differ, an id is 0 or given twice, or scales are negative or not finite.
        """
        super().__init__()
        ids, rows, scales = np.asarray(ids, np.int64), np.asarray(rows), np.asarray(scales, np.float32)
        if rows.dtype != np.int8 or rows.ndim != 2 or not len(ids) == len(rows) == len(scales):
            raise ValueError(
                "`ids` [n], `rows` int8 [n, D] and `scales` [n] must have one length. Received: "
                f"{ids.shape}, {rows.dtype} {rows.shape}, {scales.shape}."
            )
        if not np.isfinite(scales).all() or (scales < 0).any():
            raise ValueError("`scales` must be finite and not negative.")
        order = np.argsort(ids, kind="stable")
        self._ids = ids[order]
        if (self._ids[1:] == self._ids[:-1]).any() or (ids == 0).any():
            raise ValueError("`ids` must be unique and not 0 (0 stands for padding).")
        self._slots = np.where(scales[order] > 0, order + 1, NO_EMBEDDING).astype(np.int32)
        self.dim = int(rows.shape[1])
        # On the device of each replica. Of a cluster each process has its own: variables would be sent, int8 cannot be.
        keep = tf.constant if replicas.is_cluster() else functools.partial(tf.Variable, trainable=False)
        self._rows = keep(np.concatenate([np.zeros((1, self.dim), np.int8), rows]))
        self._scales = keep(np.concatenate([np.zeros(1, np.float32), scales]))

    def slots(self, ids: np.ndarray) -> np.ndarray:
        """Returns the slots of int64 [...] ids, int32 [...]; 0 for padding and for no embedding."""
        ids = np.asarray(ids, np.int64)
        if not len(self._ids):
            return np.zeros(ids.shape, np.int32)
        place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
        return np.where(self._ids[place] == ids, self._slots[place], NO_EMBEDDING).astype(np.int32)

    def lookup(self, slots: tf.Tensor) -> Vectors:
        """Returns the vectors of int32 [...] slots."""
        return Vectors(tf.gather(self._rows, slots), tf.gather(self._scales, slots), slots != NO_EMBEDDING)

    def digest(self) -> str:
        """Returns a hash of ids, rows and scales."""
        return artifacts.fingerprint(
            *(
                hashlib.sha256(part.tobytes()).hexdigest()
                for part in (self._ids, self._slots, self._rows.numpy(), self._scales.numpy())
            )
        )

    def unit_vectors(self) -> np.ndarray:
        """Returns the vectors of all items that have one, float32 [n, D] of length 1."""
        scales = self._scales.numpy()
        return (self._rows.numpy() * scales[:, None])[scales > 0]


def load_vectors(
    snapshot_dir: str | pathlib.Path, modalities: typing.Sequence[str] | None = None
) -> dict[str, ItemVectors]:
    """Loads the item vectors of a snapshot, per modality.

    Raises:
        ValueError: a modality is not in the snapshot, or it holds no vector.
    """
    snapshot = snapshot_lib.load_snapshot(snapshot_dir)
    names = tuple(snapshot.modalities if modalities is None else modalities)
    unknown = sorted(set(names) - set(snapshot.modalities))
    if unknown or not names:
        raise ValueError(
            f"`modalities` must be in the index snapshot {snapshot_dir}, which holds "
            f"{list(snapshot.modalities)}. Received: {list(names)}. Embed the catalog first."
        )
    tables = {}
    for name in names:
        table = snapshot[name]
        if not len(table.ids):
            raise ValueError(f"The index snapshot {snapshot_dir} must hold vectors of {name!r}. Received: none.")
        tables[name] = ItemVectors(table.ids, table.rows, table.scales)
    return tables


def sides(feature_set: FeatureSet) -> dict[str, str]:
    """Returns the column of item ids per side: of the target, and of each sequence.

    >>> sides(FeatureSet())
    {'target': 'item_id', 'behavior': 'behavior_item_ids'}
    """
    return {vectors_lib.TARGET: "item_id"} | {s.name: s.item_ids for s in feature_set.sequences}


def add_slots(columns: Columns, tables: typing.Mapping[str, ItemVectors], feature_set: FeatureSet) -> Columns:
    """Adds int32 slots per modality and side, of the shape of the side's ids."""
    slots = {
        slots_name(modality, side): table.slots(columns[ids])
        for modality, table in tables.items()
        for side, ids in sides(feature_set).items()
    }
    return columns | slots


def vector_inputs(
    batch: typing.Mapping[str, tf.Tensor], tables: typing.Mapping[str, ItemVectors], feature_set: FeatureSet
) -> dict[str, tf.Tensor]:
    """Gathers the vectors of a batch that has slots, as inputs of a model."""
    inputs: dict[str, tf.Tensor] = {}
    for modality, table in tables.items():
        for side in sides(feature_set):
            inputs |= vectors_lib.named(modality, side, table.lookup(batch[slots_name(modality, side)]))
    return inputs


def has_vector(
    columns: typing.Mapping[str, typing.Any], modality: str, side: str = vectors_lib.TARGET
) -> typing.Any:
    """Returns whether each row's item has a vector, bool of the shape of the side's ids, after `add_slots`."""
    return columns[slots_name(modality, side)] != NO_EMBEDDING


def slots_name(modality: str, side: str) -> str:
    """Returns the name of the column of slots of a modality and a side."""
    return f"{modality}_{side}_slots"
