"""Where in a training an encoder is evaluated, and what its manifest tells of it."""

from __future__ import annotations

import math
import typing

import numpy as np

from tfmm.pretrain import accuracy
from tfmm.pretrain.best import PREFIX, Best
from tfmm.pretrain.heldout import Heldout
from tfmm.pretrain.plan import Plan
from tfmm.scl_config import BEST, LAST

# What a manifest tells of each evaluation.
TOLD = ("step", "loss", "temperature", *(f"{part}acc_at_{n}" for part in ("", PREFIX) for n in accuracy.ACCURACY_AT))


class Evaluations:
    """Evaluates an encoder after every so many steps, by held-out pairs and, to choose weights, by pairs kept back.

    Args:
        plan: how many steps there are.
        every: steps between evaluations, the last of which comes at the end; 0: after each epoch.
        heldout: the pairs that are reported; nothing is chosen by them.
        validation: the pairs that the best weights are chosen by; None: nothing is chosen.
    """

    def __init__(self, plan: Plan, every: int, heldout: Heldout, validation: Heldout | None) -> None:
        self._plan, self._within, self._every = plan, every > 0, every or plan.steps_per_epoch
        self._heldout, self._validation = heldout, validation
        self.best = None if validation is None else Best(validation.encoder.model)

    @property
    def count(self) -> int:
        """Their number, that of the parts of the training."""
        return math.ceil(self._plan.steps / self._every)

    def steps(self, part: int) -> tuple[int, int]:
        """Returns the first step of a part, counted from 0, and the one after its last."""
        return part * self._every, min((part + 1) * self._every, self._plan.steps)

    def __call__(self, part: int) -> dict[str, float]:
        """Returns what the history tells beside the losses of a part, after its last step."""
        _, step = self.steps(part)
        found: dict[str, float] = {"step": step, **accuracy.at_n(self._heldout.ranks())}
        if self._within:
            found["epoch"] = step / self._plan.steps_per_epoch
        if self.best is not None and self._validation is not None:
            accuracies = accuracy.at_n(self._validation.ranks())
            self.best.note(accuracies, step)
            found |= {f"{PREFIX}{name}": value for name, value in accuracies.items()}
        return found

    def keep(self, exported: str) -> tuple[dict[str, list[np.ndarray]], dict[str, typing.Any]]:
        """Gives the encoder the weights to export; returns the weights kept, and facts of them. Nothing without a best.

        Args:
            exported: last or best.
        """
        if self.best is None or self._validation is None:
            return {}, {}
        model = self._validation.encoder.model
        kept = {LAST: model.get_weights(), BEST: self.best.weights()}
        steps = {LAST: self._plan.steps, BEST: self.best.step}
        model.set_weights(kept[exported])
        return kept, {"validation_pairs": len(self._validation.pairs), "kept": steps, "exported": exported}


def told(history: typing.Iterable[typing.Mapping[str, float]]) -> list[dict[str, float]]:
    """Returns what a manifest tells of each line of a history."""
    return [{name: line[name] for name in TOLD if name in line} for line in history]
