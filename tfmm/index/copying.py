"""What one index store holds, written into another: from a file of one machine to a store that machines share."""

from __future__ import annotations

import dataclasses

from tfmm.index import rows as rows_lib
from tfmm.index import store

STEP = 1024  # changes that are written together


def copy(source: store.IndexStore, target: store.IndexStore) -> int:
    """Writes rows, withdrawals, layouts, the types of ids, and what is active, as changes of the target's own.

    Event times go along, so a row stays where the target knows something newer, and a second copy changes nothing.
    Positions and dead letters do not: they are of the events that the source was fed with.

    Returns:
        How many of the target's rows changed.
    Raises:
        ValueError: the target holds ids of another type, or an encoder of that name with another dim.
    """
    target.keep_id_types(source.id_types())
    changed, encoders = 0, source.encoders()
    for entry in encoders:
        target.register_encoder(entry.modality, entry.encoder_version, entry.dim, entry.layout)
        after = 0
        while len(found := source.changes(entry.modality, entry.encoder_version, after, STEP)):
            applied = target.apply(_batch(entry, found))
            changed, after = changed + sum(applied.rows) + applied.withdrawn, int(found.sequences[-1])
    for entry in encoders:
        if entry.active:
            target.activate(entry.modality, entry.encoder_version)
    return changed


def _batch(entry: store.EncoderEntry, found: rows_lib.IndexRows) -> store.IndexBatch:
    is_there = found.scales != 0
    names = [field.name for field in dataclasses.fields(rows_lib.IndexRows)]
    own = rows_lib.IndexRows(**{name: getattr(found, name)[is_there] for name in names})
    gone = zip(found.ids[~is_there].tolist(), found.event_times_us[~is_there].tolist())
    rows = [store.TableRows(entry.modality, entry.encoder_version, own)] if len(own) else []
    return store.IndexBatch(rows=rows, withdrawn=[store.Withdrawal(*pair) for pair in gone])
