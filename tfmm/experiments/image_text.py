"""Contrast of a picture with its own description (CLIP), from our encoders: what the catalog alone can teach.

It stands beside semantic-aware pre-training as CLIP-E does in table 2: the same nets, optimizer and number of pairs,
and no search, no purchase.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import typing

import keras
import numpy as np
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.data import as_known, schema
from tfmm.fingerprints import fingerprint
from tfmm.losses import InfoNCE
from tfmm.modalities import ModalitySet
from tfmm.pretrain import accuracy
from tfmm.pretrain.encoders import make_encoder
from tfmm.pretrain.pair_table import ContentTable, read_pairs
from tfmm.pretrain.plan import make_plan
from tfmm.pretrain.scl import make_optimizer
from tfmm.pretrain.train import Heldout
from tfmm.training import loop
from tfmm.training.progress import Progress, silent

IMAGE, TEXT = SIDES = ("image", "text")
Folder = str | os.PathLike[str]


def fit(
    configs: typing.Mapping[str, SCLConfig],
    data_dir: Folder,
    pairs_dir: Folder,
    modality_set: ModalitySet,
    time_zone: str = "UTC",
    progress: Progress = silent,
) -> dict[str, dict[str, float]]:
    """Trains an image and a text encoder on the catalog's pictures and titles, and judges each on held-out pairs.

    The loss is InfoNCE over the batch, picture to title and title to picture, with one learnable temperature. Items
    that are positives of a held-out pair are left out, as they are of SCL. As many pairs are seen as SCL would see, and
    both have the image encoder's dim. The catalog's pictures and titles are read at once.

    Args:
        configs: of modalities `image` and `text`.
        data_dir: the tables.
        pairs_dir: a folder of pairs per modality.
        modality_set: from which columns of items the encoders read.
        time_zone: of items' versions, where their times name none.
        progress: stage name "image_text".
    Returns:
        Acc@1 and Acc@5 per modality.
    Raises:
        ValueError: fewer than two items have both.
    """
    pairs = {side: read_pairs(_file(pairs_dir, side, "train")) for side in SIDES}
    columns = [modality_set[side].content for side in SIDES]
    tables = schema.documented(modality_set)
    items = as_known.read_table(os.fspath(data_dir), "items", time_zone, ["item_id", *columns], tables)
    held_out = np.concatenate([read_pairs(_file(pairs_dir, side, "heldout")).item_ids for side in SIDES])
    kept = ~np.isin(fingerprint(items["item_id"].to_pylist()), held_out)
    encoders = {side: make_encoder(dataclasses.replace(configs[side], dim=configs[IMAGE].dim)) for side in SIDES}
    contents = {
        side: ContentTable(encoders[side], [value or b"" for value in items[column].to_pylist()])
        for side, column in zip(SIDES, columns, strict=True)
    }
    rows = np.flatnonzero(kept & np.all([table.valid for table in contents.values()], axis=0))
    if len(rows) < 2:
        raise ValueError(f"At least two items must have a picture and a title. Received: {len(rows)}.")
    image, of = configs[IMAGE], pairs[IMAGE]
    plan = make_plan(image, of.query, of.positive, of.item_ids)
    batch_size = min(image.batch_size, len(rows))
    steps = max(1, plan.epochs * plan.pairs_per_epoch // batch_size)
    _train(image, encoders, contents, rows, batch_size, steps, progress)
    return {side: accuracy.at_n(Heldout(encoders[side], _file(pairs_dir, side, "heldout")).ranks()) for side in SIDES}


def _train(
    config: SCLConfig,
    encoders: typing.Mapping[str, typing.Any],
    tables: typing.Mapping[str, ContentTable],
    rows: np.ndarray,
    batch_size: int,
    steps: int,
    progress: Progress,
) -> None:
    info_nce = InfoNCE(temperature=config.temperature, in_batch_negatives=True)
    info_nce.build((None, config.dim), (None, config.dim))
    models = [encoders[side].model for side in SIDES]
    trained = [v for model in models for v in model.trainable_variables] + list(info_nce.trainable_variables)
    optimizer: keras.optimizers.Optimizer = make_optimizer(config, steps)
    optimizer.exclude_from_weight_decay([variable for variable in trained if len(variable.shape) < 2])
    optimizer.build(trained)

    @tf.function(reduce_retracing=True)
    def step(places: tf.Tensor) -> tf.Tensor:
        features = [tables[side].fetch(places) for side in SIDES]
        with tf.GradientTape() as tape:
            pictures, titles = (model(list(one), training=True) for model, one in zip(models, features, strict=True))
            loss = 0.5 * (info_nce(pictures, titles) + info_nce(titles, pictures))
            loop.apply_gradients(tape, loss, trained, optimizer)
        return loss

    rng = np.random.default_rng(config.seed)
    order = np.concatenate([rng.permutation(rows) for _ in range(-(-steps * batch_size // len(rows)))])
    for number in range(steps):
        loss = step(tf.constant(order[number * batch_size : (number + 1) * batch_size]))
        if number % 100 == 0:
            progress("image_text", number, steps, loss=float(loss))


def _file(pairs_dir: Folder, side: str, split: str) -> pathlib.Path:
    return pathlib.Path(pairs_dir) / side / f"{split}.parquet"
