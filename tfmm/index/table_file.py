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

PIECE = 2048  # rows that are read at once
_WORD_BYTES, _SCALE_BYTES = 8, 4


def write(owner: object, name: str, table: snapshot.SnapshotTable) -> tf.saved_model.Asset:
    """Writes the rows of a snapshot, in pieces of `PIECE`, the last one filled up with zeros.

    Args:
        owner: the file goes with it; a SavedModel has its own copy by then.
        name: of the file.
        table: at least one row.
    Returns:
        The file as an asset. A row is id (8 bytes), sequence (8), int8 row (D) and scale (4).
    """
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tfmm-"))
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    columns = ((table.ids, np.int64), (table.sequences, np.int64), (table.rows, np.int8), (table.scales, np.float32))
    with (folder / name).open("wb") as file:
        for first in range(0, len(table), PIECE):
            parts = [np.ascontiguousarray(values[first : first + PIECE], dtype) for values, dtype in columns]
            piece = np.concatenate([part.view(np.int8).reshape(len(part), -1) for part in parts], axis=1)
            file.write(piece.tobytes())
        file.write(bytes((PIECE - len(piece)) * piece.shape[1]))
    return tf.saved_model.Asset(str(folder / name))


def pieces(file: tf.saved_model.Asset, dim: int) -> tf.data.Dataset:
    """Returns the pieces of a file of rows of D values, each a string, see `unpack`."""
    return tf.data.FixedLengthRecordDataset(file.asset_path, PIECE * (2 * _WORD_BYTES + dim + _SCALE_BYTES))


def unpack(piece: tf.Tensor, dim: int) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns the ids, int64 [PIECE], sequences, int64 [PIECE], and rows with their scales, int8 [PIECE, D + 4]."""
    rows = tf.reshape(tf.io.decode_raw(piece, tf.int8), [PIECE, 2 * _WORD_BYTES + dim + _SCALE_BYTES])
    ids, sequences, packed = tf.split(rows, [_WORD_BYTES, _WORD_BYTES, dim + _SCALE_BYTES], axis=1)
    return tf.bitcast(ids, tf.int64), tf.bitcast(sequences, tf.int64), packed


class Loading(tf.saved_model.experimental.TrackableResource):  # type: ignore[misc]
    """A function that is run whenever a SavedModel is loaded, after its variables are restored."""

    def __init__(self, run: typing.Callable[[], None]):
        super().__init__(device="/CPU:0")
        self._run = run

    def _create_resource(self) -> tf.Tensor:
        return tf.constant(0)

    def _initialize(self) -> None:
        self._run()
