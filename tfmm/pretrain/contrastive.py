"""A model of anybody's, its momentum encoder, the memory bank and the losses, as one object (section 3.3)."""

from __future__ import annotations

import typing

import keras
import tensorflow as tf

from tfmm.losses import InfoNCE, TripletLoss
from tfmm.pretrain.memory_bank import MemoryBank
from tfmm.scl_config import PAPER_BANK
from tfmm.training import precision, replicas

Features = tuple[tf.Tensor, ...]


class ContrastiveLearner:
    """What contrastive learning adds to a Keras model; the loop and the optimizer are the caller's.

    A step is `encode_keys`, `losses` under a tape, the optimizer on `trainable_variables`, `advance`: see
    docs/training.md. Leave the temperature, `info_nce.log_temperature`, out of weight decay.

    Differs from the paper: with `in_batch_negatives` (the default) the positive and the other positives of the batch
    come from the model that is trained and get a gradient, and only the bank holds keys of the momentum encoder. In
    `in_batch_negatives=False` all keys are the momentum encoder's, as in MoCo and in the paper, see `as_in_paper`.

    Args:
        model: features -> float [B, D]; trained in place.
        memory_bank_size: int K; 0 trains without a bank and without a momentum encoder.
        momentum: of the momentum encoder, in [0, 1).
        in_batch_negatives: True adds the positives of the other queries to the negatives.
        temperature: start of the learned temperature.
        triplet_weight: of the triplet loss on hard negatives, where there are any.
        triplet_margin: cosine, in (0, 2].
        normalize: False where the model's vectors have length 1 by themselves.
        key_model: the momentum encoder; None takes a clone of `model`. Its weights become those of `model`.

    Raises:
        ValueError: nothing is a negative, a momentum outside [0, 1), a model whose output is not [B, D] with a known
            D, and what `InfoNCE` and `TripletLoss` refuse.
    """

    def __init__(
        self,
        model: keras.Model,
        *,
        memory_bank_size: int = 0,
        momentum: float = 0.99,
        in_batch_negatives: bool = True,
        temperature: float = 0.07,
        triplet_weight: float = 1.0,
        triplet_margin: float = 0.2,
        normalize: bool = True,
        key_model: keras.Model | None = None,
    ) -> None:
        _require(model, memory_bank_size, momentum, in_batch_negatives)
        dim, dtype = model.output_shape[-1], precision.compute_dtype()
        self.model = model
        self.momentum = momentum
        self.in_batch_negatives = in_batch_negatives
        self.triplet_weight = triplet_weight
        self.normalize = normalize
        self.info_nce = InfoNCE(
            temperature=temperature,
            in_batch_negatives=in_batch_negatives,
            gemm_dtype="bfloat16" if dtype == "bfloat16" else "float32",  # exp(cosine / temperature) leaves float16
        )
        self.triplet = TripletLoss(margin=triplet_margin)
        self.info_nce.build((None, dim), (None, dim))
        self.bank = MemoryBank(memory_bank_size, dim, dtype) if memory_bank_size else None
        self.key_model: typing.Any = None
        if self.bank is not None:
            self.key_model = keras.models.clone_model(model) if key_model is None else key_model
            self.key_model.set_weights(model.get_weights())

    @classmethod
    def as_in_paper(cls, model: keras.Model, **settings: typing.Any) -> ContrastiveLearner:
        """Returns a learner with the paper's bank: K = 196,800 keys of a momentum encoder of 0.999, nothing else."""
        return cls(model, **{**PAPER_BANK, **settings})

    @property
    def trainable_variables(self) -> list[typing.Any]:
        """The model's and the temperature."""
        return [*self.model.trainable_variables, *self.info_nce.trainable_variables]

    @property
    def temperature(self) -> tf.Tensor:
        """The temperature as it is learned, float32 []."""
        return tf.exp(self.info_nce.log_temperature.value)

    def variables(self) -> dict[str, list[typing.Any]]:
        """Returns every variable that a step changes, by group, for a Checkpoint; the optimizer's come beside them."""
        groups = {"encoder": self.model.variables, "info_nce": self.info_nce.variables}
        if self.bank is not None:
            groups["key_encoder"] = self.key_model.variables
            groups["memory_bank"] = [self.bank.keys, self.bank.item_ids, self.bank.position]
        return groups

    def encode_keys(self, positives: Features) -> tf.Tensor | None:
        """Returns float32 [B, D] of the momentum encoder, without gradient; None without a bank."""
        if self.key_model is None:
            return None
        return tf.stop_gradient(self._vectors(self.key_model, positives))

    def losses(
        self,
        query: Features,
        positive: Features,
        item_ids: tf.Tensor,
        keys: tf.Tensor | None = None,
        *,
        negative: Features = (),
        has_negative: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns InfoNCE and triplet loss, float [], of a batch, the latter not yet weighed.

        On several replicas negatives are those of the global batch, and the mean over the replicas of what each returns
        is the loss of that batch.

        Args:
            query: features as the model takes them, a tuple of tensors [B, ...]; this replica's part.
            positive: the same of the items.
            item_ids: int64 [B], item of each positive, not 0: a negative with a query's own id is left out.
            keys: float32 [B, D], what `encode_keys` gave for `positive`; None without a bank.
            negative: features of hard negatives; () where there are none.
            has_negative: bool [B]; where False the row of `negative` is there to fill the batch. None: all are.
        """
        with_triplet = bool(negative) and self.triplet_weight > 0.0
        groups = [query]
        if self.in_batch_negatives:
            groups.append(positive)
        if with_triplet:
            groups.append(negative)
        # One call for all: batch normalization sees queries and items together.
        features = tuple(tf.concat(columns, axis=0) for columns in zip(*groups))
        vectors = tf.split(self._vectors(self.model, features), len(groups))
        queries, negatives = vectors[0], vectors[-1]
        positives = vectors[1] if self.in_batch_negatives else tf.stop_gradient(keys)
        among: dict[str, typing.Any] = {"positive_ids": item_ids}
        if self.bank is not None:
            among |= {"memory_bank": self.bank.keys, "memory_bank_ids": self.bank.item_ids}
            among["memory_bank_mask"] = self.bank.filled
        if self.in_batch_negatives and replicas.count() > 1:
            among |= {"batch_positives": replicas.gather(positives), "batch_ids": replicas.gather(item_ids)}
        info_nce = self.info_nce(queries, positives, **among)
        triplet = tf.constant(0.0)
        if with_triplet:
            counts = tf.ones_like(item_ids, tf.bool) if has_negative is None else has_negative
            triplet = self.triplet(queries, positives, negatives, negatives_mask=counts)
            if replicas.count() > 1:
                here = tf.reduce_sum(tf.cast(counts, tf.float32))
                triplet *= tf.math.divide_no_nan(here, replicas.mean(here))
        return info_nce, triplet

    def advance(self, keys: tf.Tensor | None, item_ids: tf.Tensor, is_update: tf.Tensor | None = None) -> None:
        """Puts a step's keys into the bank and moves the momentum encoder; nothing without a bank.

        Args:
            keys: as `encode_keys` gave them.
            item_ids: int64 [B].
            is_update: bool [], whether the step moved the weights, where gradients are accumulated over several: the
                momentum encoder follows then. None: each step does.
        """
        if self.bank is not None:
            self.bank.enqueue(keys, item_ids)
            self.follow(None if is_update is None else tf.where(is_update, self.momentum, 1.0))

    def follow(self, momentum: tf.Tensor | None = None) -> None:
        """Moves the momentum encoder toward the model: key = m key + (1 - m) query."""
        m = self.momentum if momentum is None else momentum
        for key, query in zip(self.key_model.trainable_variables, self.model.trainable_variables):
            key.assign(m * key.value + (1.0 - m) * query.value)

    def _vectors(self, model: keras.Model, features: Features) -> tf.Tensor:
        vectors = model(list(features) if isinstance(model.input, list) else features[0], training=True)
        return tf.math.l2_normalize(tf.cast(vectors, tf.float32), axis=-1) if self.normalize else vectors


def _require(model: keras.Model, memory_bank_size: int, momentum: float, in_batch_negatives: bool) -> None:
    try:
        shape = model.output_shape
    except (AttributeError, ValueError):  # a subclass that keeps no graph of its layers
        shape = None
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[-1] is None:
        raise ValueError(
            "`model` must be a functional or sequential Keras model with one output [B, D], D known. Received: "
            f"{type(model).__name__} with the output {shape}. Call another kind on a keras.Input, and pool what has "
            "more axes."
        )
    if memory_bank_size < 0:
        raise ValueError(f"`memory_bank_size` must not be negative. Received: {memory_bank_size}.")
    if not 0.0 <= momentum < 1.0:
        raise ValueError(f"`momentum` must lie in [0, 1). Received: {momentum}.")
    if not (in_batch_negatives or memory_bank_size):
        raise ValueError(
            "`memory_bank_size` must be at least 1 where `in_batch_negatives` is False: a loss needs negatives. "
            f"Received: {memory_bank_size}."
        )
