"""Target attention on ID embeddings, guided by multimodal similarity (SA-TA of MUSE, arXiv:2512.07216)."""

from __future__ import annotations

import math
import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import is_traced_for_xla
from tfmm.layers.din import masked_softmax, zero_hidden


@keras.saving.register_keras_serializable(package="tfmm")
class SemanticTargetAttention(keras.layers.Layer):
    """Softmax attention whose scores join ID attention and similarity (MUSE, equation 4).

    With a = (behaviors Wk) (target Wq) / sqrt(units) and R = similarity / temperature, the scores are
    g1 a + g2 R + g3 a R; the output is the sum of behaviors Wv weighted by their softmax. The three gains
    start at 1 and are learned, and so is the temperature, as the exponential of a weight: it stays positive.

    Args:
        units: width of the projections and of the output.
        temperature: float > 0, where the learned temperature starts.
        activation: of the projections: None (the equation), or the name of a Keras activation, such as "silu" (the
            authors' code).

    Call arguments:
        target: float [B, E], ID embedding; or [C, E] with one history. (On one history when exporting, see
            `DINAttention`.)
        behaviors: float [B, L, E]; or [1, L, E].
        similarity: float [B, L] in [-1, 1] (or [C, L]): see `cosine_similarity`.
        behaviors_mask: bool [B, L] (or [1, L]), True where a behavior exists; None: all do. It is found where it
            travels with `behaviors`.
        similarity_mask: bool [B, L] (or [C, L], or [1, L] with one history), True where target and behavior have
            embeddings; elsewhere the score is g1 a. None: all have. Give it wherever items can lack an embedding, as
            `target_mask[:, None] & embeddings_mask`: no mask travels through `cosine_similarity`, and a missing
            embedding would count as similarity 0.

    What a mask hides may hold anything, NaN included.

    Returns:
        float [B, units] in the layer's compute dtype; a fully masked row gives zeros.

    Raises:
        ValueError: an argument out of range, an unknown activation; other ranks, dims or lengths that differ, or
            another number of histories than one or B.

    Source: MUSE, arXiv:2512.07216, equation 4.

    Differs from MUSE: its code passes no mask, leaves the temperature free to cross zero and divides by no
        sqrt.

    >>> layer = SemanticTargetAttention(units=3)
    >>> layer(ops.ones((2, 4)), ops.ones((2, 5, 4)), similarity=ops.zeros((2, 5))).shape
    TensorShape([2, 3])
    """

    def __init__(
        self, units: int, temperature: float = 0.1, activation: str | None = None, **kwargs: typing.Any
    ) -> None:
        super().__init__(**kwargs)
        self.units = checks.require_int("units", units)
        self.temperature = checks.require_number("temperature", temperature)
        checks.require(0.0 < self.temperature < math.inf, "`temperature` must be positive and finite.", temperature)
        checks.require_activation("activation", activation, (None,))
        self.activation = activation
        self.supports_masking = True
        self.query, self.key, self.value = (
            keras.layers.Dense(
                self.units,
                activation=activation,
                use_bias=activation is not None,
                name=name,
                dtype=self.dtype_policy,
                trainable=self.trainable,
            )
            for name in ("query", "key", "value")
        )

    def build(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> None:
        checks.require_history(keras.KerasTensor(target_shape), keras.KerasTensor(behaviors_shape))
        self.query.build(target_shape)
        self.key.build(behaviors_shape)
        self.value.build(behaviors_shape)
        self.gains = self.add_weight(name="gains", shape=(3,), initializer="ones", dtype="float32", autocast=False)
        self.log_temperature = self.add_weight(
            name="log_temperature",
            shape=(),
            dtype="float32",
            autocast=False,
            initializer=keras.initializers.Constant(math.log(self.temperature)),
        )
        self.built = True

    def call(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        similarity: typing.Any,
        behaviors_mask: typing.Any = None,
        similarity_mask: typing.Any = None,
    ) -> typing.Any:
        behaviors_mask, similarity_mask = self._check(target, behaviors, similarity, behaviors_mask, similarity_mask)
        shared = checks.is_shared(target, behaviors)
        behaviors = zero_hidden(behaviors, behaviors_mask)
        query, key, value = self.query(target), self.key(behaviors), self.value(behaviors)
        of_ids = ops.matmul(query, ops.transpose(key[0])) if shared else _dots(query, key)  # [B, L]
        scores = self._scores(ops.cast(of_ids, "float32"), similarity, behaviors_mask, similarity_mask)
        exists = ops.ones_like(scores, dtype="bool") if behaviors_mask is None else behaviors_mask
        weights = ops.cast(masked_softmax(scores, exists), value.dtype)
        if shared:
            return ops.matmul(weights, value[0])
        if is_traced_for_xla():
            return ops.sum(ops.expand_dims(weights, -1) * value, axis=1)
        return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), value), axis=1)

    def _scores(
        self, of_ids: typing.Any, similarity: typing.Any, behaviors_mask: typing.Any, similarity_mask: typing.Any
    ) -> typing.Any:
        """Equation 4: float32 [B, L], from the products of IDs [B, L] and the similarities."""
        similarity = ops.cast(similarity, "float32")
        for mask in (behaviors_mask, similarity_mask):
            if mask is not None:
                similarity = ops.where(mask, similarity, 0.0)
        of_ids = of_ids / math.sqrt(self.units)
        relevance = similarity * ops.exp(-ops.cast(self.log_temperature, "float32"))
        gains = ops.cast(self.gains, "float32")
        return gains[0] * of_ids + gains[1] * relevance + gains[2] * of_ids * relevance

    def _check(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        similarity: typing.Any,
        behaviors_mask: typing.Any = None,
        similarity_mask: typing.Any = None,
    ) -> tuple[typing.Any, typing.Any]:
        """Raises a ValueError unless the arguments of `call` fit; returns the masks as bool tensors."""
        checks.require_history(target, behaviors)
        pairs = checks.pair_shapes(target, behaviors)
        checks.require_shape("similarity", similarity, pairs[0])
        return (
            checks.as_mask("behaviors_mask", behaviors_mask, tuple(behaviors.shape)[:2]),
            checks.as_mask("similarity_mask", similarity_mask, *pairs),
        )

    def compute_output_shape(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> tuple[int | None, int]:
        return (target_shape[0], self.units)

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        self._check(*args, **kwargs)
        return super().compute_output_spec(*args, **kwargs)

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "temperature": self.temperature,
            "activation": self.activation,
        }


def _dots(query: typing.Any, key: typing.Any) -> typing.Any:
    """Returns float [B, L] of query [B, U] and key [B, L, U]; a key [1, L, U] of unknown batch broadcasts."""
    query = ops.expand_dims(query, 1)
    if is_traced_for_xla() and key.shape[0] is None:  # XLA would copy the key of a product that broadcasts
        return ops.sum(query * key, axis=-1)
    return ops.squeeze(ops.matmul(query, ops.transpose(key, (0, 2, 1))), axis=1)
