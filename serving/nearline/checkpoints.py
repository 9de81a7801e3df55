"""Checkpoints of the near-line trainer: weights, moments, vocabularies, positions and waiting rows, in one folder."""

from __future__ import annotations

import json
import pathlib
import shutil
import time
import typing

import numpy as np

from serving.nearline.rows import Columns
from tfmm import artifacts
from tfmm.training import checkpoint

STATE, FACTS, ROWS = "state", "facts.json", "rows.npz"
_SHARE = 20.0  # how many times a save has to pass before the next one


class Checkpoints:
    """The newest checkpoint in a folder, each complete or absent: it is written aside, synced and renamed.

    Args:
        folder: made where missing.
        least_s: seconds between two of them; more where saving takes long, so that it is 5 % of the time at most.
    """

    def __init__(self, folder: pathlib.Path, least_s: float):
        self._folder, self._least_s = folder, least_s
        self._saved_at, self._seconds = time.monotonic(), 0.0
        folder.mkdir(parents=True, exist_ok=True)

    def newest(self) -> pathlib.Path | None:
        """Returns the folder of the newest checkpoint."""
        numbers = self._numbers()
        return self._folder / str(numbers[-1]) if numbers else None

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in self._folder.iterdir() if path.name.isdigit())

    def is_due(self) -> bool:
        return time.monotonic() - self._saved_at >= max(self._least_s, _SHARE * self._seconds)

    def save(
        self,
        save_state: typing.Callable[[pathlib.Path], None],
        facts: typing.Mapping[str, typing.Any],
        rows: typing.Mapping[str, Columns],
    ) -> None:
        """Writes all that the training goes on from in place of the one before.

        Args:
            save_state: writes weights, moments and vocabularies into a folder.
            facts: JSON values, positions among them.
            rows: by what they wait for, raw columns.
        Raises:
            OSError: there is no room; the one before stays.
        """
        started = time.monotonic()
        self._saved_at = started  # where it fails, it is tried again as late
        number = (self._numbers() or [0])[-1] + 1
        with artifacts.under_construction(self._folder / str(number)) as building:
            save_state(building / STATE)
            (building / FACTS).write_text(json.dumps(facts))
            with (building / ROWS).open("wb") as file:
                np.savez(file, **{f"{part}/{name}": v for part, columns in rows.items() for name, v in columns.items()})
            _sync(building)
            building.replace(self._folder / str(number))
        checkpoint.sync(self._folder)
        for old in self._numbers()[:-1]:
            shutil.rmtree(self._folder / str(old), ignore_errors=True)
        self._seconds = time.monotonic() - started
        self._saved_at = time.monotonic()


def read(folder: pathlib.Path) -> tuple[dict[str, typing.Any], dict[str, Columns]]:
    """Returns the facts and rows of a checkpoint."""
    rows: dict[str, Columns] = {}
    with (folder / ROWS).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        for key in file.files:
            part, _, name = key.partition("/")
            rows.setdefault(part, {})[name] = file[key]
    return json.loads((folder / FACTS).read_text()), rows


def _sync(folder: pathlib.Path) -> None:
    """Brings all files of a folder to the disk."""
    for path in [folder, *folder.rglob("*")]:
        checkpoint.sync(path)
