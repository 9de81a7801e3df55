"""Target attention on ID embeddings, guided by multimodal similarity (SA-TA of MUSE, arXiv:2512.07216)."""

from __future__ import annotations

import math
import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.compilation import is_traced_for_xla
from tfmm.layers.din import masked_softmax


@keras.saving.register_keras_serializable(package="tfmm")
class SemanticTargetAttention(keras.layers.Layer):
    """Softmax attention whose scores join ID attention and similarity (MUSE, equation 4).

    With a = (behaviors Wk) (target Wq) / sqrt(units) and R = similarity / temperature, the scores are
    g1 a + g2 R + g3 a R; the output is the sum of behaviors Wv weighted by their softmax. The three gains
    start at 1 and are learned, and so is the temperature, as the exponential of a weight: it stays positive.

    Args:
        units: width of the projections and of the output.
        temperature: float > 0, where the learned temperature starts.
        activation: of the projections: None (the equation), or e.g. "silu" (the authors' code).

    Call arguments:
        target: float [B, E], ID embedding; or [C, E] with one history.
        behaviors: float [B, L, E]; or [1, L, E].
        similarity: float [B, L] in [-1, 1] (or [C, L]): see `cosine_similarity`.
        behaviors_mask: bool [B, L], True where a behavior exists; None: all do.
        similarity_mask: bool [B, L], True where target and behavior have embeddings; elsewhere the score is
            g1 a.

    Returns:
        float [B, units] in the layer's compute dtype; a fully masked row gives zeros.

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
        checks.require(units >= 1, "`units` must be at least 1.", units)
        checks.require(temperature > 0.0, "`temperature` must be positive.", temperature)
        self.units = units
        self.temperature = temperature
        self.activation = activation
        self.supports_masking = True
        self.query, self.key, self.value = (
            keras.layers.Dense(
                units,
                activation=activation,
                use_bias=activation is not None,
                name=name,
                dtype=self.dtype_policy,
            )
            for name in ("query", "key", "value")
        )

    def build(self, target_shape: typing.Any, behaviors_shape: typing.Any) -> None:
        checks.require(len(target_shape) == 2, "`target` must have 2 axes [B, E].", target_shape)
        checks.require(len(behaviors_shape) == 3, "`behaviors` must have 3 axes [B, L, E].", behaviors_shape)
        self.query.build(target_shape)
        self.key.build(behaviors_shape)
        self.value.build(behaviors_shape)
        self.gains = self.add_weight(
            name="gains", shape=(3,), initializer="ones", dtype="float32", autocast=False
        )
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
        checks.require_rank("similarity", similarity, 2, "[B, L]")
        query, key, value = self.query(target), self.key(behaviors), self.value(behaviors)
        shared = checks.is_shared(target, behaviors)
        if shared:
            of_ids = ops.matmul(query, ops.transpose(key[0]))
        else:
            of_ids = ops.einsum("bu,blu->bl", query, key)
        of_ids = ops.cast(of_ids, "float32") / math.sqrt(self.units)
        relevance = ops.cast(similarity, "float32") * ops.exp(-ops.cast(self.log_temperature, "float32"))
        if similarity_mask is not None:
            checks.require_mask("similarity_mask", similarity_mask, tuple(similarity.shape))
            relevance = ops.where(ops.cast(similarity_mask, "bool"), relevance, ops.zeros_like(relevance))
        gains = ops.cast(self.gains, "float32")
        scores = gains[0] * of_ids + gains[1] * relevance + gains[2] * of_ids * relevance
        if behaviors_mask is None:
            behaviors_mask = ops.ones_like(scores, dtype="bool")
        else:
            checks.require_mask("behaviors_mask", behaviors_mask, tuple(behaviors.shape[:2]))
        weights = ops.cast(masked_softmax(scores, behaviors_mask), value.dtype)
        if shared:
            return ops.matmul(weights, value[0])
        if is_traced_for_xla():
            return ops.sum(ops.expand_dims(weights, -1) * value, axis=1)
        return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), value), axis=1)

    def compute_output_shape(
        self, target_shape: typing.Any, behaviors_shape: typing.Any
    ) -> tuple[int | None, int]:
        return (target_shape[0], self.units)

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "units": self.units,
            "temperature": self.temperature,
            "activation": self.activation,
        }
