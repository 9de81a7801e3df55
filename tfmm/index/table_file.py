"""The rows that a table inside a SavedModel starts from: a file of its assets, read in pieces when it is loaded."""

from __future__ import annotations

import pathlib
import shutil
import tempfile
import typing
import weakref

import numpy as np
import tensorflow as tf

from tfmm.index import snapshot

PIECE = 512  # rows that are read at once
_WORD_BYTES, _SCALE_BYTES = 8, 4


def temporary_folder(owner: object) -> pathlib.Path:
    """Returns a new folder that is removed with its owner."""
    folder = tempfile.mkdtemp(prefix="tfmm-")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return pathlib.Path(folder)


def write(path: pathlib.Path, table: snapshot.SnapshotTable) -> tf.saved_model.Asset:
    """Writes the rows of a snapshot as TFRecords of up to `PIECE` rows, each with its checksum.

    Args:
        path: the file, of which a SavedModel has its own copy.
        table: the snapshot.
    Returns:
        The file as an asset. A row is id (8 bytes), sequence (8), int8 row (D) and scale (4), the numbers as this
        machine has them: little-endian wherever TensorFlow is released for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ((table.ids, np.int64), (table.sequences, np.int64), (table.rows, np.int8), (table.scales, np.float32))
    with tf.io.TFRecordWriter(str(path)) as file:
        for first in range(0, len(table), PIECE):
            parts = [np.ascontiguousarray(values[first : first + PIECE], dtype) for values, dtype in columns]
            file.write(np.concatenate([part.view(np.int8).reshape(len(part), -1) for part in parts], axis=1).tobytes())
    return tf.saved_model.Asset(str(path))


def pieces(file: tf.saved_model.Asset) -> tf.data.Dataset:
    """Returns the pieces of a file, each a string, see `unpack`."""
    return tf.data.TFRecordDataset(file.asset_path)


def unpack(piece: tf.Tensor, dim: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the ids, int64 [n], sequences, int64 [n], and rows of D values with their scales, int8 [n, D + 4]."""
    packed = [_WORD_BYTES, _WORD_BYTES, dim + _SCALE_BYTES]
    ids, sequences, rows = tf.split(tf.reshape(tf.io.decode_raw(piece, tf.int8), [-1, sum(packed)]), packed, axis=1)
    return tf.bitcast(ids, tf.int64), tf.bitcast(sequences, tf.int64), rows


class Loading(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
    """A function that is run whenever a SavedModel is loaded, after its variables are restored."""

    def __init__(self, run: typing.Callable[[], None]):
        super().__init__(device="/CPU:0")
        self._run = run

    def _create_resource(self) -> tf.Tensor:
        return tf.constant(0)

    def _initialize(self) -> None:
        self._run()
