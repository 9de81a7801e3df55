"""What a run leaves of earlier ones: so many pushed versions and checkpoints as its settings keep."""

from __future__ import annotations

import pathlib
import shutil

from tfmm.config import KeepConfig
from tfmm.training import checkpoint
from tfx_pipeline.environments import Environment, newest_version

_REMOVING = ".removing-"  # before the name of a folder that goes: no server takes it for a version


def prune(environment: Environment) -> None:
    """Deletes what is older than the settings keep, once a run has ended well."""
    keep: KeepConfig = environment.config.keep
    if keep.versions:
        _prune_versions(environment.serving_dir, keep.versions)
    if keep.checkpoints:
        _prune_checkpoints(environment.checkpoint_dir, keep.checkpoints)


def _prune_versions(serving_dir: pathlib.Path, count: int) -> None:
    """Leaves the newest versions, the one in service first, and none that a killed push left in the middle."""
    newest = newest_version(serving_dir)
    if newest is None:
        return
    older = [p for p in serving_dir.iterdir() if p.name.isdigit() and int(p.name) < int(newest.name)]
    whole = sorted((p for p in older if (p / "saved_model.pb").is_file()), key=lambda p: -int(p.name))
    kept = whole[: count - 1]  # beside the newest
    for place in [*serving_dir.glob(f"{_REMOVING}*"), *(path for path in older if path not in kept)]:
        _remove(place)


def _prune_checkpoints(checkpoint_dir: pathlib.Path, count: int) -> None:
    """Leaves of each training the checkpoints that were written last."""
    folders = {state.parent.parent for state in checkpoint_dir.rglob(checkpoint.FILE)}
    for folder in folders:
        states = sorted(folder.glob(f"*/{checkpoint.FILE}"), key=lambda state: state.stat().st_mtime_ns)
        for state in states[: max(len(states) - count, 0)]:
            _remove(state.parent)


def _remove(place: pathlib.Path) -> None:
    """Deletes a folder that is gone at once for whoever looks, and half-deleted for nobody."""
    going = place if place.name.startswith(_REMOVING) else place.rename(place.with_name(f"{_REMOVING}{place.name}"))
    shutil.rmtree(going)
