"""The section about the item index: coverage by encoder, how far its sources were read, and dead letters."""

from __future__ import annotations

import typing

from serving.page import cells
from serving.page.watching import Watch
from tfmm import registered
from tfmm.index import coverage, status, store

EVERY_S = 2.0


def watch(url: str) -> Watch[status.IndexStatus]:
    """Watches an item index, given by a path or a URL; it is opened when it is there, and never made."""

    def ask() -> status.IndexStatus:
        with store.open_store(url, create=False) as index:
            return status.read(index)

    return Watch("index", registered.without_password(url), ask, EVERY_S)


def section(watched: Watch[status.IndexStatus]) -> dict[str, typing.Any]:
    """Coverage by encoder version, sources, dead letters and bytes."""
    found = None if watched.is_silent else watched.value
    rows, sources, sizes = [], [], []
    for one in found.tables if found else ():
        share = one.coverage.share
        level = cells.OK if share >= coverage.ENOUGH else cells.WARN
        rows.append({
            "modality": cells.cell(one.modality), "encoder": cells.cell(one.encoder_version),
            "active": cells.cell(one.active, "yes" if one.active else "no"), "rows": cells.count(one.rows),
            "coverage": cells.share(share, level), "age": cells.duration(one.newest_age_s),
        })  # fmt: skip
    if found is not None:
        for source in sorted({*found.positions, *found.dead_letters}):
            letters = cells.count(found.dead_letters.get(source, 0))
            own = {"source": cells.cell(source), "position": cells.cell(found.positions.get(source))}
            sources.append({**own, "letters": letters})
        if found.size is not None:
            total, free = map(cells.count, found.size)
            sizes.append({"index": cells.cell(watched.shown), "bytes": total, "free": free})
    columns = {"modality": "modality", "encoder": "encoder", "active": "active", "rows": "rows",
               "coverage": "coverage", "age": "newest change"}  # fmt: skip
    of_sources = {"source": "source", "position": "read to", "letters": "dead letters"}
    return cells.section("index", "Item index", [
        cells.table("Rows by encoder version, and their share of the items that any encoder has", columns, rows),
        cells.table("Sources of events", of_sources, sources),
        cells.table("Bytes", {"index": "index", "bytes": "bytes", "free": "for later rows"}, sizes),
    ], watched.notes)  # fmt: skip
