"""Semantic-aware contrastive learning: InfoNCE over a memory bank, triplet loss on hard negatives (section 3).

Differs from the paper: see `tfmm.pretrain.contrastive` for the bank. Hard negatives enter by the triplet loss alone.
Negatives with the positive's own item id are left out: an item is bought after several queries.
"""

from __future__ import annotations

import typing

import keras
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.pretrain.contrastive import ContrastiveLearner
from tfmm.pretrain.encoders import Encoder, Features
from tfmm.training import loop, precision, replicas


class Batch(typing.NamedTuple):
    """One step's pairs.

    Attributes:
        query, positive, negative: features as the encoder's model takes them; `negative` is empty where no
            pair of the whole data has a hard negative.
        has_negative: bool [B]; where False the row of `negative` is there to fill the batch.
        item_ids: int64 [B], item of each positive.
    """

    query: Features
    positive: Features
    negative: Features
    has_negative: tf.Tensor
    item_ids: tf.Tensor


class SCL:
    """Everything that training changes: the learner, see `ContrastiveLearner`, and its optimizer.

    Args:
        config: the stage's settings.
        encoder: trained in place.
        total_steps: int, over which the learning rate falls.
    """

    def __init__(self, config: SCLConfig, encoder: Encoder, total_steps: int) -> None:
        if replicas.count() > 1 and (config.clip_norm or config.accumulate > 1):
            raise ValueError(
                "`clip_norm` and `accumulate` are for one device, where Keras's optimizer sees the whole gradient. "
                f"Received: clip_norm={config.clip_norm}, accumulate={config.accumulate}, {replicas.count()} devices. "
                "Leave them out."
            )
        self.config = config
        self.encoder = encoder
        self.learner = ContrastiveLearner(
            encoder.model,
            memory_bank_size=config.memory_bank_size,
            momentum=config.momentum,
            in_batch_negatives=config.in_batch_negatives,
            temperature=config.temperature,
            triplet_weight=config.triplet_weight,
            triplet_margin=config.triplet_margin,
            normalize=False,
            key_model=encoder.build_model() if config.memory_bank_size else None,
        )
        self.trainable = self.learner.trainable_variables
        optimizer = make_optimizer(config, total_steps)
        optimizer.exclude_from_weight_decay([v for v in self.trainable if len(v.shape) < 2])
        self.optimizer = precision.scaled(optimizer)
        self.optimizer.build(self.trainable)

    def variables(self) -> dict[str, list[typing.Any]]:
        """Returns every variable that a step changes, by group, for a Checkpoint."""
        return {**self.learner.variables(), "optimizer": self.optimizer.variables}

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Takes one step and returns loss, info_nce, triplet and temperature, float []."""
        keys = self.learner.encode_keys(batch.positive)
        with tf.GradientTape() as tape:
            info_nce, triplet = self.losses(batch, keys)
            loss = info_nce + self.config.triplet_weight * triplet
            is_clipped = self.config.clip_norm > 0.0
            loop.apply_gradients(tape, loss, self.trainable, self.optimizer, is_dense=is_clipped)
        self.learner.advance(keys, batch.item_ids, self._is_update())
        return {"loss": loss, "info_nce": info_nce, "triplet": triplet, "temperature": self.learner.temperature}

    def _is_update(self) -> tf.Tensor | None:
        """Returns whether the step moved the weights, bool []; None: each does."""
        if self.config.accumulate == 1:
            return None
        optimizer = self.optimizer.optimizer if isinstance(self.optimizer, precision.LossScaled) else self.optimizer
        return tf.equal(optimizer._iterations.value % self.config.accumulate, 0)

    def losses(self, batch: Batch, keys: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns InfoNCE and triplet loss, float [], of a batch, see `ContrastiveLearner.losses`."""
        return self.learner.losses(
            batch.query,
            batch.positive,
            batch.item_ids,
            keys,
            negative=batch.negative,
            has_negative=batch.has_negative,
        )


def make_optimizer(config: SCLConfig, total_steps: int) -> keras.optimizers.Optimizer:
    """Returns AdamW with a warm-up and a cosine decay of the learning rate."""
    warm_up = min(config.warm_up_steps, total_steps // 10)
    schedule = keras.optimizers.schedules.CosineDecay(
        config.learning_rate * (config.final_learning_rate if warm_up else 1.0),
        max(total_steps - warm_up, 1),
        alpha=config.final_learning_rate,
        warmup_target=config.learning_rate if warm_up else None,
        warmup_steps=warm_up,
    )
    return keras.optimizers.AdamW(
        schedule,
        weight_decay=config.weight_decay,
        global_clipnorm=config.clip_norm or None,
        gradient_accumulation_steps=config.accumulate if config.accumulate > 1 else None,
    )
