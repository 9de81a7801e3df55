"""How many of a modality's items an encoder has: what a switch from one encoder to another waits for."""

from __future__ import annotations

import functools
import typing

import numpy as np

from tfmm.index import store

ENOUGH = 0.99  # of the active encoder's items: a few contents that one encoder takes are refused by another


class Coverage(typing.NamedTuple):
    """How many of some items an encoder has."""

    covered: int
    items: int

    @property
    def share(self) -> float:
        """1.0 where there are no items to cover."""
        return self.covered / self.items if self.items else 1.0

    def __str__(self) -> str:
        return f"{self.covered:,} of {self.items:,} items"


def of_active(index: store.IndexStore, modality: str, encoder_version: str) -> Coverage:
    """Returns how many of the active encoder's items another has as well.

    Raises:
        ValueError: the encoder is unknown.
    """
    own = index.live_ids(modality, encoder_version)
    active = next((e for e in index.encoders() if e.modality == modality and e.active), None)
    known = own if active is None else index.live_ids(modality, active.encoder_version)
    return Coverage(int(np.isin(known, own, assume_unique=True).sum()), len(known))


def of_all(index: store.IndexStore, modality: str) -> dict[str, Coverage]:
    """Returns by encoder version how many it has of the items that any encoder of the modality has."""
    versions = [entry.encoder_version for entry in index.encoders() if entry.modality == modality]
    own = {version: index.live_ids(modality, version) for version in versions}
    count = len(functools.reduce(np.union1d, own.values(), np.zeros(0, np.int64)))
    return {version: Coverage(len(ids), count) for version, ids in own.items()}


def is_coming(index: store.IndexStore, modality: str, encoder_version: str) -> bool:
    """Returns whether an encoder is later than the active one, so that its embedding of the items is yet to be done."""
    own = [entry for entry in index.encoders() if entry.modality == modality]
    place = next((n for n, entry in enumerate(own) if entry.encoder_version == encoder_version), None)
    active = next((n for n, entry in enumerate(own) if entry.active), None)
    return place is not None and active is not None and place > active
