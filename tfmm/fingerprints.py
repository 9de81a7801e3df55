"""Ids inside: int64, where an integer id is itself and a string id its 64-bit fingerprint; 0 is missing."""

from __future__ import annotations

import typing

import numpy as np
import tensorflow as tf

from tfmm.features import PADDING


def fingerprint(values: typing.Any) -> np.ndarray:
    """Returns ids as int64: integers as they are, strings as their farmhash64; a string never gives 0.

    Args:
        values: integer or string array-like [n]; None and "" give 0 (missing).

    >>> fingerprint([7, -3])
    array([ 7, -3])
    >>> bool(fingerprint(["a"])[0] == fingerprint([b"a"])[0] != 0)
    True
    """
    # Lists as objects: NumPy's own strings lose NUL characters at their end, and all take the room of the longest.
    array = values if isinstance(values, np.ndarray) else np.asarray(values, object)
    if array.dtype.kind in "iu":
        return array.astype(np.int64)
    ids = ["" if v is None else v for v in array.ravel().tolist()]
    if all(isinstance(v, int | np.integer) or v == "" for v in ids):
        return np.array([0 if v == "" else v for v in ids], np.int64).reshape(array.shape)
    texts = [str(v) if isinstance(v, int) else v for v in ids]
    return fingerprint_strings(tf.constant(texts, tf.string)).numpy().reshape(array.shape)


def fingerprint_strings(ids: tf.Tensor) -> tf.Tensor:
    """Returns int64 fingerprints of string ids, in a graph: "" gives 0, nothing else does."""
    hashed = tf.bitcast(tf.fingerprint(tf.reshape(ids, [-1])), tf.int64)
    hashed = tf.where(hashed == PADDING, tf.ones_like(hashed), hashed)
    hashed = tf.where(tf.reshape(ids, [-1]) == "", tf.zeros_like(hashed), hashed)
    return tf.reshape(hashed, tf.shape(ids))
