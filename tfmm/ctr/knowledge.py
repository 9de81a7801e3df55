"""What item vectors add to the click model, by its methods; with the target's vectors hidden perhaps."""

from __future__ import annotations

import functools
import typing

from keras import ops

from tfmm import vectors as vectors_lib
from tfmm.ctr import integrations
from tfmm.ctr.impressions import Impressions, product


class Knowledge:
    """What the methods make of item vectors in one call of the click model.

    Args:
        model: the CTRModel.
        impressions: what it sees without vectors.
        training: whether it trains.
    """

    def __init__(self, model: typing.Any, impressions: Impressions, training: bool | None) -> None:
        self._model, self._inputs, self._training = model, impressions.inputs, training
        self._behaviors = {s.name: impressions.behaviors(s.name) for s in model.feature_set.sequences if model.dims}
        self._found: dict[tuple[str, bool], tuple[list[typing.Any], dict[str, list[typing.Any]]]] = {}

    def parts(self, hidden: typing.Collection[str]) -> list[typing.Any]:
        """Returns what the ranker gets beside the impressions, as if no target had vectors in `hidden` modalities."""
        parts: list[typing.Any] = []
        pairs: dict[str, list[typing.Any]] = {name: [] for name in self._behaviors}
        for modality in self._model.dims:
            of_modality, beside = self._modality(modality, modality in hidden)
            parts += of_modality
            for name, found in beside.items():
                pairs[name] += found
        for name, attention in self._model.wide_attention.items():
            of = self._behaviors[name]
            target = ops.concatenate([of.target, *(pair[0] for pair in pairs[name])], axis=-1)
            behaviors, mask = _joined([of.behaviors, *(pair[1] for pair in pairs[name])], of.is_behavior)
            interest = attention(target, behaviors, behaviors_mask=mask, training=self._training)
            parts += [interest, product(interest, target)]
        return parts

    def _modality(self, modality: str, is_hidden: bool) -> tuple[list[typing.Any], dict[str, list[typing.Any]]]:
        if (modality, is_hidden) not in self._found:
            self._found[modality, is_hidden] = self._integrate(modality, is_hidden)
        return self._found[modality, is_hidden]

    def _integrate(self, modality: str, is_hidden: bool) -> tuple[list[typing.Any], dict[str, list[typing.Any]]]:
        target = vectors_lib.take(self._inputs, modality, vectors_lib.TARGET)
        if is_hidden:
            target = target._replace(mask=ops.zeros_like(target.mask))
        sequences = self._model.feature_set.sequences
        layers = {sequence.name: self._model.integrations_of(modality, sequence) for sequence in sequences}
        all_layers = [layer for found in layers.values() for layer in found]
        is_zero = is_hidden and all(layer.is_zero_without_target and not layer.is_beside for layer in all_layers)
        counts, own = [], [ops.cast(target.mask, "float32")[:, None]]
        beside: dict[str, list[typing.Any]] = {}
        for sequence in sequences:
            of = self._behaviors[sequence.name]
            vectors = vectors_lib.take(self._inputs, modality, sequence.name)
            without = ops.logical_and(of.is_behavior, ops.logical_not(vectors.mask))
            counts.append(ops.log1p(ops.sum(ops.cast(without, "float32"), axis=1, keepdims=True)))
            beside[sequence.name] = []
            context = view = integrations.Context(*of, target, vectors, self._training)
            for layer in () if is_zero else layers[sequence.name]:
                if (pair := layer.beside(context)) is not None:
                    beside[sequence.name].append(pair)
                view = layer.search(view)
                own += layer.parts(view)
        if is_zero:  # of the shapes that the shown target gives
            own = [ops.zeros_like(part) for part in self._modality(modality, False)[0][len(counts) :]]
        return [*counts, *own], beside


def _joined(parts: typing.Sequence[typing.Any], mask: typing.Any) -> tuple[typing.Any, typing.Any]:
    """Joins [B, L, .] and [1, L, .] tensors on the last axis, with their mask; [1, L, .] where all are."""
    if len(parts) == 1:
        return parts[0], mask
    rows = functools.reduce(ops.maximum, [ops.shape(part)[0] for part in parts])
    if all(part.shape[0] == 1 for part in parts):
        rows = 1
    wide = [ops.broadcast_to(part, (rows, *part.shape[1:])) for part in parts]
    return ops.concatenate(wide, axis=-1), ops.broadcast_to(mask, (rows, mask.shape[1]))
