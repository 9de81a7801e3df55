"""The multimodal index table inside a SavedModel: looked up and written by signatures, with no custom op."""

from __future__ import annotations

import pathlib
import typing

import tensorflow as tf

from tfmm.features import STORED
from tfmm.index import rows as rows_lib
from tfmm.index import snapshot, table_file
from tfmm.vectors import Vectors

WRITTEN, STALE, WITHDRAWN, REFUSED = 0, 1, 2, 3  # statuses of `upsert`
_SCALE_BYTES = 4
_AHEAD_US = 86_400_000_000  # a day: by how much the index's clock may be ahead of the server's


class GraphTable(tf.Module):
    """Item id -> int8 row and scale, as a hash table of slots and one variable of packed rows.

    Each row holds its scale in its last four bytes, so that a reader never sees one without the other. Writers
    take turns (a mutex in the graph), readers do not wait. Every resource lives on the CPU, beside the hash table.

    The rows of the snapshot are a file in the SavedModel's assets, which is read in pieces when it is loaded, into
    variables of `capacity` rows. So nothing is held twice, and the room for new items takes memory as they come. What
    is made here is to be saved: it answers where the SavedModel is loaded.

    Differs from the paper: servers there look embeddings up in a service; here changes are pushed to them.

    Args:
        modality: image, text or vector.
        table: the snapshot that it starts from, or None to start empty.
        dim: D.
        capacity: the number of items that fit. The SavedModel holds D + 20 bytes of each item of `table`.
        encoder_version: the only one whose rows are taken.
        max_dim: the largest D.
        rows_dir: where the file is written that a SavedModel takes a copy of; None: in a temporary folder, as long as
            the table lives.
    Raises:
        ValueError: the snapshot does not fit `dim`, `capacity` or `encoder_version`.
    """

    def __init__(
        self,
        modality: str,
        table: snapshot.SnapshotTable | None,
        dim: int,
        capacity: int,
        encoder_version: str,
        max_dim: int = rows_lib.MAX_DIM,
        rows_dir: pathlib.Path | None = None,
    ):
        super().__init__(name=f"{modality}_table")
        if not 0 < dim <= max_dim:
            raise ValueError(f"`dim` must lie in 1..{max_dim}. Received: {dim}.")
        if capacity < 1:
            raise ValueError(f"`capacity` must be at least 1. Received: {capacity}.")
        size = 0 if table is None else len(table)
        if table is not None and (table.dim, table.encoder_version) != (dim, encoder_version):
            raise ValueError(
                f"`table` must have dim {dim} and encoder version {encoder_version}. Received: "
                f"{table.dim}, {table.encoder_version}. Export with the model's own snapshot."
            )
        if size > capacity:
            raise ValueError(f"`capacity` must be at least the snapshot's {size} items. Received: {capacity}.")
        self.modality, self.dim, self.capacity, self.encoder_version = (
            modality,
            dim,
            capacity,
            encoder_version,
        )
        self._file = None
        if table is not None and size:
            folder = table_file.temporary_folder(self) if rows_dir is None else rows_dir
            self._file = table_file.write(folder / f"{modality}_rows", table)
        with tf.device("/CPU:0"):
            self._slots = tf.lookup.experimental.MutableHashTable(tf.int64, tf.int64, default_value=-1)
            self._packed = _empty_variable(tf.int8, [dim + _SCALE_BYTES], "packed_rows")
            self._sequences = _empty_variable(tf.int64, [], "sequences")
            self._used = tf.Variable(size, dtype=tf.int64, trainable=False, name="used_slots")
            self._size = tf.Variable(size, dtype=tf.int64, trainable=False, name="size")
            self._begun = tf.Variable(0, dtype=tf.int64, trainable=False, name="writes_begun")
            self._done = tf.Variable(0, dtype=tf.int64, trainable=False, name="writes_done")
            self._watermark = tf.Variable(
                table.watermark if table is not None else 0, dtype=tf.int64, trainable=False, name="watermark"
            )
        self._loading = table_file.Loading(self._fill)

    @tf.autograph.experimental.do_not_convert
    def _fill(self) -> None:
        """Takes the rows of the snapshot, where a SavedModel is loaded."""
        with tf.device("/CPU:0"):
            # Memory that nothing has written: the system gives a page of it at the first write. What a slot holds
            # before is masked, as no item has that slot.
            self._packed.assign(tf.raw_ops.Empty(shape=[self.capacity, self.dim + _SCALE_BYTES], dtype=tf.int8))
            self._sequences.assign(tf.raw_ops.Empty(shape=[self.capacity], dtype=tf.int64))
            if self._file is not None:
                start = tf.constant(0, tf.int64)
                taken = table_file.pieces(self._file).reduce(start, self._take_piece)
                whole = f"The file of {self.modality} rows must hold all of them. Copy the version again."
                tf.debugging.assert_equal(taken, self._used, message=whole)

    def _take_piece(self, first: tf.Tensor, piece: tf.Tensor) -> tf.Tensor:
        """Takes rows of the snapshot into the slots from `first` on; returns the slot after them."""
        with tf.device("/CPU:0"):
            ids, sequences, packed = table_file.unpack(piece, self.dim)
            count = tf.size(ids, tf.int64)
            slots = first + tf.range(count)
            with tf.control_dependencies(self._write(slots, packed, sequences)):
                inserted = self._slots.insert(ids, slots)
            with tf.control_dependencies([inserted] if inserted is not None else []):
                return first + count

    def _write(self, slots: tf.Tensor, packed: tf.Tensor, sequences: tf.Tensor) -> list[tf.Operation]:
        # Unlike ResourceScatterUpdate, this op keeps readers out: none sees half of a row.
        filled = [
            tf.raw_ops.ResourceScatterNdUpdate(ref=variable.handle, indices=slots[:, None], updates=values)
            for variable, values in ((self._packed, packed), (self._sequences, sequences))
        ]
        return [operation for operation in filled if operation is not None]

    @tf.autograph.experimental.do_not_convert
    def lookup(self, ids: tf.Tensor) -> Vectors:
        """Returns the embeddings of items; call it outside XLA.

        Args:
            ids: int64 [...]; 0 is padding.
        Returns:
            int8 [..., D], float32 [...] and bool [...]; zeros, 0 and False where an item has no embedding.
        """
        with tf.device("/CPU:0"):
            ids = tf.convert_to_tensor(ids, tf.int64)
            slots = tf.ensure_shape(self._slots.lookup(ids), ids.shape)
            packed = tf.gather(self._packed, tf.maximum(slots, 0))
            mask = tf.logical_and(slots >= 0, _scales(packed, self.dim) > 0)
            packed = tf.where(mask[..., None], packed, tf.zeros_like(packed))
            return Vectors(packed[..., : self.dim], _scales(packed, self.dim), mask)

    @tf.autograph.experimental.do_not_convert
    def lookup_at_once(self, several: typing.Sequence[tf.Tensor]) -> tuple[list[Vectors], tf.Tensor]:
        """Looks several tensors of ids up as of one sequence, however many writers there are meanwhile.

        It reads without waiting; where a write began before it was done reading, it reads again, as one of the writers.

        Args:
            several: ids, each as `lookup` takes them.
        Returns:
            The embeddings of each, and that sequence, int64 []: they hold every change up to it, and none beyond.
        """

        def read() -> tuple[list[Vectors], tf.Tensor]:
            return [self.lookup(ids) for ids in several], self._watermark.read_value()

        def read_alone() -> list[tf.Tensor]:
            mutex = self._mutex()
            lock = tf.raw_ops.MutexLock(mutex=mutex)
            with tf.control_dependencies([lock]):
                found = tf.nest.flatten(read())
            with tf.control_dependencies(found):
                release = tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
            with tf.control_dependencies([release] if release is not None else []):
                return [tf.identity(part) for part in found]

        with tf.device("/CPU:0"):
            done = self._done.read_value()
            with tf.control_dependencies([done]):
                found = read()
            flat = tf.nest.flatten(found)
            with tf.control_dependencies(flat):
                begun = self._begun.read_value()
            flat = tf.cond(tf.equal(begun, done), lambda: [tf.identity(part) for part in flat], read_alone)
            return tf.nest.pack_sequence_as(found, flat)

    def _mutex(self) -> tf.Tensor:
        """Returns what its writers take turns by."""
        return tf.raw_ops.MutexV2(shared_name=f"tfmm_{self.modality}_writers")

    @tf.autograph.experimental.do_not_convert
    def upsert(
        self,
        ids: tf.Tensor,
        rows: tf.Tensor,
        scales: tf.Tensor,
        sequences: tf.Tensor,
        encoder_version: tf.Tensor,
    ) -> tf.Tensor:
        """Writes embeddings; the newest sequence number of an item wins, in whatever order they come.

        Args:
            ids: int64 [n], none of them 0.
            rows: int8 [n, D].
            scales: float32 [n], 1 / norm of the row; 0 withdraws the item.
            sequences: int64 [n], the index's sequence numbers.
            encoder_version: string, [] or [n].
        Returns:
            int32 [n]: 0 written, 1 ignored, as the table holds this sequence or a newer one, 2 withdrawn,
            3 refused, as another encoder made the row.
        Raises:
            OutOfRangeError: the new items do not fit; nothing of the call is written.
            InvalidArgumentError: an id of 0; rows, scales or sequences that do not fit the ids; a scale that is not
                finite or is negative; a sequence that no index has given yet. Nothing of the call is written.
        """
        with tf.device("/CPU:0"):
            ids = tf.convert_to_tensor(ids, tf.int64)
            count = tf.shape(ids)[0]
            rows = tf.ensure_shape(rows, [None, self.dim])
            is_ours = tf.broadcast_to(tf.equal(encoder_version, self.encoder_version), [count])
            checks = [
                tf.debugging.assert_none_equal(
                    ids, tf.zeros_like(ids), message="`ids` must not hold 0, which means padding."
                ),
                *(
                    tf.debugging.assert_equal(
                        tf.shape(values)[0], count, message=f"`{name}` must hold one entry for each id."
                    )
                    for name, values in (("rows", rows), ("scales", scales), ("sequences", sequences))
                ),
                *_verify_values(scales, sequences),
            ]
            with tf.control_dependencies([check for check in checks if check is not None]):
                lock = tf.raw_ops.MutexLock(mutex=self._mutex())
            with tf.control_dependencies([lock]):
                statuses = self._upsert_alone(ids, rows, scales, sequences, is_ours, count)
            with tf.control_dependencies([statuses]):
                release = tf.raw_ops.ConsumeMutexLock(mutex_lock=lock)
            with tf.control_dependencies([release] if release is not None else []):
                return tf.identity(statuses)

    def _upsert_alone(self, ids, rows, scales, sequences, is_ours, count):  # type: ignore[no-untyped-def]
        slots = tf.ensure_shape(self._slots.lookup(ids), ids.shape)
        stored = tf.gather(self._sequences, tf.maximum(slots, 0))
        is_newer = tf.logical_or(slots < 0, sequences > stored)
        is_written = tf.logical_and(is_newer, _is_newest_of_its_id(ids, sequences, is_ours))
        written = tf.where(is_written)[:, 0]
        slots = tf.gather(slots, written)
        is_new = slots < 0
        num_new = tf.math.count_nonzero(is_new)
        with tf.control_dependencies([self._refuse_overflow(num_new)]):
            new_slots = self._allocate(tf.cast(num_new, tf.int32))
        slots = tf.tensor_scatter_nd_update(slots, tf.where(is_new), new_slots)
        scales = tf.gather(scales, written)
        old_scales = _scales(tf.gather(self._packed, slots), self.dim)
        packed = tf.concat([tf.gather(rows, written), tf.bitcast(scales, tf.int8)], axis=1)
        with tf.control_dependencies([new_slots]):  # from here on nothing is refused
            begun = self._begun.assign_add(1, read_value=True)
        with tf.control_dependencies([old_scales, begun]):
            filled = self._write(slots, packed, tf.gather(sequences, written))
        change = tf.cast(scales > 0, tf.int64) - tf.cast(tf.logical_and(~is_new, old_scales > 0), tf.int64)
        ours = tf.where(is_ours, sequences, tf.zeros_like(sequences))
        newest = tf.reduce_max(tf.concat([ours, self._watermark.read_value()[None]], axis=0))
        with tf.control_dependencies(filled):  # readers find filled slots only
            inserted = self._slots.insert(tf.boolean_mask(tf.gather(ids, written), is_new), new_slots)
        with tf.control_dependencies([inserted] if inserted is not None else []):
            updates = [self._size.assign_add(tf.reduce_sum(change)), self._watermark.assign(newest)]
        with tf.control_dependencies(updates):
            done = self._done.assign(begun)
        with tf.control_dependencies([done]):
            took = tf.scatter_nd(written[:, None], tf.where(scales > 0, WRITTEN + 1, WITHDRAWN + 1), [count])
            return tf.where(is_ours, tf.where(took > 0, took - 1, STALE), REFUSED)

    def _refuse_overflow(self, num_new: tf.Tensor) -> tf.Tensor:
        """Raises OUT_OF_RANGE before anything is taken, where the new items do not fit."""

        def refuse() -> tf.Tensor:
            # A counter made here: that of a captured variable has no shape when Python loads the SavedModel.
            full = tf.raw_ops.VarHandleOp(dtype=tf.int64, shape=[], shared_name=f"tfmm_{self.modality}_full")
            assigned = tf.raw_ops.AssignVariableOp(resource=full, value=tf.constant(self.capacity, tf.int64))
            with tf.control_dependencies([assigned] if assigned is not None else []):
                return tf.raw_ops.ResourceCountUpTo(resource=full, limit=self.capacity, T=tf.int64)

        is_full = self._used.read_value() + num_new > self.capacity
        return tf.cond(is_full, refuse, lambda: tf.constant(0, tf.int64))

    def _allocate(self, num_new: tf.Tensor) -> tf.Tensor:
        """Takes slots, int64 [num_new]. Only the holder of the mutex may: two writers would share them."""
        first = self._used.read_value()
        with tf.control_dependencies([first]):
            taken = self._used.assign_add(tf.cast(num_new, tf.int64), read_value=False)
        with tf.control_dependencies([taken] if taken is not None else []):
            return first + tf.range(tf.cast(num_new, tf.int64))

    def status(self) -> dict[str, tf.Tensor]:
        """Returns scalars: `watermark` (newest sequence taken), `size`, `capacity`, `encoder_version`."""
        with tf.device("/CPU:0"):
            return {
                "watermark": self._watermark.read_value(),
                "size": self._size.read_value(),
                "capacity": tf.constant(self.capacity, tf.int64),
                "encoder_version": tf.constant(self.encoder_version),
            }


class FeatureTable(tf.Module):
    """Items' features by item id: a table of packed rows, read as the features that a model looks up.

    Args:
        features: the snapshot that it starts from.
        names: the features to look up, of those that rows hold.
        capacity: the number of items that fit.
        rows_dir: as of `GraphTable`.
    """

    def __init__(
        self,
        features: snapshot.FeatureTable,
        names: typing.Sequence[str],
        capacity: int,
        rows_dir: pathlib.Path | None = None,
    ):
        super().__init__(name=f"{STORED}_reader")
        self._layout, rows = features
        self.names = tuple(names)
        dim = self._layout.dim
        self.table = GraphTable(STORED, rows, dim, capacity, self._layout.version, max_dim=dim, rows_dir=rows_dir)

    def lookup(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the features of items int64 [...]; missing where the table has no such item."""
        return self._unpacked(self.table.lookup(ids))

    def lookup_at_once(self, several: typing.Sequence[tf.Tensor]) -> tuple[list[dict[str, tf.Tensor]], tf.Tensor]:
        """Returns the features of several tensors of ids as of one sequence, int64 [], and that sequence."""
        found, watermark = self.table.lookup_at_once(several)
        return [self._unpacked(rows) for rows in found], watermark

    def _unpacked(self, rows: Vectors) -> dict[str, tf.Tensor]:
        found = self._layout.unpack_tensors(rows)
        return {name: found[name] for name in self.names}


def _verify_values(scales: tf.Tensor, sequences: tf.Tensor) -> list[tf.Operation]:
    """Refuses what would stay for good: a scale that makes NaN of scores, a sequence that no later change passes.

    An index numbers its changes from its birth on, in microseconds since 1970, and makes fewer than one a microsecond:
    no sequence is later than now.
    """
    newest = tf.cast(tf.timestamp() * 1e6, tf.int64) + _AHEAD_US
    is_scale = tf.logical_and(tf.math.is_finite(scales), scales >= 0.0)
    is_sequence = tf.logical_and(sequences > 0, sequences <= newest)
    return [
        tf.debugging.Assert(tf.reduce_all(is_valid), [message, tf.boolean_mask(values, tf.logical_not(is_valid))])
        for is_valid, values, message in (
            (is_scale, scales, "`scales` must be finite and not negative (0 withdraws). Received:"),
            (is_sequence, sequences, "`sequences` must be an index's: positive, and not beyond the present in "
                                     "microseconds since 1970. Received:"),
        )
    ]  # fmt: skip


def _empty_variable(dtype: tf.DType, row_shape: list[int], name: str) -> tf.Variable:
    return tf.Variable(tf.zeros([0, *row_shape], dtype), trainable=False, shape=[None, *row_shape], name=name)


def _scales(packed: tf.Tensor, dim: int) -> tf.Tensor:
    return tf.bitcast(packed[..., dim:], tf.float32)


def _is_newest_of_its_id(ids: tf.Tensor, sequences: tf.Tensor, is_ours: tf.Tensor) -> tf.Tensor:
    """Returns bool [n]: of the rows of ours with the same id, True for the newest, the last one of equals."""
    unique, group = tf.unique(ids, out_idx=tf.int64)
    count = tf.size(unique, tf.int64)
    ranked = tf.where(is_ours, sequences, tf.fill(tf.shape(sequences), tf.int64.min))
    is_newest = tf.logical_and(is_ours, ranked == tf.gather(tf.math.unsorted_segment_max(ranked, group, count), group))
    order = tf.range(tf.size(ids, tf.int64))
    last = tf.math.unsorted_segment_max(tf.where(is_newest, order, -tf.ones_like(order)), group, count)
    return order == tf.gather(last, group)
