"""Vectors hidden from some behaviors in training, so that the click model learns what to do without them."""

from __future__ import annotations

import numpy as np

from tfmm import config as config_lib
from tfmm.make import examples as examples_lib
from tfmm.make.item_vectors import NO_EMBEDDING

_STREAM = 1  # of random numbers, apart from the order of rows


def hide_behaviors(columns: examples_lib.Columns, config: config_lib.CTRConfig, segment: int) -> examples_lib.Columns:
    """Returns training rows in which some behaviors have lost vectors, as if the index had none for those items.

    Per modality, a share `config.hidden_behaviors_fraction` of the rows loses each behavior's vector with a chance that
    is drawn from 0..1 per row. Slots are taken away, from which masks, tiers and counts of missing vectors all follow.

    Args:
        columns: rows of `ctr.train.read_examples`.
        config: the share, the modalities and the seed.
        segment: which part of training the rows are; with the seed it gives the draws, whatever was drawn before.
    Returns:
        The columns; those that nothing is taken from are the same arrays.
    """
    result = dict(columns)
    generator = np.random.default_rng([config.seed, segment, _STREAM])
    for modality in config.modalities:
        name = f"{modality}_behavior_slots"
        num_rows = len(columns[name])
        chance = generator.random(num_rows) * (generator.random(num_rows) < config.hidden_behaviors_fraction)
        is_hidden = generator.random(columns[name].shape, np.float32) < chance[:, None]
        result[name] = np.where(is_hidden, NO_EMBEDDING, columns[name])
    return result
