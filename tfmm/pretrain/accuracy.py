"""Acc@N of an encoder beside its untrained self and chance, with intervals over the held-out items (equation 6)."""

from __future__ import annotations

import typing

import numpy as np

from tfmm import metrics

ACCURACY_AT = (1, 5)
REPLICATES = 1000  # draws of items


def at_n(ranks: np.ndarray) -> dict[str, float]:
    """Returns acc_at_1 and acc_at_5 of int64 [n] ranks, see `metrics.positive_ranks`.

    >>> at_n(np.array([1, 2, 9, 1]))
    {'acc_at_1': 0.5, 'acc_at_5': 0.75}
    """
    return {f"acc_at_{n}": float(np.mean(ranks <= n)) for n in ACCURACY_AT}


def judge(ranks: np.ndarray, untrained_ranks: np.ndarray, item_ids: np.ndarray) -> dict[str, typing.Any]:
    """Judges a trained encoder's ranks beside those of fresh weights.

    Args:
        ranks: int64 [n], of each held-out pair's positive among all positives.
        untrained_ranks: int64 [n], the same by the encoder before training.
        item_ids: int64 [n], item of each positive: the candidates. Pairs of one item are drawn together.
    Returns:
        Per `acc_at_N`: itself, `*_untrained`, `*_chance`; `*_interval` (low, high, level) and `*_gain` (trained minus
        untrained: value, low, high, level), both None where fewer than `metrics.MIN_GROUPS` items say nothing.
    """
    items = len(np.unique(item_ids))
    facts: dict[str, typing.Any] = {**at_n(ranks)}
    facts |= {f"{name}_untrained": value for name, value in at_n(untrained_ranks).items()}
    for n in ACCURACY_AT:
        hits, untrained = (ranks <= n).astype(float), (untrained_ranks <= n).astype(float)
        facts[f"acc_at_{n}_chance"] = min(1.0, n / items)
        interval, gain = (_interval(values, item_ids, items) for values in (hits, hits - untrained))
        facts[f"acc_at_{n}_interval"] = interval and {key: interval[key] for key in ("low", "high", "level")}
        facts[f"acc_at_{n}_gain"] = gain
    return facts


def _interval(values: np.ndarray, item_ids: np.ndarray, items: int) -> dict[str, float] | None:
    if items < metrics.MIN_GROUPS:
        return None
    found = metrics.mean_interval(values, item_ids, replicates=REPLICATES)
    return {key: getattr(found, key) for key in ("value", "low", "high", "level")}


def no_better(facts: typing.Mapping[str, typing.Any], modality: str) -> str | None:
    """Returns a sentence where training did not raise Acc@1 beyond noise, by what `judge` found; else None."""
    gain = facts.get("acc_at_1_gain")
    if gain is None or gain["low"] > 0.0:
        return None
    return (
        f"The {modality} encoder's Acc@1 is not above that of its untrained self beyond noise: "
        f"{facts['acc_at_1']:.4f}, untrained {facts['acc_at_1_untrained']:.4f}, difference {gain['value']:+.4f} "
        f"[{gain['low']:+.4f}, {gain['high']:+.4f}], over {facts['heldout_pairs']:,} held-out pairs of "
        f"{facts['heldout_items']:,} items."
    )
