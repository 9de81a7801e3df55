"""Semantic-aware contrastive learning: InfoNCE over a memory bank, triplet loss on hard negatives (section 3).

Differs from the paper: with `in_batch_negatives` (the default) the positive and the other positives of the
batch come from the encoder that is trained and get a gradient, and only the bank holds keys of the momentum
encoder. In `in_batch_negatives=False` all keys are the momentum encoder's, as in MoCo. Hard negatives enter
by the triplet loss alone. Negatives with the positive's own item id are left out: an item is bought after
several queries.
"""

from __future__ import annotations

import typing

import keras
import tensorflow as tf

from tfmm.config import SCLConfig
from tfmm.losses import InfoNCE, TripletLoss
from tfmm.pretrain.encoders import Encoder, Features
from tfmm.pretrain.memory_bank import MemoryBank
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
    """Everything that training changes: encoder, momentum encoder, memory bank, temperature and optimizer.

    Args:
        config: the stage's settings.
        encoder: trained in place.
        total_steps: int, over which the learning rate falls.
    """

    def __init__(self, config: SCLConfig, encoder: Encoder, total_steps: int) -> None:
        self.config = config
        self.encoder = encoder
        dtype = precision.compute_dtype()
        self.info_nce = InfoNCE(
            temperature=config.temperature,
            in_batch_negatives=config.in_batch_negatives,
            gemm_dtype="bfloat16" if dtype == "bfloat16" else "float32",  # exp(cosine / temperature) leaves float16
        )
        self.triplet = TripletLoss(margin=config.triplet_margin)
        self.info_nce.build((None, config.dim), (None, config.dim))
        self.bank = MemoryBank(config.memory_bank_size, config.dim, dtype) if config.memory_bank_size else None
        self.key_model: typing.Any = None
        if self.bank is not None:
            self.key_model = encoder.build_model()
            self.key_model.set_weights(encoder.model.get_weights())
        self.trainable = [*encoder.model.trainable_variables, *self.info_nce.trainable_variables]
        optimizer = make_optimizer(config, total_steps)
        optimizer.exclude_from_weight_decay([v for v in self.trainable if len(v.shape) < 2])
        self.optimizer = precision.scaled(optimizer)
        self.optimizer.build(self.trainable)

    def variables(self) -> dict[str, list[typing.Any]]:
        """Returns every variable that a step changes, by group, for a Checkpoint."""
        groups = {
            "encoder": self.encoder.model.variables,
            "info_nce": self.info_nce.variables,
            "optimizer": self.optimizer.variables,
        }
        if self.bank is not None:
            groups["key_encoder"] = self.key_model.variables
            groups["memory_bank"] = [self.bank.keys, self.bank.item_ids, self.bank.position]
        return groups

    def train_step(self, batch: Batch) -> dict[str, tf.Tensor]:
        """Takes one step and returns loss, info_nce, triplet and temperature, float []."""
        keys = None if self.key_model is None else self.encode_keys(batch.positive)
        with tf.GradientTape() as tape:
            info_nce, triplet = self.losses(batch, keys)
            loss = info_nce + self.config.triplet_weight * triplet
            loop.apply_gradients(tape, loss, self.trainable, self.optimizer)
        if self.bank is not None:
            self.bank.enqueue(keys, batch.item_ids)
            self.follow()
        return {
            "loss": loss,
            "info_nce": info_nce,
            "triplet": triplet,
            "temperature": tf.exp(self.info_nce.log_temperature.value),
        }

    def losses(self, batch: Batch, keys: tf.Tensor | None) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns InfoNCE and triplet loss, float [], of a batch.

        On several replicas negatives are those of the global batch, and the mean over the replicas of what each returns
        is the loss of that batch.

        Args:
            batch: as `train_step` takes it; this replica's part.
            keys: float32 [B, D] of the momentum encoder for `batch.positive`; None without a bank.
        """
        with_triplet = bool(batch.negative) and self.config.triplet_weight > 0.0
        groups = [batch.query]
        if self.config.in_batch_negatives:
            groups.append(batch.positive)
        if with_triplet:
            groups.append(batch.negative)
        # One call for all: batch normalization sees queries and items together.
        features = [tf.concat(columns, axis=0) for columns in zip(*groups)]
        vectors = tf.split(self.encoder.model(features, training=True), len(groups))
        queries, negatives = vectors[0], vectors[-1]
        positives = vectors[1] if self.config.in_batch_negatives else tf.stop_gradient(keys)
        among: dict[str, typing.Any] = {"positive_ids": batch.item_ids}
        if self.bank is not None:
            among |= {"memory_bank": self.bank.keys, "memory_bank_ids": self.bank.item_ids}
            among["memory_bank_mask"] = self.bank.filled
        if self.config.in_batch_negatives and replicas.count() > 1:
            among |= {"batch_positives": replicas.gather(positives), "batch_ids": replicas.gather(batch.item_ids)}
        info_nce = self.info_nce(queries, positives, **among)
        triplet = tf.constant(0.0)
        if with_triplet:
            triplet = self.triplet(queries, positives, negatives, negatives_mask=batch.has_negative)
            if replicas.count() > 1:
                here = tf.reduce_sum(tf.cast(batch.has_negative, tf.float32))
                triplet *= tf.math.divide_no_nan(here, replicas.mean(here))
        return info_nce, triplet

    def encode_keys(self, positives: Features) -> tf.Tensor:
        """Returns float32 [B, D] of the momentum encoder, without gradient."""
        return tf.stop_gradient(self.key_model(list(positives), training=True))

    def follow(self) -> None:
        """Moves the momentum encoder toward the encoder: key = m key + (1 - m) query."""
        momentum = self.config.momentum
        for key, query in zip(self.key_model.trainable_variables, self.encoder.model.trainable_variables):
            key.assign(momentum * key.value + (1.0 - momentum) * query.value)


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
    return keras.optimizers.AdamW(schedule, weight_decay=config.weight_decay)
