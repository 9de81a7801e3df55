"""The few behaviors most similar to the target, out of a long history."""

from __future__ import annotations

import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.similarity import cosine_similarity

SEARCH_ORDERS = ("similarity", "time")


@keras.saving.register_keras_serializable(package="tfmm")
class BehaviorSearch(keras.layers.Layer):
    """The K behaviors most similar to the target; the K newest where the target has no embedding.

    Behaviors stand oldest first. Of equally similar ones the newer wins. Histories of 100,000 and more are
    fine: nothing but one similarity per behavior is made of them.

    Args:
        num_selected: int K >= 1, behaviors kept.
        order: "similarity" (best first; newest first where the fallback serves) or "time" (oldest first).

    Call arguments:
        target, behaviors, behaviors_mask, target_mask, target_scales, behaviors_scales, similarity: as for
            `SimTierLayer`; several targets [C, D] may share one history [1, L, D].
        behaviors_present: bool [B, L], True where a behavior exists, with or without embedding; the fallback
            chooses from these. None: from `behaviors_mask`.

    Returns:
        dict of "indices" int32 [B, K] into the history (0 where nothing is selected), "similarity" float32
        [B, K] (0 where the fallback serves) and "mask" bool [B, K], True where a behavior is selected. Use
        the indices with `gather_behaviors`.

    Source: the general search unit of SIM and MUSE (arXiv:2512.07216), which select by similarity.

    >>> layer = BehaviorSearch(num_selected=2)
    >>> found = layer(similarity=ops.array([[0.9, -0.3, 0.5], [0.1, 0.2, 0.3]]), target_mask=ops.array([True, False]))
    >>> found["indices"].numpy()
    array([[0, 2],
           [2, 1]], dtype=int32)
    """

    def __init__(self, num_selected: int, order: str = "similarity", **kwargs: typing.Any) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)
        checks.require(num_selected >= 1, "`num_selected` must be at least 1.", num_selected)
        checks.require(order in SEARCH_ORDERS, f"`order` must be one of {SEARCH_ORDERS}.", order)
        self.num_selected = num_selected
        self.order = order
        self.supports_masking = True

    def call(
        self,
        target: typing.Any = None,
        behaviors: typing.Any = None,
        behaviors_mask: typing.Any = None,
        target_mask: typing.Any = None,
        target_scales: typing.Any = None,
        behaviors_scales: typing.Any = None,
        behaviors_present: typing.Any = None,
        similarity: typing.Any = None,
    ) -> dict[str, typing.Any]:
        if similarity is None:
            checks.require(
                target is not None and behaviors is not None,
                "Pass `target` and `behaviors`, or `similarity`.",
                None,
            )
            similarity = cosine_similarity(target, behaviors, target_scales, behaviors_scales)
        similarity = ops.clip(ops.stop_gradient(ops.cast(similarity, "float32")), -1.0, 1.0)
        checks.require_rank("similarity", similarity, 2, "[B, L]")
        has_embedding = _mask("behaviors_mask", behaviors_mask, similarity)
        present = has_embedding
        if behaviors_present is not None:
            present = _mask("behaviors_present", behaviors_present, similarity)
        nothing = -2.0  # below any similarity and any position
        key = ops.where(has_embedding, similarity, nothing)
        position = ops.cast(ops.arange(ops.shape(similarity)[1]), "float32") + ops.zeros_like(similarity)
        if target_mask is not None:
            checks.require_mask("target_mask", target_mask, (similarity.shape[0],))
            has_target = ops.expand_dims(ops.cast(target_mask, "bool"), -1)
            key = ops.where(has_target, key, ops.where(present, position, nothing))
        return self._select(key, similarity, target_mask, nothing)

    def _select(
        self, key: typing.Any, similarity: typing.Any, target_mask: typing.Any, nothing: float
    ) -> dict[str, typing.Any]:
        if key.shape[1] is None or key.shape[1] < self.num_selected:
            padding = [[0, 0], [self.num_selected, 0]]  # in front: real behaviors stay the newer ones
            key = ops.pad(key, padding, constant_values=nothing)
        length = ops.shape(key)[1]
        best, place = ops.top_k(
            ops.flip(key, axis=1), self.num_selected
        )  # flipped: of equals the newest comes first
        padded = length - ops.shape(similarity)[1]
        indices = (length - 1 - padded) - ops.cast(place, "int32")
        mask = best > nothing
        if self.order == "time":
            last = ops.shape(similarity)[1]
            indices = ops.sort(ops.where(mask, indices, last), axis=1)
            mask = indices < last
        indices = ops.where(mask, indices, ops.zeros_like(indices))
        chosen = ops.take_along_axis(similarity, indices, axis=1)
        known = mask
        if target_mask is not None:
            known = ops.logical_and(mask, ops.expand_dims(ops.cast(target_mask, "bool"), -1))
        return {
            "indices": indices,
            "similarity": ops.where(known, chosen, ops.zeros_like(chosen)),
            "mask": mask,
        }

    def compute_output_shape(
        self, target_shape: typing.Any = None, similarity_shape: typing.Any = None
    ) -> dict[str, tuple[int | None, int]]:
        batch = (target_shape if target_shape is not None else similarity_shape)[0]
        return dict.fromkeys(("indices", "similarity", "mask"), (batch, self.num_selected))

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> dict[str, typing.Any]:
        spec = super().compute_output_spec(*args, **kwargs)
        dtypes = {"indices": "int32", "similarity": "float32", "mask": "bool"}
        return {name: keras.KerasTensor(spec[name].shape, dtype=dtype) for name, dtype in dtypes.items()}

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {**super().get_config(), "num_selected": self.num_selected, "order": self.order}


def _mask(name: str, mask: typing.Any, similarity: typing.Any) -> typing.Any:
    everywhere = ops.ones_like(similarity, dtype="bool")
    if mask is None:
        return everywhere
    checks.require_mask(name, mask, tuple(similarity.shape))
    return ops.logical_and(everywhere, ops.cast(mask, "bool"))


def gather_behaviors(values: typing.Any, indices: typing.Any) -> typing.Any:
    """Takes the selected behaviors out of a history.

    Args:
        values: any dtype [B, L, ...], or [1, L, ...] shared by all rows of `indices`.
        indices: int32 [B, K], from `BehaviorSearch`.
    Returns:
        the dtype of values, [B, K, ...].

    >>> gather_behaviors(ops.array([[5, 6, 7]]), ops.array([[2, 0], [1, 1]])).numpy()
    array([[7, 5],
           [6, 6]], dtype=int32)
    """
    values, indices = ops.convert_to_tensor(values), ops.convert_to_tensor(indices)
    if checks.is_shared(indices, values):
        return ops.take(values[0], indices, axis=0)
    for _ in range(len(values.shape) - 2):
        indices = ops.expand_dims(indices, -1)
    return ops.take_along_axis(values, indices, axis=1)
