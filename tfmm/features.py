"""The one table of the click model's features; every parse spec and signature derives from it.

Ids are int64 inside: an integer id is itself, a string id its 64-bit fingerprint; 0 stands for padding and missing.
`preprocess` is a pure function of tensors, called by Transform's `preprocessing_fn` and by training without TFX alike.
"""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import tensorflow as tf

PADDING = 0  # id and index of padding and of a missing value
OUT_OF_VOCABULARY = 1  # index of an id that the vocabulary lacks


@dataclasses.dataclass(frozen=True)
class Feature:
    """One column of an example."""

    name: str
    role: str  # user, target, behavior, context or label
    vocabulary: str | None = None  # the vocabulary that turns its ids into indices
    index: str | None = None  # the name of the transformed column that holds those indices

    @property
    def is_sequence(self) -> bool:
        return self.role == "behavior"


FEATURES = (
    Feature("user_id", "user", "user_id", "user_index"),
    Feature("item_id", "target", "item_id", "item_index"),
    Feature("category", "target", "category", "category_index"),
    Feature("behavior_item_ids", "behavior", "item_id", "behavior_item_index"),
    Feature("behavior_categories", "behavior", "category", "behavior_category_index"),
    Feature("timestamp", "context"),
    Feature("label", "label"),
)
VOCABULARIES = ("user_id", "item_id", "category")
LABEL = "label"


def raw_spec(max_behaviors: int) -> dict[str, tf.io.FixedLenFeature]:
    """Returns the parse spec of raw examples: int64 [] per example, or int64 [L] for behaviors."""
    return {
        f.name: tf.io.FixedLenFeature([max_behaviors] if f.is_sequence else [], tf.int64) for f in FEATURES
    }


def transformed_spec(max_behaviors: int) -> dict[str, tf.io.FixedLenFeature]:
    """Returns the parse spec of transformed examples: the raw columns and their indices."""
    spec = raw_spec(max_behaviors)
    for f in FEATURES:
        if f.index is not None:
            spec[f.index] = spec[f.name]
    return spec


def preprocess(
    raw: typing.Mapping[str, tf.Tensor], lookups: typing.Mapping[str, typing.Callable[[tf.Tensor], tf.Tensor]]
) -> dict[str, tf.Tensor]:
    """Adds vocabulary indices to raw columns.

    Args:
        raw: int64 tensors by feature name, of any shape; missing columns are left out of the result.
        lookups: per vocabulary, a function from int64 ids to int64 vocabulary lines, -1 where the id is unknown.
    Returns:
        `raw` and, for each feature with a vocabulary, int64 indices: 0 padding, 1 unknown, 2.. vocabulary line + 2.
    """
    result = dict(raw)
    for f in FEATURES:
        if f.index is not None and f.name in raw:
            ids = raw[f.name]
            result[f.index] = tf.where(
                ids == PADDING, tf.zeros_like(ids), lookups[str(f.vocabulary)](ids) + 2
            )
    return result


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


def vocabulary_lookup(path: str) -> tuple[typing.Callable[[tf.Tensor], tf.Tensor], int]:
    """Loads a vocabulary file (one int64 id a line) as a lookup for `preprocess`.

    Returns:
        The table's `lookup` (a tf.Module that uses it must track `lookup.__self__`), and the number of indices that
        `preprocess` can give with it (lines + 2).
    """
    with tf.io.gfile.GFile(path) as file:
        lines = [int(line) for line in file.read().split()]
    return lookup_from_ids(np.asarray(lines, np.int64))


def lookup_from_ids(ids: np.ndarray) -> tuple[typing.Callable[[tf.Tensor], tf.Tensor], int]:
    """As `vocabulary_lookup`, from the ids themselves, int64 [n]."""
    table = tf.lookup.StaticHashTable(
        tf.lookup.KeyValueTensorInitializer(tf.constant(ids, tf.int64), tf.range(len(ids), dtype=tf.int64)),
        default_value=-1,
    )
    return table.lookup, len(ids) + 2
