"""What an item index holds: rows and coverage by encoder, positions of its sources, dead letters, bytes."""

from __future__ import annotations

import dataclasses
import time
import typing

from tfmm.index import coverage, store


@dataclasses.dataclass(frozen=True)
class TableStatus:
    """One encoder's table, or that of a layout of items' features."""

    modality: str
    encoder_version: str
    dim: int
    active: bool
    rows: int  # of items that are not withdrawn
    items: int  # that any encoder of the modality has
    newest_sequence: int  # 0: it has no row
    newest_age_s: float | None  # since the event time of the newest change; None: there is none, or it tells no time

    @property
    def coverage(self) -> coverage.Coverage:
        """How many of the modality's items it has."""
        return coverage.Coverage(self.rows, self.items)


@dataclasses.dataclass(frozen=True)
class IndexStatus:
    """What `read` finds.

    The parts are read one after another, so writers may be in between.
    """

    tables: tuple[TableStatus, ...]  # by modality, the oldest encoder first
    newest_sequence: int
    positions: dict[str, int]  # by source of events
    dead_letters: dict[str, int]  # by source
    size: store.Size | None

    def to_dict(self) -> dict[str, typing.Any]:
        """Returns the same as plain values, with each table's share of its modality's items."""
        tables = [{**dataclasses.asdict(table), "coverage": round(table.coverage.share, 6)} for table in self.tables]
        size = None if self.size is None else self.size._asdict()
        return {**dataclasses.asdict(self), "tables": tables, "size": size}


def read(index: store.IndexStore) -> IndexStatus:
    """Reads what an index holds; the ids of all rows are read once."""
    now_us, entries = time.time_ns() // 1000, index.encoders()
    covered = {modality: coverage.of_all(index, modality) for modality in sorted({e.modality for e in entries})}
    tables = []
    for modality, of_version in covered.items():
        for entry in entries:
            if entry.modality != modality or entry.encoder_version not in of_version:
                continue
            newest = index.last_sequence(modality, entry.encoder_version)
            times = index.changes(modality, entry.encoder_version, max(newest - 1, 0), 1).event_times_us.tolist()
            age = (now_us - times[0]) / 1e6 if times and times[0] > 0 else None
            rows, items = of_version[entry.encoder_version]
            facts = entry.encoder_version, entry.dim, entry.active, rows, items
            tables.append(TableStatus(modality, *facts, newest, age))
    sources, letters = index.positions(), index.letter_counts()
    return IndexStatus(tuple(tables), index.newest_sequence(), sources, letters, index.size())
