"""The few behaviors most similar to the target, out of a long history."""

from __future__ import annotations

import inspect
import typing

import keras
from keras import ops

from tfmm.layers import checks
from tfmm.layers.similarity import compare, require_inputs, verify_similarity

SEARCH_ORDERS = ("similarity", "time")
_LEAST = -3e38  # what a similarity of -infinity counts as
_NOTHING = float("-inf")  # below any similarity and any position


@keras.saving.register_keras_serializable(package="tfmm")
class BehaviorSearch(keras.layers.Layer):
    """The K behaviors most similar to the target; the K newest where the target has no embedding.

    Behaviors stand oldest first. Of equally similar ones the newer wins; one whose similarity is NaN is not
    selected. Similarities of vectors that are not of norm 1 are ranked as they are. Histories of 100,000 and more
    are fine: under XLA, nothing but one similarity per behavior is made of rows that each target has of its own.
    Without XLA, and where several targets share one history, int8 rows are first copied to float32, four times
    their bytes. On PyTorch the whole history is sorted.

    Args:
        num_selected: int K >= 1, behaviors kept.
        order: "similarity" (best first; newest first where the fallback serves) or "time" (oldest first).
        check: also verify values, as `SimTierLayer` does: what is wrong raises a ValueError where values can be read
            and makes "similarity" NaN in a compiled graph.

    Call arguments:
        target, behaviors, behaviors_mask, target_mask, target_scales, behaviors_scales, similarity: as for
            `SimTierLayer`; several targets [C, D] may share one history [1, L, D].
        behaviors_present: bool [B, L] (or [1, L]), True where a behavior exists, with or without embedding; none
            other is selected. The fallback chooses from these. None: the behaviors with an embedding.

    Returns:
        dict of "indices" int32 [B, K] into the history (0 where nothing is selected), "similarity" float32
        [B, K] (clipped to [-1, 1]; 0 where the fallback serves) and "mask" bool [B, K], True where a behavior is
        selected. Use the indices with `gather_behaviors`.

    Raises:
        ValueError: arguments outside their range; shapes that do not fit, int8 rows without scales (when a
            functional model is built, too); with `check`, the values named there.

    Source: the general search unit of SIM and MUSE (arXiv:2512.07216), which select by similarity.

    >>> layer = BehaviorSearch(num_selected=2)
    >>> found = layer(similarity=ops.array([[0.9, -0.3, 0.5], [0.1, 0.2, 0.3]]), target_mask=ops.array([True, False]))
    >>> found["indices"].numpy()
    array([[0, 2],
           [2, 1]], dtype=int32)
    """

    def __init__(
        self, num_selected: int, order: str = "similarity", check: bool = False, **kwargs: typing.Any
    ) -> None:
        kwargs.pop("autocast", None)
        super().__init__(autocast=False, **kwargs)
        self.num_selected = checks.require_int("num_selected", num_selected)
        checks.require(order in SEARCH_ORDERS, f"`order` must be one of {SEARCH_ORDERS}.", order)
        self.order = order
        self.check = checks.require_bool("check", check)
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
        inputs = (target, behaviors, behaviors_mask, target_mask, target_scales, behaviors_scales)
        compared = compare(*inputs, behaviors_present, similarity)
        similarity = ops.stop_gradient(compared.similarity)
        comparable = ops.equal(similarity, similarity)  # not NaN
        for mask in (compared.has_embedding, compared.present):
            comparable = comparable if mask is None else ops.logical_and(comparable, mask)
        key = ops.where(comparable, ops.maximum(similarity, _LEAST), _NOTHING)
        similarity = ops.clip(similarity, -1.0, 1.0)
        if compared.has_target is not None:
            has_target = ops.expand_dims(compared.has_target, -1)
            newest = ops.cast(ops.arange(ops.shape(similarity)[1]), "float32")
            present = compared.has_embedding if compared.present is None else compared.present
            newest = newest if present is None else ops.where(present, newest, _NOTHING)
            key = ops.where(has_target, key, newest)
            similarity = ops.where(has_target, similarity, ops.zeros_like(similarity))
        found = self._select(key, similarity)
        if self.check:
            counts = compared.both_exist()
            counts = counts if compared.present is None else ops.logical_and(counts, compared.present)
            valid = verify_similarity(compared.similarity, counts, *inputs)
            found["similarity"] = ops.where(valid, found["similarity"], float("nan"))
        return found

    def _select(self, key: typing.Any, similarity: typing.Any) -> dict[str, typing.Any]:
        """The places of the K largest keys, and the similarities there."""
        length = padded = ops.shape(key)[1]
        if key.shape[1] is None or key.shape[1] < self.num_selected:
            padding = [[0, 0], [self.num_selected, 0]]  # in front: real behaviors stay the newer ones
            key = ops.pad(key, padding, constant_values=_NOTHING)
            similarity = ops.pad(similarity, padding)
            padded = length + self.num_selected
        best, place = _largest(ops.flip(key, axis=1), self.num_selected)  # flipped: of equals the newest comes first
        mask = best > _NOTHING
        indices = padded - 1 - ops.cast(place, "int32")
        if self.order == "time":
            indices = ops.sort(ops.where(mask, indices, padded), axis=1)
            mask = indices < padded
        chosen = ops.take_along_axis(similarity, ops.where(mask, indices, 0), axis=1)
        return {
            "indices": ops.where(mask, indices - (padded - length), 0),
            "similarity": ops.where(mask, chosen, ops.zeros_like(chosen)),
            "mask": mask,
        }

    def compute_output_shape(
        self, target_shape: typing.Any = None, similarity_shape: typing.Any = None
    ) -> dict[str, tuple[int | None, int]]:
        batch = (target_shape if target_shape is not None else similarity_shape)[0]
        return dict.fromkeys(("indices", "similarity", "mask"), (batch, self.num_selected))

    def compute_output_spec(self, *args: typing.Any, **kwargs: typing.Any) -> dict[str, typing.Any]:
        require_inputs(**inspect.signature(self.call).bind(*args, **kwargs).arguments)
        spec = super().compute_output_spec(*args, **kwargs)
        dtypes = {"indices": "int32", "similarity": "float32", "mask": "bool"}
        return {name: keras.KerasTensor(spec[name].shape, dtype=dtype) for name, dtype in dtypes.items()}

    def compute_mask(self, inputs: typing.Any, previous_mask: typing.Any) -> None:
        return None

    def get_config(self) -> dict[str, typing.Any]:
        return {
            **super().get_config(),
            "num_selected": self.num_selected,
            "order": self.order,
            "check": self.check,
        }


def _largest(key: typing.Any, count: int) -> tuple[typing.Any, typing.Any]:
    """Returns the `count` largest of each row and their places, of equals the one that stands first."""
    if keras.backend.backend() != "torch":
        return ops.top_k(key, count)
    place = ops.argsort(ops.negative(key), axis=1)[:, :count]  # stable, which PyTorch's top_k is not
    return ops.take_along_axis(key, place, axis=1), place


def gather_behaviors(values: typing.Any, indices: typing.Any) -> typing.Any:
    """Takes the selected behaviors out of a history.

    Args:
        values: any dtype [B, L, ...], or [1, L, ...] shared by all rows of `indices`.
        indices: int32 [B, K], from `BehaviorSearch`.
    Returns:
        the dtype of values, [B, K, ...].
    Raises:
        ValueError: `indices` of another rank, or of another batch size than `values`.

    >>> gather_behaviors(ops.array([[5, 6, 7]]), ops.array([[2, 0], [1, 1]])).numpy()
    array([[7, 5],
           [6, 6]], dtype=int32)
    """
    values, indices = ops.convert_to_tensor(values), ops.convert_to_tensor(indices)
    checks.require_rank("indices", indices, 2, "[B, K]")
    histories, rows = values.shape[0], indices.shape[0]
    agree = histories is None or rows is None or histories in (1, rows)
    checks.require(agree, f"`values` must hold one history per row of `indices`, {rows}, or one for all.", histories)
    if checks.is_shared(indices, values):
        return ops.take(values[0], indices, axis=0)
    if keras.utils.is_keras_tensor(values) or keras.utils.is_keras_tensor(indices):  # of sizes that are not known yet
        for _ in range(len(values.shape) - 2):
            indices = ops.expand_dims(indices, -1)
        return ops.take_along_axis(values, indices, axis=1)
    # Whole vectors are taken, not their values one by one; should one history serve all after all, it is the first.
    history = ops.arange(ops.shape(indices)[0], dtype="int32") % ops.shape(values)[0]
    places = ops.expand_dims(history * ops.shape(values)[1], 1) + ops.cast(indices, "int32")
    return ops.take(ops.reshape(values, (-1, *ops.shape(values)[2:])), places, axis=0)
