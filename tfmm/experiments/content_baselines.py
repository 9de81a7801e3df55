"""Acc@N without any encoder: what pixels or words alone find, on the pairs that the encoders are judged by."""

from __future__ import annotations

import os
import pathlib
import typing

import keras
import numpy as np
import pyarrow.parquet as pq
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.metrics.top_n_accuracy import positive_ranks
from tfmm.pretrain import accuracy, images
from tfmm.pretrain.encoders import make_encoder

_CHUNK = 256
_MAX_WORDS = 20_000


def pixels(config: SCLConfig, pairs_dir: str | os.PathLike[str]) -> dict[str, float]:
    """Returns Acc@1 and Acc@5 of the pictures' own pixels, each channel's mean over the training positives taken off.

    Args:
        config: of the image encoder: its `image_size`.
        pairs_dir: holds train.parquet and heldout.parquet.
    """

    def read(contents: typing.Sequence[bytes]) -> np.ndarray:
        parts = [
            images.decode_images(tf.constant(contents[start : start + _CHUNK], tf.string), config.image_size)[0].numpy()
            for start in range(0, len(contents), _CHUNK)
        ]
        return np.concatenate(parts).astype(np.float32)

    center = read(_column(pairs_dir, "train", "positive")).mean(axis=(0, 1, 2))
    return _acc_at_n(pairs_dir, lambda contents: (read(contents) - center).reshape(len(contents), -1))


def tf_idf(config: SCLConfig, pairs_dir: str | os.PathLike[str]) -> dict[str, float]:
    """Returns Acc@1 and Acc@5 of words weighted by their rarity among the training texts, queries and positives."""
    admit = make_encoder(config).admit  # the same spelling as the encoder reads
    texts = [admit(_column(pairs_dir, "train", side)) for side in ("query", "positive")]
    words = keras.layers.TextVectorization(standardize=None, output_mode="tf_idf", max_tokens=_MAX_WORDS)
    words.adapt(tf.constant([*texts[0], *texts[1]], tf.string))

    def read(contents: typing.Sequence[bytes]) -> np.ndarray:
        found = words(tf.constant(admit(contents), tf.string)).numpy()
        return found[:, 1:]  # not the unknown words, which all share

    return _acc_at_n(pairs_dir, read)


def _acc_at_n(
    pairs_dir: str | os.PathLike[str], read: typing.Callable[[typing.Sequence[bytes]], np.ndarray]
) -> dict[str, float]:
    ids = pq.read_table(pathlib.Path(pairs_dir) / "heldout.parquet", columns=["positive_item_id"])
    queries, positives = (read(_column(pairs_dir, "heldout", side)) for side in ("query", "positive"))
    return accuracy.at_n(positive_ranks(queries, positives, positive_ids=ids["positive_item_id"].to_numpy()))


def _column(pairs_dir: str | os.PathLike[str], split: str, name: str) -> list[typing.Any]:
    return pq.read_table(pathlib.Path(pairs_dir) / f"{split}.parquet", columns=[name])[name].to_pylist()
