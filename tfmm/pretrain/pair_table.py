"""Query -> purchased item pairs in memory: every distinct content once, decoded once where it fits."""

from __future__ import annotations

import dataclasses
import hashlib
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from tfmm.pretrain.encoders import Encoder, Features
from tfmm.pretrain.texts import MAX_TOKENS

NONE = -1  # no hard negative
PREPARE_CHUNK = 512
MAX_PREPARED_BYTES = 2 * 2**30  # beyond that contents are prepared batch by batch, again in every epoch
COLUMNS = ("query", "positive", "negative")
CATEGORY = "positive_category"  # of pairs that say one


@dataclasses.dataclass(frozen=True)
class PairTable:
    """Pairs as row numbers into one list of distinct contents.

    Attributes:
        contents: the distinct images or texts, as bytes.
        query: int64 [n], row in `contents`.
        positive: int64 [n].
        negative: int64 [n], -1 where the pair has no hard negative.
        item_ids: int64 [n], fingerprint of the positive's item id.
        categories: object [n], text of the positive's category, None where it has none; None: no pair says one.
    """

    contents: list[bytes]
    query: np.ndarray
    positive: np.ndarray
    negative: np.ndarray
    item_ids: np.ndarray
    categories: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.query)

    @property
    def has_negatives(self) -> bool:
        return bool((self.negative != NONE).any())

    def without(self, unusable: np.ndarray) -> PairTable:
        """Leaves out pairs whose query or positive is `unusable`, bool [contents], and such negatives."""
        negative = np.where((self.negative != NONE) & unusable[self.negative], NONE, self.negative)
        kept = ~(unusable[self.query] | unusable[self.positive])
        return dataclasses.replace(self, negative=negative).only(kept)

    def only(self, kept: np.ndarray) -> PairTable:
        """Leaves the pairs that `kept`, bool [n], says; their contents keep their rows."""
        names = ["query", "positive", "negative", "item_ids", *([] if self.categories is None else ["categories"])]
        return dataclasses.replace(self, **{name: getattr(self, name)[kept] for name in names})


def read_pairs(path: pathlib.Path) -> PairTable:
    """Reads a Parquet file of pairs: query, positive, negative (binary or string, negative nullable),
    positive_item_id, and perhaps positive_category.

    Raises:
        ValueError: a column is missing, or a query, positive or item id is null.
    """
    if not path.exists():
        raise ValueError(
            f"`pairs_dir` must hold train.parquet and heldout.parquet, as build_pairs writes them. Missing: {path}."
        )
    table = pq.read_table(path, read_dictionary=list(COLUMNS))  # a content that many pairs share is held once
    missing = [name for name in (*COLUMNS[:2], "positive_item_id") if name not in table.column_names]
    if missing:
        raise ValueError(f"{path} must have the columns query, positive and positive_item_id. Missing: {missing}.")
    for name in ("query", "positive", "positive_item_id"):
        if table[name].null_count:
            raise ValueError(f"{path}: column {name!r} must have no null. Received: {table[name].null_count} nulls.")
    contents, places, size = [pa.array([], pa.large_binary())], [np.zeros(0, np.int64)], 0
    for name in COLUMNS:
        absent = [pa.nulls(len(table), pa.binary())]
        for chunk in table[name].chunks if name in table.column_names else absent:
            encoded = chunk if pa.types.is_dictionary(chunk.type) else chunk.dictionary_encode()
            place = encoded.indices.fill_null(NONE).to_numpy().astype(np.int64)
            places.append(np.where(place == NONE, NONE, place + size))
            contents.append(encoded.dictionary.cast(pa.large_binary()))
            size += len(encoded.dictionary)
    distinct = pa.concat_arrays(contents).dictionary_encode()  # of chunks and columns together
    row_of = np.append(distinct.indices.to_numpy().astype(np.int64), NONE)
    query, positive, negative = row_of[np.concatenate(places)].reshape(len(COLUMNS), len(table))
    item_ids = table["positive_item_id"].to_numpy().astype(np.int64)
    said = table[CATEGORY].to_pylist() if CATEGORY in table.column_names else None
    categories = None if said is None else np.array([None if one is None else str(one) for one in said], object)
    return PairTable(distinct.dictionary.to_pylist(), query, positive, negative, item_ids, categories)


class ContentTable:
    """Makes batches of features from rows of the contents; prepared once and kept where that fits in memory.

    Args:
        encoder: knows how to preprocess.
        contents: the distinct contents.
        max_prepared_bytes: the memory that prepared features may take.
    Attributes:
        valid: bool [n], True where a content can be used.
    """

    def __init__(self, encoder: Encoder, contents: list[bytes], max_prepared_bytes: int = MAX_PREPARED_BYTES) -> None:
        self.encoder = encoder
        chunks, valid, size = [], [], 0
        for start in range(0, len(contents), PREPARE_CHUNK):
            admitted = encoder.admit(contents[start : start + PREPARE_CHUNK])
            features, usable = encoder.prepare(tf.constant(admitted, tf.string))
            valid.append(usable.numpy())
            size += sum(feature.numpy().nbytes for feature in features)
            if size <= max_prepared_bytes:
                chunks.append([feature.numpy() for feature in features])
        self.valid = np.concatenate(valid) if valid else np.zeros(0, bool)
        self.is_prepared = size <= max_prepared_bytes
        self._prepared = tuple(tf.constant(_stack(columns)) for columns in zip(*chunks)) if self.is_prepared else ()
        self._raw = None if self.is_prepared else tf.constant(encoder.admit(contents), tf.string)

    def fetch(self, rows: tf.Tensor) -> Features:
        """Returns what the model takes for int64 [B] rows of the contents; works inside tf.data."""
        if self.is_prepared:
            return self.encoder.finish(tuple(tf.gather(column, rows) for column in self._prepared))
        prepared, _ = self.encoder.prepare(tf.gather(self._raw, rows))
        # One width for all batches, or the training step would be compiled for each.
        return self.encoder.finish(
            tuple(
                tf.ensure_shape(tf.pad(c, [[0, 0], [0, MAX_TOKENS - tf.shape(c)[1]]]), [None, MAX_TOKENS])
                if c.shape.rank == 2 and c.shape[1] is None
                else c
                for c in prepared
            )
        )


def _stack(chunks: tuple[np.ndarray, ...]) -> np.ndarray:
    """Joins chunks [n, T, ...] of different T, padded with 0."""
    if chunks[0].ndim == 2:
        longest = max(chunk.shape[1] for chunk in chunks)
        chunks = tuple(np.pad(chunk, [(0, 0), (0, longest - chunk.shape[1])]) for chunk in chunks)
    return np.concatenate(chunks)


def content_hash(*paths: pathlib.Path) -> str:
    """Returns a hash of the files' bytes."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
