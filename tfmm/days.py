"""The settings of training day after day: each new model goes on from the one before, over what has come since."""

from __future__ import annotations

import dataclasses

LATEST = "latest"  # the last model that was blessed and pushed


@dataclasses.dataclass(frozen=True)
class DaysConfig:
    """When a run goes on from an earlier model, and what of the new span it holds back."""

    continue_from: str = ""  # of the pipeline: "latest", the last model that was blessed and pushed; "": from scratch
    make_every: int = 0  # of the pipeline: models after which MAKE and click models are trained anew; 0: never
    encoders_every: int = 0  # of the pipeline: models after which encoders are, and all that stands on them; 0: never
    heldout_rows: int = 0  # newest impressions of a span that are held back to judge by
    heldout_s: int = 0  # or newest seconds; both 0: the share `data.eval_fraction` of the span
    unseen_days: int = 30  # an id that no span has shown for so long is a gap in its table
    max_gaps: float = 0.5  # share of a table that may be gaps; beyond it a full retrain is asked for

    def __post_init__(self) -> None:
        if self.continue_from not in ("", LATEST):
            raise ValueError(
                f"`continue_from` must be {LATEST!r}, or empty to train from scratch. Received: {self.continue_from!r}."
            )
        for name in ("make_every", "encoders_every", "heldout_rows", "heldout_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must not be negative. Received: {getattr(self, name)}.")
        if self.heldout_rows and self.heldout_s:
            raise ValueError(
                "A span is held back by `heldout_rows` or by `heldout_s`, not by both. Received: "
                f"{self.heldout_rows} rows and {self.heldout_s} seconds."
            )
        if self.unseen_days < 1:
            raise ValueError(f"`unseen_days` must be at least 1. Received: {self.unseen_days}.")
        if not 0.0 <= self.max_gaps <= 1.0:
            raise ValueError(f"`max_gaps` must lie in 0..1. Received: {self.max_gaps}.")


DEFAULT_DAYS = DaysConfig()
