"""The paper's simpler ways to bring vectors into an ID model (section 6.1.3): Vector and SimScore."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.din import zero_hidden
from tfmm.layers.similarity import unit_vectors


class _CarryMask(keras.layers.Layer):
    """Its input, with a mask attached that layers after it find; Keras itself carries only the first argument's."""

    def __init__(self, **kwargs: typing.Any) -> None:
        super().__init__(**kwargs)
        self.supports_masking = True
        self.built = True

    def call(self, inputs: typing.Any, mask: typing.Any = None) -> typing.Any:
        return inputs


@keras.saving.register_keras_serializable(package="tfmm")
class VectorFusion(keras.layers.Layer):
    """Item vectors joined to the ID embeddings of the target and of each behavior, before DIN ("Vector").

    Args:
        scale_inputs: multiply unit vectors by sqrt(D), so that their values have about unit variance (ours).

    Call arguments:
        target: float [B, E], ID embedding; behaviors: float [B, L, E], or [1, L, E] shared by [C, E] targets.
        target_vectors: float [B, D] of norm 1, or int8 [B, D] with `target_scales`.
        behaviors_vectors: float [B, L, D] (or [1, L, D]), or int8 with `behaviors_scales`.
        target_vectors_mask: bool [B]; behaviors_vectors_mask: bool [B, L] (or [1, L]); True where there is an
            embedding. An item without one gets a zero vector, whatever stands in its place.
        target_scales: float32 [B]; behaviors_scales: float32 [B, L] (or [1, L]); 0 means no embedding as well.
        target_mask: bool [B]; behaviors_mask: bool [B, L] (or [1, L]); True where the target or behavior exists.
            They change no value here; they travel on with "target" and "behaviors".

    Masks that travel with float inputs are found.

    Returns:
        dict of "target" float [B, E + D] and "behaviors" float [B, L, E + D] (or [1, L, E + D]), for
        `DINAttention`, which finds their masks.

    Raises:
        ValueError: int8 vectors without scales; other ranks, dims or lengths that differ, or another number of
            histories than one or B.

    Source: section 6.1.3.

    >>> fused = VectorFusion()(ops.ones((2, 3)), ops.ones((2, 5, 3)), ops.ones((2, 4)), ops.ones((2, 5, 4)))
    >>> fused["target"].shape, fused["behaviors"].shape
    (TensorShape([2, 7]), TensorShape([2, 5, 7]))
    """

    def __init__(self, scale_inputs: bool = True, **kwargs: typing.Any) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)  # scales of int8 rows stay float32
        self.scale_inputs = checks.require_bool("scale_inputs", scale_inputs)
        self.supports_masking = True
        self.carry_mask = _CarryMask(dtype=self.dtype_policy, name="carry_mask")

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
        target_mask: typing.Any = None,
        behaviors_mask: typing.Any = None,
    ) -> dict[str, typing.Any]:
        masks = self._check(
            target,
            behaviors,
            target_vectors,
            behaviors_vectors,
            target_vectors_mask,
            behaviors_vectors_mask,
            target_scales,
            behaviors_scales,
            target_mask,
            behaviors_mask,
        )
        return {
            "target": self._join(target, target_vectors, target_scales, *masks["target"]),
            "behaviors": self._join(behaviors, behaviors_vectors, behaviors_scales, *masks["behaviors"]),
        }

    def _check(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        target_vectors: typing.Any,
        behaviors_vectors: typing.Any,
        target_vectors_mask: typing.Any = None,
        behaviors_vectors_mask: typing.Any = None,
        target_scales: typing.Any = None,
        behaviors_scales: typing.Any = None,
        target_mask: typing.Any = None,
        behaviors_mask: typing.Any = None,
    ) -> dict[str, tuple[typing.Any, typing.Any]]:
        """Raises a ValueError unless the arguments of `call` fit; returns who has a vector, and who exists, as bool."""
        checks.require_history(target, behaviors)
        checks.require_rank("target_vectors", target_vectors, 2, "[B, D]")
        checks.require_rank("behaviors_vectors", behaviors_vectors, 3, "[B, L, D]")
        dim = behaviors_vectors.shape[-1]
        checks.require_same_dim("target_vectors", target_vectors.shape[-1], "behaviors_vectors", dim)
        masks = {}
        for name, embedding, vectors, vectors_mask, scales, mask in (
            ("target", target, target_vectors, target_vectors_mask, target_scales, target_mask),
            ("behaviors", behaviors, behaviors_vectors, behaviors_vectors_mask, behaviors_scales, behaviors_mask),
        ):
            shape = tuple(embedding.shape)[:-1]
            checks.require_shape(f"{name}_vectors", vectors, (*shape, dim))
            checks.require_scales(f"{name}_vectors", vectors, f"{name}_scales", scales)
            masks[name] = (
                checks.as_mask(f"{name}_vectors_mask", vectors_mask, shape, scales=scales),
                checks.as_mask(f"{name}_mask", mask, shape),
            )
        return masks

    def _join(
        self, embedding: typing.Any, vectors: typing.Any, scales: typing.Any, vectors_mask: typing.Any, mask: typing.Any
    ) -> typing.Any:
        if scales is not None:
            vectors = unit_vectors(vectors, scales)
        vectors = ops.cast(vectors, self.compute_dtype)
        if self.scale_inputs:
            vectors = vectors * vectors.shape[-1] ** 0.5
        embedding = ops.cast(embedding, self.compute_dtype)
        return self.carry_mask(ops.concatenate([embedding, zero_hidden(vectors, vectors_mask)], axis=-1), mask=mask)

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        self._check(*args, **kwargs)
        return super().compute_output_spec(*args, **kwargs)

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
        similarity_mask: bool [B, L] (or [C, L], or [1, L] with one history), True where target and behavior have
            embeddings; None: all do. Give it wherever items can lack an embedding, as
            `target_mask[:, None] & embeddings_mask`: no mask travels through `cosine_similarity`.
        target_mask: bool [B]; behaviors_mask: bool [B, L] (or [1, L]); True where the target or behavior exists.
            They change no value here; they travel on with "target" and "behaviors". They are found where they
            travel with the inputs.

    Returns:
        dict of "target" float [B, E + 2] and "behaviors" float [B, L, E + 2] ([C, L, E + 2]); E + 1 without
        the flag. `DINAttention` finds their masks.

    Raises:
        ValueError: other ranks, dims or lengths that differ, or another number of histories than one or B.

    Source: section 6.1.3.

    Differs from the paper: the flag is ours.

    >>> joined = SimScore(flag_missing=False)(ops.zeros((1, 1)), ops.zeros((1, 2, 1)), ops.array([[0.5, -0.5]]))
    >>> joined["behaviors"].numpy().tolist()
    [[[0.0, 0.5], [0.0, -0.5]]]
    """

    def __init__(self, flag_missing: bool = True, **kwargs: typing.Any) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)
        self.flag_missing = checks.require_bool("flag_missing", flag_missing)
        self.supports_masking = True
        self.carry_mask = _CarryMask(dtype=self.dtype_policy, name="carry_mask")

    def call(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        similarity: typing.Any,
        similarity_mask: typing.Any = None,
        target_mask: typing.Any = None,
        behaviors_mask: typing.Any = None,
    ) -> dict[str, typing.Any]:
        similarity_mask, target_mask, behaviors_mask = self._check(
            target, behaviors, similarity, similarity_mask, target_mask, behaviors_mask
        )
        target, behaviors = ops.cast(target, self.compute_dtype), ops.cast(behaviors, self.compute_dtype)
        known = ops.ones_like(similarity, dtype=self.compute_dtype)
        similarity = ops.cast(similarity, self.compute_dtype)
        if similarity_mask is not None:
            known = known * ops.cast(similarity_mask, self.compute_dtype)
            similarity = ops.where(similarity_mask, similarity, 0.0)
        added = ops.stack([similarity, known] if self.flag_missing else [similarity], axis=-1)
        behaviors = behaviors + ops.zeros_like(added[..., :1])  # one shared history becomes one per target
        if behaviors_mask is not None:
            behaviors_mask = ops.broadcast_to(behaviors_mask, ops.shape(similarity))
        ones = ops.repeat(ops.ones_like(target[:, :1]), added.shape[-1], axis=1)
        return {
            "target": self.carry_mask(ops.concatenate([target, ones], axis=-1), mask=target_mask),
            "behaviors": self.carry_mask(ops.concatenate([behaviors, added], axis=-1), mask=behaviors_mask),
        }

    def _check(
        self,
        target: typing.Any,
        behaviors: typing.Any,
        similarity: typing.Any,
        similarity_mask: typing.Any = None,
        target_mask: typing.Any = None,
        behaviors_mask: typing.Any = None,
    ) -> tuple[typing.Any, typing.Any, typing.Any]:
        """Raises a ValueError unless the arguments of `call` fit; returns the masks as bool tensors."""
        checks.require_history(target, behaviors)
        pairs = checks.pair_shapes(target, behaviors)
        checks.require_shape("similarity", similarity, pairs[0])
        return (
            checks.as_mask("similarity_mask", similarity_mask, *pairs),
            checks.as_mask("target_mask", target_mask, tuple(target.shape)[:1]),
            checks.as_mask("behaviors_mask", behaviors_mask, tuple(behaviors.shape)[:2]),
        )

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> typing.Any:
        self._check(*args, **kwargs)
        return super().compute_output_spec(*args, **kwargs)

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
