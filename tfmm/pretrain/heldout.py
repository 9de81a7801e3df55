"""Pairs that an encoder is judged by: Acc@N over the set of all their positives, and which pairs those are."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from tfmm.data import behaviors
from tfmm.metrics.top_n_accuracy import positive_ranks
from tfmm.pretrain.encoders import Encoder
from tfmm.pretrain.pair_table import NONE, ContentTable, PairTable, read_pairs
from tfmm.training import precision

ENCODE_CHUNK = 256
_VALIDATION = 0x56616C  # makes the draw of items kept back another than that of items held out
MIN_PAIRS = 2


class Vectors(typing.NamedTuple):
    """What an encoder makes of the pairs, float32 [n, D] each; of an item always its first content."""

    queries: np.ndarray
    positives: np.ndarray


class Heldout:
    """Pairs, ready to be ranked by the encoder as it is, again and again.

    Args:
        encoder: whose vectors are asked for.
        path: a Parquet file of pairs.
    """

    def __init__(self, encoder: Encoder, path: pathlib.Path) -> None:
        self._take(encoder, *load(encoder, path))

    @classmethod
    def of(cls, encoder: Encoder, pairs: PairTable, contents: ContentTable) -> Heldout:
        """Returns pairs that are in memory."""
        made = cls.__new__(cls)
        made._take(encoder, pairs, contents, 0)
        return made

    def _take(self, encoder: Encoder, pairs: PairTable, contents: ContentTable, unusable: int) -> None:
        self.encoder, self.pairs, self.contents, self.unusable = encoder, pairs, contents, unusable
        _, first, own = np.unique(pairs.item_ids, return_index=True, return_inverse=True)
        self.num_items = len(first)
        self.positive = pairs.positive[first][own]  # one content per item
        self._rows, inverse = np.unique(np.concatenate([pairs.query, self.positive]), return_inverse=True)
        self._query_place, self._positive_place = np.split(inverse, 2)

    def vectors(self) -> Vectors:
        """Returns the vectors of queries and positives, by the encoder as it is now."""
        found = self.encode(self._rows)
        return Vectors(found[self._query_place], found[self._positive_place])

    def encode(self, rows: np.ndarray) -> np.ndarray:
        """Returns float32 [m, D] of int64 [m] rows of the contents."""
        with precision.in_float32(self.encoder.model):
            chunks = [
                self.encoder.model(
                    list(self.contents.fetch(rows[start : start + ENCODE_CHUNK])), training=False
                ).numpy()
                for start in range(0, len(rows), ENCODE_CHUNK)
            ]
        return np.concatenate(chunks)

    def ranks(self, vectors: Vectors | None = None) -> np.ndarray:
        """Returns int64 [n]: each pair's positive among all positives, by vectors or by the encoder as it is now."""
        found = self.vectors() if vectors is None else vectors
        return positive_ranks(*found, positive_ids=self.pairs.item_ids)


def load(encoder: Encoder, path: pathlib.Path) -> tuple[PairTable, ContentTable, int]:
    """Returns the pairs of a file that the encoder can use, their contents, and how many of these it cannot."""
    pairs = read_pairs(path)
    contents = ContentTable(encoder, pairs.contents)
    pairs = pairs.without(~contents.valid)
    unusable = int((~contents.valid).sum())
    if len(pairs) < MIN_PAIRS:
        raise ValueError(
            f"{path} must hold at least two pairs that can be used. Received: {len(pairs)} "
            f"({unusable} contents could not be decoded)."
        )
    return pairs, contents, unusable


def keep_back(pairs: PairTable, fraction: float, seed: int) -> tuple[PairTable, PairTable]:
    """Splits training pairs by positive item: no item that is kept back takes part in training, as query or otherwise.

    Nor does another item of the same content; its pairs are on neither side.

    Args:
        pairs: those to train on.
        fraction: of their items, drawn by a seeded hash whatever the pairs hold.
        seed: of the draw.
    Returns:
        The pairs to train on, and those kept back.
    Raises:
        ValueError: fewer than two pairs on a side.
    """
    draw = behaviors.tie_break(pairs.item_ids, np.full(len(pairs), seed + _VALIDATION)) >> np.uint64(11)
    is_back = draw.astype(np.float64) / 2.0**53 < fraction
    contents = np.zeros(len(pairs.contents), bool)
    contents[pairs.positive[is_back]] = True
    negative = np.where((pairs.negative != NONE) & contents[pairs.negative], NONE, pairs.negative)
    left = dataclasses.replace(pairs, negative=negative).only(
        ~(is_back | contents[pairs.query] | contents[pairs.positive])
    )
    back = pairs.only(is_back)
    if min(len(left), len(back)) < MIN_PAIRS:
        raise ValueError(
            f"`validation_fraction` must leave at least two pairs to train on and two to validate by. Received: "
            f"{fraction}, which makes {len(left)} and {len(back)} of {len(pairs)}. Change it, or train on more pairs."
        )
    return left, back
