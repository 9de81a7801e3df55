"""What a data folder has for a run."""

from __future__ import annotations

import typing

import numpy as np

from tfmm.config import RunConfig
from tfmm.data import schema
from tfmm.features import PADDING
from tfmm.index import snapshot as snapshot_lib
from tfmm.stages.folders import Folder


def modalities_of(run: RunConfig, data_dir: Folder) -> tuple[str, ...]:
    """Returns the names of the modalities that the data has, for the click model's methods to work on.

    Raises:
        ValueError: it has none.
    """
    names = schema.modalities(data_dir, run.modality_set)
    if not names:
        raise ValueError(_none(run, data_dir))
    return tuple(names)


def coverage(names: typing.Sequence[str], data_dir: Folder, snapshot_dir: Folder) -> list[str]:
    """Returns how many items of the catalog have a vector in a snapshot, a line per modality.

    Args:
        names: of the modalities that the data has (`modalities_of`).
        data_dir: the tables.
        snapshot_dir: of an item index.
    Raises:
        ValueError: none has one, as where the snapshot is of another catalog; or the snapshot lacks a modality.
    """
    snapshot = snapshot_lib.load_snapshot(snapshot_dir)
    items = np.unique(schema.fingerprints(schema.read_table(data_dir, "items", ["item_id"])["item_id"]))
    items = items[items != PADDING]  # no id
    if lacking := [name for name in names if name not in snapshot.modalities]:
        raise ValueError(
            f"The snapshot must have vectors of {', '.join(lacking)}, which {data_dir} has. Received: {snapshot_dir} "
            f"with {', '.join(snapshot.modalities) or 'none'}. Embed this catalog (`tfmm embed`)."
        )
    counts = {name: int(np.isin(items, snapshot[name].ids).sum()) for name in names}
    if not any(counts.values()):
        sizes = ", ".join(f"{name} {len(snapshot[name]):,}" for name in names)
        raise ValueError(
            f"The snapshot must have vectors of items of {data_dir}. Received: {snapshot_dir} with vectors of items "
            f"({sizes}), none of which is among the {len(items):,} here. Embed this catalog (`tfmm embed`)."
        )
    return [f"{name}: {count:,} of {len(items):,} items have a vector" for name, count in counts.items()]


def faults(run: RunConfig, data_dir: Folder) -> list[str]:
    """Returns that the data has no modality for the methods, where it is so."""
    return [] if schema.modalities(data_dir, run.modality_set) else [_none(run, data_dir)]


def _none(run: RunConfig, data_dir: Folder) -> str:
    methods = ", ".join(method.name for method in run.methods)
    return (
        f"The methods {methods} need a modality: {data_dir} must have titles or images with searches, orders or "
        "clicks that teach an encoder, or items' own vectors. Received: none. Fill one of their columns "
        "(`tfmm data schema`), or declare another."
    )
