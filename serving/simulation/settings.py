"""How large a simulation is, and what it needs of a workdir."""

from __future__ import annotations

import dataclasses
import math
import typing

from serving.demo.trained import Trained, workdir_faults
from serving.simulation.arms import Rules
from serving.simulation.world import HOURS
from tfmm import extras
from tfmm.config import RunConfig
from tfmm.stages.folders import SERVING, STATE


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the days are simulated.

    Raises:
        ValueError: all that cannot be.
    """

    days: int = 7
    visits_per_day: int = 1024  # at least: each period has as many as fill the trainer's blocks
    slots: int = 8  # items that a visit is shown
    candidates: int = 64  # that compete for them, of which some may be drawn twice
    push_hours: int = 12  # a period: after it the near-line trainers' models are judged, and pushed
    seed: int = 0

    def __post_init__(self) -> None:
        faults = [
            f"`{name}` must be at least 1, not {value}"
            for name in ("days", "visits_per_day", "slots", "push_hours")
            if (value := getattr(self, name)) < 1
        ]
        if self.seed < 0:
            faults.append(f"`seed` must not be negative, not {self.seed}")
        if not faults and HOURS % self.push_hours:
            faults.append(f"`push_hours` must divide a day's 24, not {self.push_hours}")
        if self.candidates < 4 * self.slots:
            faults.append(f"`candidates` must be at least 4 for each of {self.slots} slots, not {self.candidates}")
        if faults:
            raise ValueError("No days can be simulated so:\n- " + "\n- ".join(faults))

    @property
    def num_periods(self) -> int:
        return self.days * HOURS // self.push_hours

    def visits_per_period(self, batch_size: int) -> int:
        """Returns how many visits fill whole blocks of the near-line trainer, two at least.

        So every row is trained in its period, and a candidate is judged on rows that it has not seen.

        Args:
            batch_size: rows of a block.

        >>> Settings().visits_per_period(512), Settings(visits_per_day=10).visits_per_period(512)
        (512, 128)
        """
        per_block = math.lcm(batch_size, self.slots) // self.slots
        wanted = math.ceil(self.visits_per_day * self.push_hours / HOURS / per_block)
        least = 1 if per_block * self.slots > batch_size else 2
        return per_block * max(wanted, least)

    def rules(self, batch_size: int) -> Rules:
        """Returns the rules of every arm; a quarter of a period's blocks, one at least, judges the candidate."""
        rows = self.visits_per_period(batch_size) * self.slots
        return Rules(self.slots, rows, batch_size * max(rows // batch_size // 4, 1))


def verify(trained: Trained) -> RunConfig:
    """Returns the run of a workdir, once nothing speaks against a simulation.

    Args:
        trained: its folders.
    Raises:
        ValueError: all that lacks, with the way out.
    """
    faults = [*workdir_faults(trained), *_faults(trained)]
    for extra, modules in {"stream": ("apache_beam",), "serving": ("grpc", "orjson")}.items():
        try:
            extras.verify(extra, *modules)
        except extras.MissingExtraError as error:
            faults.append(str(error))
    if faults:
        raise ValueError("No A/B can be simulated so:\n- " + "\n- ".join(faults))
    return typing.cast(RunConfig, trained.run)


def _faults(trained: Trained) -> typing.Iterator[str]:
    run = trained.run
    if run is None or trained.version is None:
        return
    if lacking := [str(path) for path in (trained.id_model / SERVING, trained.id_model / STATE) if not path.exists()]:
        yield (
            f"{trained.workdir} must hold the click model of ids alone, too. Received: no {', '.join(lacking)}. "
            f"`tfmm quickstart --workdir {trained.workdir}` trains it"
        )
    if run.marketplace.rich:
        yield (
            "the marketplace must not be a rich one, since what that plants in clicks beside taste has no part in a "
            "simulated visit. Received: marketplace.rich=true. Run a quickstart without it in another workdir"
        )
    if not run.marketplace.new_items_per_day:
        yield "`marketplace.new_items_per_day` must be positive, since nothing is new without. Received: 0"
    others = [c.name for c in run.feature_set.served if c.sequence is not None and c.feature.role != "item"]
    if others and not run.marketplace.rich:
        yield (
            "sequences must bring items' features alone, since a simulated click has no others. Received: "
            f"{', '.join(others)}"
        )
