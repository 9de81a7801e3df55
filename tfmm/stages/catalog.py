"""The catalog's vectors in the item index, and a snapshot of them to train on."""

from __future__ import annotations

import pathlib
import typing

from tfmm import artifacts, dead_letters
from tfmm.config import RunConfig
from tfmm.index import beam, coverage, snapshot, store
from tfmm.modalities import DEAD_LETTERS
from tfmm.stages.folders import Folder


def embed_catalog(
    run: RunConfig,
    modalities: typing.Sequence[str],
    data_dir: Folder,
    encoders_dir: Folder,
    index_url: str,
    snapshot_dir: Folder,
    say: typing.Callable[[str], object],
    activate: bool = True,
) -> dict[str, typing.Any]:
    """Embeds the catalog by Beam into the item index, and takes a snapshot of it.

    Args:
        run: declares the modalities and the items' features.
        modalities: those of the data.
        data_dir: the tables.
        encoders_dir: one encoder folder per modality that has one.
        index_url: the item index, a path or a URL; made where missing.
        snapshot_dir: gets the snapshot, and the dead letters in `dead_letter/`.
        say: is told what the snapshot has of each modality, what was left out, and where that lies.
        activate: makes the encoders the active ones; else it is said how many of these ones' items they have.
    Returns:
        The manifest of the snapshot, which is of these encoders.
    """
    folders = {name: str(pathlib.Path(encoders_dir) / name) for name in run.encoders(modalities)}
    rejected = pathlib.Path(snapshot_dir) / DEAD_LETTERS
    counts = beam.embed_catalog(
        data_dir,
        folders,
        index_url,
        rejected,
        modality_set=run.modality_set,
        feature_set=run.feature_set,
        max_bad_fraction=run.data.max_bad_fraction,
        time_zone=run.data.time_zone,
        activate=activate,
    )
    with store.open_store(index_url) as index:
        active = index.active_encoders()
        own = {name: artifacts.read_manifest(folder)["encoder_version"] for name, folder in folders.items()}
        versions = {name: active[name].encoder_version for name in modalities if name in active} | own
        manifest = snapshot.write_snapshot(index, snapshot_dir, versions)
        shares = {name: coverage.of_active(index, name, version) for name, version in own.items() if not activate}
    for modality, facts in manifest["modalities"].items():
        say(f"{modality}: {facts['size']:,} items of dim {facts['dim']}, encoder {facts['encoder_version']}")
    for modality, covered in shares.items():
        say(f"{modality}: not activated, encoder {own[modality]} has {covered} of the active one")
    for modality, count in counts.items():
        say(f"{modality}: {count['missing']:,} items without content, {count['rejected']:,} left out")
    for line in dead_letters.lines(rejected):
        say(line)
    return manifest
