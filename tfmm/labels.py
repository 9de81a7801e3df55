"""What a click model learns from each impression: the label, how much a row counts, which negatives were kept."""

from __future__ import annotations

import collections
import dataclasses
import typing

KEYS = ("user_id", "item_id")  # every example has them: the join, the vectors and GAUC go by them
LABEL = "label"
SAMPLE_WEIGHT = "sample_weight"  # of an example, where the label declares one
NEGATIVE_RATE = "negative_rate"
FIELDS = {LABEL: "column", SAMPLE_WEIGHT: "weight", NEGATIVE_RATE: "negative_rate_column"}  # of `Label`, by column


@dataclasses.dataclass(frozen=True)
class Label:
    """What a click model learns from each impression, how much it counts, and which share of the negatives is logged.

    A log that keeps each negative with probability r shows odds of a click that are 1/r times too high, so training
    compares `logit - log(r)` with the label, and the logit itself, which is served, is that of the whole log (King
    and Zeng, 2001). In metrics a negative counts as 1/r rows. Weights multiply both.
    """

    column: str = LABEL  # of impressions: 1 clicked, 0 not
    weight: str = ""  # column of impressions: how often a row counts, a finite number of at least 0; "": once
    negative_rate: float = 1.0  # share of the negatives that the log keeps, in (0, 1]
    negative_rate_column: str = ""  # column of impressions: the share by row; of a click, that of negatives like it

    @property
    def sources(self) -> dict[str, str]:
        """The columns of examples that say it, each with the column of impressions that it comes from."""
        return {name: getattr(self, field) for name, field in FIELDS.items() if getattr(self, field)}

    @property
    def is_sampled(self) -> bool:
        """Whether the log keeps only a share of the negatives."""
        return self.negative_rate != 1.0 or bool(self.negative_rate_column)

    def faults(self) -> typing.Iterator[str]:
        """Yields what is wrong with it, a line each."""
        if not self.column:
            yield "label: `column` must name a column of impressions"
        if not 0.0 < self.negative_rate <= 1.0:
            yield f"label: `negative_rate` must lie in (0, 1], a share such as 0.1, not {self.negative_rate}"
        if self.negative_rate != 1.0 and self.negative_rate_column:
            yield (
                "label: either `negative_rate`, one for all rows, or `negative_rate_column`, not both; "
                f"{self.negative_rate} and {self.negative_rate_column!r} are given"
            )
        for column, count in collections.Counter((*self.sources.values(), *KEYS, "timestamp", "split")).items():
            if count > 1:
                yield f"label: `column`, `weight`, `negative_rate_column` must be columns of their own, not {column!r}"


DEFAULT_LABEL = Label()
