"""How far the columns of a span of examples may lie from those of the span before."""

from __future__ import annotations

import dataclasses
import math
import typing

from tfmm.features import KEYS, LABEL, FeatureSet
from tfmm.scl_config import require


@dataclasses.dataclass(frozen=True)
class DriftConfig:
    """What a change of a column does, by the Jensen-Shannon divergence of its values: 0 the same, 1 none in common."""

    warn: float = 0.3  # from here on a change is said; a column that half of the rows have lost is at 0.31
    stop: float = 0.5  # from here on it stops the run; more than 1: none does

    def __post_init__(self) -> None:
        require(self.warn > 0.0, "`warn` must be positive.", self.warn)
        require(self.warn <= self.stop, f"`stop` must be at least `warn`, {self.warn}.", self.stop)


def compared(feature_set: FeatureSet) -> tuple[str, ...]:
    """Returns the columns of examples whose values should stay about the same from span to span.

    Which users and items there are, and when, changes with each span by itself, and so do lengths of histories, whose
    padding counts as an id of 0 does; as a number it does not count.

    >>> compared(FeatureSet())
    ('category', 'label')
    """
    own = [c for c in feature_set.columns if c.feature.name not in KEYS and c.feature.kind != "time"]
    return (*(column.name for column in own if column.sequence is None or column.is_float), LABEL)


def of_counts(counts: typing.Sequence[float], others: typing.Sequence[float]) -> float | None:
    """Returns the Jensen-Shannon divergence of two histograms with the same bins, of logarithms to the base of 2.

    Lin, Divergence measures based on the Shannon entropy, IEEE Transactions on Information Theory 37 (1991), equation
    3.4 with equal weights. Unlike the population stability index it needs no bin to be filled, and has an end: 1.

    Args:
        counts, others: what the bins hold, not negative.
    Returns:
        None where one histogram is empty.

    >>> of_counts([3, 1], [6, 2]), of_counts([5, 0], [0, 1]), round(of_counts([1, 0], [1, 1]), 2), of_counts([0], [1])
    (0.0, 1.0, 0.31, None)
    """
    total, other_total = sum(counts), sum(others)
    if not total or not other_total:
        return None
    pairs = [(count / total, other / other_total) for count, other in zip(counts, others, strict=True)]
    return _divergence(pairs)


def of_shares(share: float, other: float) -> float:
    """Returns the Jensen-Shannon divergence of two shares in 0..1, such as those of rows that lack a value.

    >>> round(of_shares(0.0, 0.5), 2), of_shares(0.0, 1.0), of_shares(0.2, 0.2)
    (0.31, 1.0, 0.0)
    """
    return _divergence([(share, other), (1.0 - share, 1.0 - other)])


def _divergence(pairs: typing.Sequence[tuple[float, float]]) -> float:
    return sum(p * math.log2(2.0 * p / (p + q)) / 2.0 for a, b in pairs for p, q in ((a, b), (b, a)) if p > 0.0)
