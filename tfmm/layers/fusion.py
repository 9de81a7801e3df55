"""The paper's simpler ways to bring vectors into an ID model (section 6.1.3): Vector and SimScore."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.similarity import unit_vectors


@keras.saving.register_keras_serializable(package="tfmm")
class VectorFusion(keras.layers.Layer):
    """Item vectors joined to the ID embeddings of the target and of each behavior, before DIN ("Vector").

    Args:
        scale_inputs: multiply unit vectors by sqrt(D), so that their values have about unit variance (ours).

    Call arguments:
        target: float [B, E], ID embedding; behaviors: float [B, L, E], or [1, L, E] shared by [C, E] targets.
        target_vectors: float [B, D] of norm 1, or int8 [B, D] with `target_scales`.
        behaviors_vectors: float [B, L, D] (or [1, L, D]), or int8 with `behaviors_scales`.
        target_vectors_mask: bool [B]; behaviors_vectors_mask: bool [B, L]; True where there is an embedding.
            An item without one gets a zero vector.
        target_scales: float32 [B]; behaviors_scales: float32 [B, L].

    Returns:
        dict of "target" float [B, E + D] and "behaviors" float [B, L, E + D] (or [1, L, E + D]), for
        `DINAttention`.

    >>> fused = VectorFusion()(ops.ones((2, 3)), ops.ones((2, 5, 3)), ops.ones((2, 4)), ops.ones((2, 5, 4)))
    >>> fused["target"].shape, fused["behaviors"].shape
    (TensorShape([2, 7]), TensorShape([2, 5, 7]))
    """

    def __init__(self, scale_inputs: bool = True, **kwargs: typing.Any) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)  # scales of int8 rows stay float32
        self.scale_inputs = scale_inputs
        self.supports_masking = True

    def call(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        target_vectors: typing.Any,
        behaviors_vectors: typing.Any,
        target_vectors_mask: typing.Any = None,
        behaviors_vectors_mask: typing.Any = None,
        target_scales: typing.Any = None,
        behaviors_scales: typing.Any = None,
    ) -> dict[str, typing.Any]:
        checks.require_rank("target_vectors", target_vectors, 2, "[B, D]")
        checks.require_rank("behaviors_vectors", behaviors_vectors, 3, "[B, L, D]")
        checks.require_same_dim(
            "target_vectors", target_vectors.shape[-1], "behaviors_vectors", behaviors_vectors.shape[-1]
        )
        return {
            "target": self._join("target", target, target_vectors, target_vectors_mask, target_scales),
            "behaviors": self._join(
                "behaviors", behaviors, behaviors_vectors, behaviors_vectors_mask, behaviors_scales
            ),
        }

    def _join(
        self, name: str, embedding: typing.Any, vectors: typing.Any, mask: typing.Any, scales: typing.Any
    ) -> typing.Any:
        if scales is not None:
            vectors = unit_vectors(vectors, scales)
        checks.require(
            "float" in keras.backend.standardize_dtype(vectors.dtype),
            f"int8 `{name}_vectors` need `{name}_scales` (1 / norm of each row).",
            vectors.dtype,
        )
        vectors = ops.cast(vectors, self.compute_dtype)
        if self.scale_inputs:
            vectors = vectors * vectors.shape[-1] ** 0.5
        if mask is not None:
            checks.require_mask(f"{name}_vectors_mask", mask, tuple(vectors.shape[:-1]))
            vectors = ops.where(ops.expand_dims(ops.cast(mask, "bool"), -1), vectors, ops.zeros_like(vectors))
        return ops.concatenate([ops.cast(embedding, self.compute_dtype), vectors], axis=-1)

    def compute_output_shape(
        self,
        target_shape: typing.Any,
        behaviors_shape: typing.Any,
        target_vectors_shape: typing.Any,
        behaviors_vectors_shape: typing.Any,
    ) -> dict[str, tuple[int | None, ...]]:
        width = behaviors_shape[-1] + behaviors_vectors_shape[-1]
        return {"target": (target_shape[0], width), "behaviors": (*behaviors_shape[:2], width)}

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "scale_inputs": self.scale_inputs}


@keras.saving.register_keras_serializable(package="tfmm")
class SimScore(keras.layers.Layer):
    """The similarity to the target appended to each behavior ("SimScore"), for an attention over both.

    The target gets 1, its similarity to itself, so that both keep one width. Missing is not zero: where
    `similarity_mask` is False, the similarity is 0 and a second value says so (1 known, 0 missing).

    Args:
        flag_missing: append that second value as well.

    Call arguments:
        target: float [B, E], ID embedding; behaviors: float [B, L, E], or [1, L, E] shared by [C, E] targets.
        similarity: float [B, L] ([C, L]): see `cosine_similarity`.
        similarity_mask: bool [B, L], True where target and behavior have embeddings; None: all do.

    Returns:
        dict of "target" float [B, E + 2] and "behaviors" float [B, L, E + 2] ([C, L, E + 2]); E + 1 without
        the flag.

    Differs from the paper: the flag is ours.

    >>> joined = SimScore(flag_missing=False)(ops.zeros((1, 1)), ops.zeros((1, 2, 1)), ops.array([[0.5, -0.5]]))
    >>> joined["behaviors"].numpy().tolist()
    [[[0.0, 0.5], [0.0, -0.5]]]
    """

    def __init__(self, flag_missing: bool = True, **kwargs: typing.Any) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)
        self.flag_missing = flag_missing
        self.supports_masking = True

    def call(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        similarity: typing.Any,
        similarity_mask: typing.Any = None,
    ) -> dict[str, typing.Any]:
        checks.require_rank("target", target, 2, "[B, E]")
        checks.require_rank("behaviors", behaviors, 3, "[B, L, E]")
        checks.require_rank("similarity", similarity, 2, "[B, L]")
        target, behaviors = ops.cast(target, self.compute_dtype), ops.cast(behaviors, self.compute_dtype)
        known = ops.ones_like(similarity, dtype=self.compute_dtype)
        similarity = ops.cast(similarity, self.compute_dtype)
        if similarity_mask is not None:
            checks.require_mask("similarity_mask", similarity_mask, tuple(similarity.shape))
            known = known * ops.cast(similarity_mask, self.compute_dtype)
            similarity = ops.where(known > 0, similarity, ops.zeros_like(similarity))
        added = [similarity, known] if self.flag_missing else [similarity]
        added = ops.stack(added, axis=-1)
        behaviors = behaviors + ops.zeros_like(added[..., :1])  # one shared history becomes one per target
        ones = ops.repeat(ops.ones_like(target[:, :1]), added.shape[-1], axis=1)
        return {
            "target": ops.concatenate([target, ones], axis=-1),
            "behaviors": ops.concatenate([behaviors, added], axis=-1),
        }

    def compute_output_shape(
        self, target_shape: typing.Any, behaviors_shape: typing.Any, similarity_shape: typing.Any
    ) -> dict[str, tuple[int | None, ...]]:
        width = behaviors_shape[-1] + 1 + int(self.flag_missing)
        return {
            "target": (target_shape[0], width),
            "behaviors": (similarity_shape[0], behaviors_shape[1], width),
        }

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "flag_missing": self.flag_missing}
