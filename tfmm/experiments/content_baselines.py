"""Acc@N without any encoder: what pixels or words alone find, on the pairs that the encoders are judged by."""

from __future__ import annotations

import os
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.metrics.top_n_accuracy import positive_ranks
from tfmm.pretrain import accuracy, images
from tfmm.pretrain.encoder import Encoder
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.pair_table import ContentTable, PairTable, read_pairs

_CHUNK = 256
MAX_WORDS = 8_192  # the most frequent ones of the training texts
MAX_PICTURES = 20_000  # of the training pairs, whose mean is taken off

Read = typing.Callable[[typing.Sequence[bytes]], np.ndarray]


def pixels(config: SCLConfig, pairs_dir: str | os.PathLike[str]) -> dict[str, float]:
    """Returns Acc@1 and Acc@5 of the pictures' own pixels, without the mean color of the training pictures.

    Args:
        config: of the image encoder: its `image_size`.
        pairs_dir: holds train.parquet and heldout.parquet.
    """
    encoder = make_encoder(config)

    def read(contents: typing.Sequence[bytes]) -> np.ndarray:
        decoded, _ = images.decode_images(tf.constant(encoder.admit(contents), tf.string), config.image_size)
        return decoded.numpy().astype(np.float32)

    shown = _pairs(encoder, pairs_dir, "train").contents[:MAX_PICTURES]
    parts = [shown[start : start + _CHUNK] for start in range(0, len(shown), _CHUNK)]
    center = sum(read(part).sum(axis=(0, 1, 2), dtype=np.float64) for part in parts)
    center = center / (len(shown) * config.image_size**2)
    return _acc_at_n(encoder, pairs_dir, lambda contents: (read(contents) - center).reshape(len(contents), -1))


def tf_idf(config: SCLConfig, pairs_dir: str | os.PathLike[str]) -> dict[str, float]:
    """Returns Acc@1 and Acc@5 of words weighted by their rarity among the training texts, queries and positives."""
    encoder = make_encoder(config)  # the same spelling as the encoder reads
    words = keras.layers.TextVectorization(standardize=None, output_mode="tf_idf", max_tokens=MAX_WORDS)
    texts = encoder.admit(_pairs(encoder, pairs_dir, "train").contents)
    words.adapt(tf.data.Dataset.from_tensor_slices(tf.constant(texts, tf.string)).batch(_CHUNK))

    def read(contents: typing.Sequence[bytes]) -> np.ndarray:
        found = words(tf.constant(encoder.admit(contents), tf.string)).numpy()
        return found[:, 1:]  # not the unknown words, which all share

    return _acc_at_n(encoder, pairs_dir, read)


def _pairs(encoder: Encoder, pairs_dir: str | os.PathLike[str], split: str) -> PairTable:
    """Returns the pairs that the encoder can use."""
    pairs = read_pairs(pathlib.Path(pairs_dir) / f"{split}.parquet")
    return pairs.without(~ContentTable(encoder, pairs.contents).valid)


def _acc_at_n(encoder: Encoder, pairs_dir: str | os.PathLike[str], read: Read) -> dict[str, float]:
    pairs = _pairs(encoder, pairs_dir, "heldout")
    used, place = np.unique(np.concatenate([pairs.query, pairs.positive]), return_inverse=True)
    contents = [pairs.contents[row] for row in used]
    rows = np.concatenate([read(contents[start : start + _CHUNK]) for start in range(0, len(contents), _CHUNK)])
    query, positive = np.split(place, 2)
    return accuracy.at_n(positive_ranks(rows[query], rows[positive], positive_ids=pairs.item_ids))
