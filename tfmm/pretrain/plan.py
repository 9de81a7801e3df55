"""What the size of the data makes of the settings: the memory bank and the epochs of one training."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfmm.config import SCLConfig


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings in effect.

    Attributes:
        distinct_positives: positive items of the training pairs.
        memory_bank_size: K; 0 trains without a bank.
        batch_size: B; the pairs of an epoch where they are fewer.
        epochs: how often the pairs are seen.
        pairs_per_epoch: pairs seen in one epoch, a multiple of B.
    """

    distinct_positives: int
    memory_bank_size: int
    batch_size: int
    epochs: int
    pairs_per_epoch: int

    @property
    def steps(self) -> int:
        """The steps of all epochs."""
        return self.epochs * (self.pairs_per_epoch // self.batch_size)


def make_plan(config: SCLConfig, item_ids: np.ndarray) -> Plan:
    """Fits the settings to the training pairs.

    Memory bank: at most `memory_bank_size` keys and at most `memory_bank_share` of the distinct positives. A bank
    as large as a catalog holds every item that would also fit, as a negative: it pulls apart what is alike. One
    smaller than a batch adds little to the in-batch negatives and is off; without in-batch negatives it is what
    the loss stands on, and holds at least a batch.

    Budget: `epochs`, but no more than see `max_pairs_seen` pairs, and one at least; an epoch of more pairs than that
    sees so many.

    Differs from the paper: its bank of 196,800 stands beside hundreds of millions of items.

    Args:
        config: the stage's settings.
        item_ids: int64 [n], the positive's item of each training pair.

    >>> make_plan(SCLConfig(), np.arange(5_000) % 1_800)
    Plan(distinct_positives=1800, memory_bank_size=0, batch_size=64, epochs=8, pairs_per_epoch=4992)
    >>> make_plan(SCLConfig(), np.arange(700_000))
    Plan(distinct_positives=700000, memory_bank_size=7000, batch_size=64, epochs=1, pairs_per_epoch=449984)
    """
    num_pairs, distinct = len(item_ids), len(np.unique(item_ids))
    epochs = max(1, min(config.epochs, config.max_pairs_seen // num_pairs))
    pairs_per_epoch = min(num_pairs, config.max_pairs_seen)
    batch_size = min(config.batch_size, pairs_per_epoch)
    bank = min(config.memory_bank_size, int(config.memory_bank_share * distinct))
    if not config.in_batch_negatives:
        bank = max(bank, min(config.memory_bank_size, batch_size))
    elif bank < batch_size:
        bank = 0
    return Plan(distinct, bank, batch_size, epochs, pairs_per_epoch // batch_size * batch_size)
