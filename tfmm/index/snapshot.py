"""A frozen copy of the item index: what one training run reads, and what a SavedModel starts from."""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np

from tfmm import artifacts
from tfmm.features import STORED
from tfmm.index import item_features, store
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


class FeatureTable(typing.NamedTuple):
    """The items' features, packed."""

    layout: item_features.Layout
    table: SnapshotTable


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The tables of all modalities, and the items' features where the index has them.

    >>> Snapshot({}).modalities
    ()
    """

    tables: dict[str, SnapshotTable]
    features: FeatureTable | None = None

    @property
    def modalities(self) -> tuple[str, ...]:
        return tuple(sorted(self.tables))

    def __getitem__(self, modality: str) -> SnapshotTable:
        if modality not in self.tables:
            raise KeyError(f"`modality` must be one of {list(self.modalities)}. Received: {modality!r}.")
        return self.tables[modality]


def take_snapshot(index: store.IndexStore, encoder_versions: typing.Mapping[str, str] | None = None) -> Snapshot:
    """Reads the index's state at one moment, with the features of its active layout.

    Args:
        index: the item index.
        encoder_versions: encoder version by modality; None: the active one of each modality.
    """
    if encoder_versions is None:
        encoder_versions = {name: entry.encoder_version for name, entry in index.active_encoders().items()}
    versions, entry = dict(encoder_versions), index.active_features()
    if entry is not None:
        versions[STORED] = entry.encoder_version
    tables = {}
    for name, (found, watermark) in index.snapshot(versions).items():
        tables[name] = SnapshotTable(
            found.ids,
            found.rows,
            found.scales,
            found.sequences,
            found.rows.shape[1],
            versions[name],
            watermark,
        )
    if entry is None:
        return Snapshot(tables)
    return Snapshot(tables, FeatureTable(item_features.from_text(entry.layout), tables.pop(STORED)))


def write_snapshot(
    index: store.IndexStore,
    output_dir: str | pathlib.Path,
    encoder_versions: typing.Mapping[str, str] | None = None,
    parents: typing.Sequence[str | pathlib.Path] = (),
) -> dict[str, typing.Any]:
    """Writes `take_snapshot` as `<output_dir>/<modality>/{ids,rows,scales,sequences}.npy` and a manifest.

    Items' features, where the index has them, stand beside the modalities, as `item_features`.

    Returns:
        The manifest; `modalities` gives dim, encoder_version, watermark and size by modality, `features` the same of
        items' features, with their layout, or null.
    """
    output_dir = pathlib.Path(output_dir)
    snapshot = take_snapshot(index, encoder_versions)
    facts = {modality: _write(output_dir / modality, table) for modality, table in snapshot.tables.items()}
    features = None
    if snapshot.features is not None:
        layout, table = snapshot.features
        features = {**_write(output_dir / STORED, table), "layout": layout.text}
    return artifacts.write_manifest(output_dir, KIND, parents=parents, modalities=facts, features=features)


def _write(folder: pathlib.Path, table: SnapshotTable) -> dict[str, typing.Any]:
    folder.mkdir(parents=True, exist_ok=True)
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(table, name))
    return {
        "dim": table.dim,
        "encoder_version": table.encoder_version,
        "watermark": table.watermark,
        "size": len(table),
    }


def load_snapshot(folder: str | pathlib.Path) -> Snapshot:
    """Loads what `write_snapshot` wrote; rows stay on disk until they are used.

    Raises:
        FileNotFoundError: there is none, or it is incomplete.
        ValueError: an array does not fit the manifest.
    """
    folder = pathlib.Path(folder)
    manifest = artifacts.read_manifest(folder, KIND)
    tables = {modality: _load(folder / modality, facts) for modality, facts in manifest["modalities"].items()}
    if (facts := manifest.get("features")) is None:  # older versions of tfmm wrote none
        return Snapshot(tables)
    layout = item_features.from_text(facts["layout"])
    return Snapshot(tables, FeatureTable(layout, _load(folder / STORED, facts)))


def _load(folder: pathlib.Path, facts: typing.Mapping[str, typing.Any]) -> SnapshotTable:
    arrays = {
        name: np.load(folder / f"{name}.npy", mmap_mode="r" if name == "rows" and facts["size"] else None)
        for name in _ARRAYS
    }
    if {name: array.shape[0] for name, array in arrays.items()} != dict.fromkeys(_ARRAYS, facts["size"]):
        raise ValueError(
            f"{folder} must hold {facts['size']} rows, as its manifest says. Received: "
            f"{ {name: array.shape for name, array in arrays.items()} }. Write the snapshot again."
        )
    return SnapshotTable(
        **arrays, dim=facts["dim"], encoder_version=facts["encoder_version"], watermark=facts["watermark"]
    )
