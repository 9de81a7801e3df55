"""The settings of pre-ranking: a light head on the ranking model, which scores thousands of candidates at once."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class PreRankingConfig:
    """The light head of `tfmm train --head pre-ranking`, its training and its place in what is served."""

    epochs: int = 4  # many: embeddings are the ranking model's, and stay
    batch_size: int = 512
    learning_rate: float = 5e-3
    distillation_weight: float = 1.0  # of the squared distance to the ranking model's logits, beside the clicks' loss
    hidden_fraction: float = 0.1  # of training rows: the target's vectors are hidden, so that it knows to do without
    num_tiers: int = 20  # of SimTier
    dim: int = 16  # values of the user and of an item, whose dot product is one of the inputs
    units: tuple[int, ...] = (16,)  # hidden layers per candidate: what they cost is paid thousands of times
    candidate_buckets: tuple[int, ...] = (512, 5_120)  # sizes that XLA compiles, as those of `export`
    min_recall: float = 0.9  # of the ranking model's best 100 among pre-ranking's best 500: less is not pushed
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"`{name}` must be at least 1. Received: {getattr(self, name)}."
            for name in ("epochs", "batch_size", "num_tiers", "dim")
            if getattr(self, name) < 1
        ]
        if not self.learning_rate > 0.0:
            faults.append(f"`learning_rate` must be positive. Received: {self.learning_rate}.")
        if not self.distillation_weight >= 0.0:
            faults.append(f"`distillation_weight` must not be negative. Received: {self.distillation_weight}.")
        for name in ("hidden_fraction", "min_recall"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                faults.append(f"`{name}` must lie in 0..1. Received: {getattr(self, name)}.")
        if not self.units or min(self.units) < 1:
            faults.append(f"`units` must name hidden layers of at least 1. Received: {self.units}.")
        sizes = list(self.candidate_buckets)
        if not 0 < len(sizes) <= 6 or sizes != sorted(set(sizes)) or sizes[0] < 1:
            faults.append(f"`candidate_buckets` must hold 1 to 6 ascending positive sizes. Received: {sizes}.")
        if faults:
            raise ValueError(" ".join(faults))


DEFAULT_PRE_RANKING = PreRankingConfig()
