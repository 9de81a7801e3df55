"""Item vectors and features for training that goes on: tables that follow the item index as it changes."""

from __future__ import annotations

import math
import typing

import numpy as np
import tensorflow as tf

from tfmm.features import STORED
from tfmm.index import item_features, store
from tfmm.index.item_vectors import NO_EMBEDDING, ItemVectors

CHUNK = 16_384  # changes that are read together
_ROOM = 1.25  # of the rows that there are, when a table is made


class _Followed:
    """The rows of one encoder, or layout of features, in an index: which place has each id, and what lies there."""

    def __init__(self, index: store.IndexStore, modality: str, version: str):
        self._index, self._key = index, (modality, version)
        state = index.snapshot({modality: version})[modality]
        found = state.rows
        self.ids, self.places = found.ids, np.arange(1, len(found.ids) + 1, dtype=np.int32)  # by ascending id
        self.has = np.ones(len(found.ids), bool)
        self.rows, self.scales, self.watermark = found.rows, found.scales, state.watermark

    def look(self, ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the places of ids int64 [...], int32, and whether the index has a row there, bool."""
        if not len(self.ids):
            return np.zeros(ids.shape, np.int32), np.zeros(ids.shape, bool)
        at = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return self.places[at], (self.ids[at] == ids) & self.has[at]

    def changes(self) -> typing.Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Takes what the index has since; yields places int32 [n], each once, with rows and scales."""
        while len(found := self._index.changes(*self._key, self.watermark, CHUNK)):
            self.watermark = int(found.sequences[-1])
            new = np.setdiff1d(found.ids, self.ids)
            where = np.searchsorted(self.ids, new)
            own = np.arange(len(self.ids) + 1, len(self.ids) + len(new) + 1, dtype=np.int32)
            self.ids, self.places = np.insert(self.ids, where, new), np.insert(self.places, where, own)
            self.has = np.insert(self.has, where, False)
            _, last = np.unique(found.ids[::-1], return_index=True)  # the newest of each
            last = len(found.ids) - 1 - last
            at = np.searchsorted(self.ids, found.ids[last])
            self.has[at] = found.scales[last] > 0
            yield self.places[at], found.rows[last], found.scales[last]


class LiveVectors(ItemVectors):
    """The vectors of one encoder as the index has them now; `refresh` takes what changed.

    The table is made with room, so that a step of training that is compiled goes on with the items that come; where the
    room is used up a larger one takes its place, and the step must be compiled anew. It lies in the memory of the
    machine, not of a device, as do the tables of served models.

    Args:
        index: an item index, which stays open.
        modality: its name.
        encoder_version: the encoder whose rows are followed.
    Raises:
        ValueError: the index knows no such encoder.
    """

    def __init__(self, index: store.IndexStore, modality: str, encoder_version: str) -> None:
        tf.Module.__init__(self)
        self._followed = _Followed(index, modality, encoder_version)
        self.dim = int(self._followed.rows.shape[1])
        self._make(self._followed.rows, self._followed.scales)
        self._followed.rows = self._followed.scales = np.zeros(0)  # the variables have them

    @property
    def watermark(self) -> int:
        """Sequence number of the newest change that is in it."""
        return self._followed.watermark

    def slots(self, ids: np.ndarray) -> np.ndarray:
        places, has = self._followed.look(np.asarray(ids, np.int64))
        return np.where(has, places, NO_EMBEDDING).astype(np.int32)

    def refresh(self) -> bool:
        """Takes what the index has since; returns whether the table was replaced by a larger one."""
        grew = False
        for places, rows, scales in self._followed.changes():
            if int(places.max()) >= self._rows.shape[0]:
                self._make(self._rows.numpy()[1:], self._scales.numpy()[1:], int(places.max()))
                grew = True
            self._rows.scatter_update(tf.IndexedSlices(tf.constant(rows), tf.constant(places)))
            self._scales.scatter_update(tf.IndexedSlices(tf.constant(scales), tf.constant(places)))
        return grew

    def digest(self) -> typing.NoReturn:
        """It has none: its contents change."""
        raise TypeError("A table that follows an index has no digest. Take a snapshot, and `load_vectors`.")

    def _make(self, rows: np.ndarray, scales: np.ndarray, size: int = 0) -> None:
        count = 1 + math.ceil(_ROOM * max(len(rows), size, 64))
        all_rows, all_scales = np.zeros((count, self.dim), np.int8), np.zeros(count, np.float32)
        all_rows[1 : len(rows) + 1], all_scales[1 : len(scales) + 1] = rows, scales
        with tf.device("CPU"):
            self._rows = tf.Variable(all_rows, trainable=False)
            self._scales = tf.Variable(all_scales, trainable=False)


class LiveFeatures:
    """Items' features as the index has them now, of its active layout; `refresh` takes what changed.

    Args:
        index: an item index, which stays open.
        wanted: the layout that a model takes.
    """

    def __init__(self, index: store.IndexStore, wanted: item_features.Layout) -> None:
        self.names: tuple[str, ...] = ()
        if (entry := index.active_features()) is None:
            return
        self._layout = item_features.from_text(entry.layout)
        self.names = wanted.common(self._layout)
        self._followed = _Followed(index, STORED, entry.encoder_version)

    def refresh(self) -> None:
        """Takes what the index has since."""
        if not self.names:
            return
        own = self._followed
        for places, rows, _ in own.changes():
            if (more := int(places.max()) - len(own.rows)) > 0:
                own.rows = np.concatenate([own.rows, np.zeros((more + len(own.rows) // 4, self._layout.dim), np.int8)])
            own.rows[places - 1] = rows

    def lookup(self, ids: np.ndarray) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Returns by feature of `names` values [n] or [n, M] of items int64 [n], bool [n] where they are there."""
        if not self.names:
            return {}
        places, has = self._followed.look(ids)
        if not len(self._followed.rows):
            return {}
        values = self._layout.unpack(self._followed.rows[np.where(has, places - 1, 0)])
        return {name: (values[name], has) for name in self.names}
