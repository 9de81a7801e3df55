"""What a training step asks of the other replicas: their rows, and how many of them count.

Each replica sees its part of the global batch. A step's losses are means that are weighed so that their mean over the
replicas is the mean over the global batch; `loop.apply_gradients` and the loop's history take that mean. With one
replica every function here gives back what it is given.
"""

from __future__ import annotations

import tensorflow as tf


def count() -> int:
    """Returns how many replicas train together."""
    return tf.distribute.get_strategy().num_replicas_in_sync


def is_cluster() -> bool:
    """Returns whether several processes train together, so that new variables are sent from the chief to the others.

    TensorFlow sends neither int8 nor bfloat16.
    """
    return isinstance(tf.distribute.get_strategy(), tf.distribute.MultiWorkerMirroredStrategy)


def mean(value: tf.Tensor) -> tf.Tensor:
    """Returns the mean over the replicas of float []: what divides a sum over this replica's rows.

    A sum over the rows here, divided by the mean number of rows that count, has as its mean over the replicas the mean
    over all rows that count, however they are spread.
    """
    if count() == 1:
        return value
    return _context().all_reduce(tf.distribute.ReduceOp.MEAN, value)


def total(value: tf.Tensor) -> tf.Tensor:
    """Returns the sum over the replicas of a tensor that each has."""
    if count() == 1:
        return value
    return _context().all_reduce(tf.distribute.ReduceOp.SUM, value)


def gather(rows: tf.Tensor) -> tf.Tensor:
    """Returns the rows float32 or int64 [B, ...] of all replicas, in the global batch's order.

    Gradients reach the replica of each.
    """
    if count() == 1:
        return rows
    return _context().all_gather(tf.identity(rows), axis=0)  # on this replica's device, which a batch need not be


def _context() -> tf.distribute.ReplicaContext:
    context = tf.distribute.get_replica_context()
    if context is None:
        raise RuntimeError("What replicas do together must be called inside a step of `loop.run`.")
    return context
