"""The memory bank: a ring of the newest K encoded positives, the negatives of equation 1."""

from __future__ import annotations

import tensorflow as tf

from tfmm.training import replicas

EMPTY = 0  # the item id of a slot never filled; no item has it


def ring_slots(position: tf.Tensor, count: tf.Tensor, size: int) -> tf.Tensor:
    """Returns int64 [count], the slots of a ring of `size` that `count` rows fill from `position` on.

    >>> ring_slots(tf.constant(6, tf.int64), tf.constant(4), 8).numpy().tolist()
    [6, 7, 0, 1]
    """
    return (tf.cast(position, tf.int64) + tf.range(tf.cast(count, tf.int64))) % size


class MemoryBank(tf.Module):
    """Keeps the newest K keys with their item ids; any K, also one that the batch size does not divide.

    The item ids mask false negatives: older copies of a query's own positive. Under tf.distribute every
    replica holds the same bank and adds the keys of all replicas, each to its own copy in place.

    Args:
        size: int K >= 1.
        dim: int D.
        dtype: of the keys: float32, or 16 bits for half the memory; in a cluster they are float32 all the same.
    Attributes:
        keys: float [K, D], L2-normalized where filled.
        item_ids: int64 [K], 0 where never filled.
        position: int64, the slot that the next key goes to.
    """

    def __init__(self, size: int, dim: int, dtype: str = "float32") -> None:
        super().__init__()
        if size < 1:
            raise ValueError(
                f"`size` must be at least 1. Received: {size}. Train without a bank instead of an empty one."
            )
        self.size = size
        dtype = "float32" if replicas.is_cluster() else dtype
        self.keys = tf.Variable(tf.zeros([size, dim], dtype), name="keys", trainable=False)
        self.item_ids = tf.Variable(tf.zeros([size], tf.int64), name="item_ids", trainable=False)
        self.position = tf.Variable(0, dtype=tf.int64, name="position", trainable=False)

    @property
    def filled(self) -> tf.Tensor:
        """True where a slot holds a key, bool [K]."""
        return tf.not_equal(self.item_ids, EMPTY)

    def enqueue(self, keys: tf.Tensor, item_ids: tf.Tensor) -> None:
        """Puts a batch over the oldest keys; of more than K only the last K stay.

        Args:
            keys: float32 [B, D], L2-normalized; no gradient flows back.
            item_ids: int64 [B], not 0.
        """
        keys = tf.cast(replicas.gather(tf.stop_gradient(keys)), self.keys.dtype)
        item_ids = replicas.gather(tf.cast(item_ids, tf.int64))
        count = tf.shape(keys, tf.int64)[0]
        dropped = tf.maximum(count - self.size, 0)
        slots = ring_slots(self.position + dropped, count - dropped, self.size)
        # In place: a bank of 196,800 keys is not copied each step.
        self.keys.scatter_update(tf.IndexedSlices(keys[dropped:], slots))
        self.item_ids.scatter_update(tf.IndexedSlices(item_ids[dropped:], slots))
        self.position.assign((self.position + count) % self.size)
