"""Vectors hidden from some behaviors in training, so that the click model learns what to do without them."""

from __future__ import annotations

import typing

import numpy as np

from tfmm import config as config_lib
from tfmm.features import FeatureSet
from tfmm.index.item_vectors import NO_EMBEDDING, slots_name
from tfmm.training import examples as examples_lib

_STREAM = 1  # of random numbers, apart from the order of rows


def hide_behaviors(
    config: config_lib.CTRConfig,
    modalities: typing.Iterable[str],
    feature_set: FeatureSet,
    segment: int,
    columns: examples_lib.Columns,
    batch: int,
) -> examples_lib.Columns:
    """Returns training rows in which some behaviors have lost vectors, as if the index had none for those items.

    Per modality, a share `config.hidden_behaviors_fraction` of the rows loses each behavior's vector with a chance that
    is drawn from 0..1 per row. Slots are taken away, from which masks, tiers and counts of missing vectors all follow.

    Args:
        config: the share and the seed.
        modalities: those that the model uses.
        feature_set: its sequences.
        segment: which part of training the rows are.
        columns: a batch of rows, see `training.sources`.
        batch: its number in the segment; with it, segment and seed give the draws, whatever was drawn before.
    Returns:
        The columns; those that nothing is taken from are the same arrays.
    """
    result = dict(columns)
    generator = np.random.default_rng([config.seed, segment, _STREAM, batch])
    for modality in modalities:
        for sequence in feature_set.sequences:
            name = slots_name(modality, sequence.name)
            num_rows = len(columns[name])
            chance = generator.random(num_rows) * (generator.random(num_rows) < config.hidden_behaviors_fraction)
            is_hidden = generator.random(columns[name].shape, np.float32) < chance[:, None]
            result[name] = np.where(is_hidden, np.int32(NO_EMBEDDING), columns[name])
    return result
