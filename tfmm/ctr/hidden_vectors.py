"""Vectors hidden from some training rows, so that the click model learns what to do without them."""

from __future__ import annotations

import numpy as np

from tfmm import config as config_lib
from tfmm.make import examples as examples_lib
from tfmm.make.item_vectors import NO_EMBEDDING

_STREAM = 1  # of random numbers, apart from the order of rows


def hide_vectors(columns: examples_lib.Columns, config: config_lib.CTRConfig, segment: int) -> examples_lib.Columns:
    """Returns training rows of which some have lost vectors, as if the index had none for those items.

    A share `config.hidden_target_fraction` of the rows loses the target's vectors in one or more modalities; every set
    of modalities is as likely, but with `config.id_head` never all of them, as that head learns from every row. Per
    modality, a share `config.hidden_behaviors_fraction` of the rows loses each behavior's vector with a chance that is
    drawn from 0..1 per row. Slots are taken away, from which masks, tiers and counts of missing vectors all follow.

    Args:
        columns: rows of `ctr.train.read_examples`.
        config: the shares, the modalities and the seed.
        segment: which part of training the rows are; with the seed it gives the draws, whatever was drawn before.
    Returns:
        The columns; those without slots are the same arrays.
    """
    result = dict(columns)
    generator = np.random.default_rng([config.seed, segment, _STREAM])
    num_rows = len(columns["item_index"])
    sets = max(2 ** len(config.modalities) - 1 - config.id_head, 0)  # of modalities, as bits; the last one is all
    hidden = generator.integers(1, sets + 1, num_rows) if sets else np.zeros(num_rows, np.int64)
    hidden *= generator.random(num_rows) < config.hidden_target_fraction
    for bit, modality in enumerate(config.modalities):
        target, behaviors = f"{modality}_target_slot", f"{modality}_behavior_slots"
        result[target] = np.where(hidden >> bit & 1, NO_EMBEDDING, columns[target])
        chance = generator.random(num_rows) * (generator.random(num_rows) < config.hidden_behaviors_fraction)
        is_hidden = generator.random(columns[behaviors].shape, np.float32) < chance[:, None]
        result[behaviors] = np.where(is_hidden, NO_EMBEDDING, columns[behaviors])
    return result
