"""A frozen copy of the item index: what one training run reads, and what a SavedModel starts from."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from tfmm import artifacts
from tfmm.index import store
from tfmm.vectors import Vectors

KIND = "index_snapshot"
_ARRAYS = ("ids", "rows", "scales", "sequences")


@dataclasses.dataclass(frozen=True)
class SnapshotTable:
    """One modality's embeddings, by ascending item id."""

    ids: np.ndarray  # int64 [n], unique
    rows: np.ndarray  # int8 [n, D]
    scales: np.ndarray  # float32 [n], positive
    sequences: np.ndarray  # int64 [n]
    dim: int
    encoder_version: str
    watermark: int  # sequence number of the newest change in it: later ones are replayed from there

    def __len__(self) -> int:
        return len(self.ids)

    def lookup(self, ids: typing.Any) -> Vectors:
        """Returns the vectors of int64 [...] items."""
        ids = np.asarray(ids, np.int64)
        if not len(self):
            shapes = ([*ids.shape, self.dim], np.int8), (ids.shape, np.float32), (ids.shape, bool)
            return Vectors(*(np.zeros(shape, dtype) for shape, dtype in shapes))
        slots = np.minimum(np.searchsorted(self.ids, ids), len(self) - 1)
        mask = self.ids[slots] == ids
        return Vectors(self.rows[slots] * mask[..., None], self.scales[slots] * mask, mask)


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The tables of all modalities.

    >>> Snapshot({}).modalities
    ()
    """

    tables: dict[str, SnapshotTable]

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(sorted(self.tables))

    def __getitem__(self, modality: str) -> SnapshotTable:
        if modality not in self.tables:
            raise KeyError(f"`modality` must be one of {list(self.modalities)}. Received: {modality!r}.")
        return self.tables[modality]


def take_snapshot(index: store.IndexStore, encoder_versions: typing.Mapping[str, str] | None = None) -> Snapshot:
    """Reads the index's state at one moment.

    Args:
        index: the item index.
        encoder_versions: encoder version by modality; None: the active one of each modality.
    """
    if encoder_versions is None:
        encoder_versions = {name: entry.encoder_version for name, entry in index.active_encoders().items()}
    tables = {}
    for modality, (found, watermark) in index.snapshot(encoder_versions).items():
        tables[modality] = SnapshotTable(
            found.ids,
            found.rows,
            found.scales,
            found.sequences,
            found.rows.shape[1],
            encoder_versions[modality],
            watermark,
        )
    return Snapshot(tables)


def write_snapshot(
    index: store.IndexStore,
    output_dir: str | pathlib.Path,
    encoder_versions: typing.Mapping[str, str] | None = None,
    parents: typing.Sequence[str | pathlib.Path] = (),
) -> dict[str, typing.Any]:
    """Writes `take_snapshot` as `<output_dir>/<modality>/{ids,rows,scales,sequences}.npy` and a manifest.

    Returns:
        The manifest; `modalities` gives dim, encoder_version, watermark and size by modality.
    """
    output_dir = pathlib.Path(output_dir)
    snapshot, facts = take_snapshot(index, encoder_versions), {}
    for modality, table in snapshot.tables.items():
        (output_dir / modality).mkdir(parents=True, exist_ok=True)
        for name in _ARRAYS:
            np.save(output_dir / modality / f"{name}.npy", getattr(table, name))
        facts[modality] = {
            "dim": table.dim,
            "encoder_version": table.encoder_version,
            "watermark": table.watermark,
            "size": len(table),
        }
    return artifacts.write_manifest(output_dir, KIND, parents=parents, modalities=facts)


def load_snapshot(folder: str | pathlib.Path) -> Snapshot:
    """Loads what `write_snapshot` wrote; rows stay on disk until they are used.

    Raises:
        FileNotFoundError: there is none, or it is incomplete.
        ValueError: an array does not fit the manifest.
    """
    folder = pathlib.Path(folder)
    tables = {}
    for modality, facts in artifacts.read_manifest(folder, KIND)["modalities"].items():
        arrays = {
            name: np.load(
                folder / modality / f"{name}.npy", mmap_mode="r" if name == "rows" and facts["size"] else None
            )
            for name in _ARRAYS
        }
        if {name: array.shape[0] for name, array in arrays.items()} != dict.fromkeys(_ARRAYS, facts["size"]):
            raise ValueError(
                f"{folder / modality} must hold {facts['size']} rows, as its manifest says. Received: "
                f"{ {name: array.shape for name, array in arrays.items()} }. Write the snapshot again."
            )
        tables[modality] = SnapshotTable(
            **arrays, dim=facts["dim"], encoder_version=facts["encoder_version"], watermark=facts["watermark"]
        )
    return Snapshot(tables)
