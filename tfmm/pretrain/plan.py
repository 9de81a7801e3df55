"""What the size of the data makes of the settings: the memory bank and the epochs of one training."""

from __future__ import annotations

import dataclasses

import numpy as np

from tfmm.config import SCLConfig
from tfmm.scl_config import PAPER

LONE = 1.5  # positives per query: up to here most pairs have a query to which nothing else is known to fit


@dataclasses.dataclass(frozen=True)
class Plan:
    """The settings in effect.

    Attributes:
        distinct_positives: positive items of the training pairs.
        positives_per_query: how many distinct positive items a pair's query has, its own among them; the mean of the
            pairs.
        queries_among_positives: share of the pairs whose query is the positive of a pair, too: 1 of items bought
            together, about 0 of searches.
        memory_bank_size: K; 0 trains without a bank.
        batch_size: B; the pairs of an epoch where they are fewer.
        epochs: how often the pairs are seen.
        pairs_per_epoch: pairs seen in one epoch, a multiple of B.
    """

    distinct_positives: int
    positives_per_query: float
    queries_among_positives: float
    memory_bank_size: int
    batch_size: int
    epochs: int
    pairs_per_epoch: int

    @property
    def steps(self) -> int:
        """The steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    @property
    def steps_per_epoch(self) -> int:
        """The steps of one epoch."""
        return self.pairs_per_epoch // self.batch_size


def make_plan(
    config: SCLConfig, queries: np.ndarray, positives: np.ndarray, item_ids: np.ndarray, replicas: int = 1
) -> Plan:
    """Fits the settings to the training pairs.

    Memory bank: at most `memory_bank_size` keys and at most `memory_bank_share` of the distinct positives. A bank
    as large as a catalog holds every item that would also fit, as a negative: it pulls apart what is alike. Where
    nearly every query has one positive (`LONE`) and is no item itself, as a search that ends in a purchase, little else
    fits, and more negatives teach more: then a bank may hold each distinct positive once, up to `lone_positive_bank`.
    An item, too, has one known positive where the log is short, but others fit. A bank smaller than a batch adds little
    to the in-batch negatives and is off; without in-batch negatives it is what the loss stands on, and holds at least a
    batch. `bank=paper` is the paper's bank beside any catalog: no share bounds it.

    Budget: `epochs`, but no more than see `max_pairs_seen` pairs, and one at least; an epoch of more pairs than that
    sees so many.

    Differs from the paper: its bank of 196,800 stands beside hundreds of millions of items.

    Args:
        config: the stage's settings.
        queries, positives: int64 [n], which contents each training pair has; equal contents have equal numbers.
        item_ids: int64 [n], the positive's item of each training pair.
        replicas: that have equal parts of a batch: one of few pairs leaves some out.
    Raises:
        ValueError: fewer pairs than replicas.

    >>> pairs = np.arange(5_000)
    >>> plan = make_plan(SCLConfig(), 1_800 + pairs, pairs % 1_800, pairs % 1_800)  # searches
    >>> plan.positives_per_query, plan.memory_bank_size, plan.epochs, plan.pairs_per_epoch
    (1.0, 1800, 8, 4992)
    >>> plan = make_plan(SCLConfig(), pairs % 50, pairs % 1_800, pairs % 1_800)  # items bought together
    >>> plan.positives_per_query, plan.memory_bank_size
    (36.0, 0)
    """
    config = config.with_bank
    num_pairs, distinct = len(item_ids), len(np.unique(item_ids))
    epochs = max(1, min(config.epochs, config.max_pairs_seen // num_pairs))
    pairs_per_epoch = min(num_pairs, config.max_pairs_seen)
    batch_size = min(config.batch_size, pairs_per_epoch) // replicas * replicas
    if not batch_size:
        raise ValueError(f"Each of {replicas} devices must have a pair. Received: {num_pairs}. Train on one device.")
    per_query = _positives_per_query(queries, item_ids)
    among = float(np.isin(queries, positives).mean())
    lone = min(config.lone_positive_bank, distinct) if per_query <= LONE and among < 0.5 else 0
    bank = min(config.memory_bank_size, max(int(config.memory_bank_share * distinct), lone))
    if config.bank == PAPER:
        bank = config.memory_bank_size
    elif not config.in_batch_negatives:
        bank = max(bank, min(config.memory_bank_size, batch_size))
    elif bank < batch_size:
        bank = 0
    return Plan(distinct, per_query, among, bank, batch_size, epochs, pairs_per_epoch // batch_size * batch_size)


def _positives_per_query(queries: np.ndarray, item_ids: np.ndarray) -> float:
    """Returns the mean, over pairs, of the number of distinct items that are positives of the pair's query."""
    _, query, pairs = np.unique(queries, return_inverse=True, return_counts=True)
    _, item = np.unique(item_ids, return_inverse=True)
    distinct = np.unique(query * (item.max(initial=0) + 1) + item)
    positives = np.bincount(distinct // (item.max(initial=0) + 1), minlength=len(pairs))
    return float(pairs @ positives / len(queries))
