"""What stages hand over: a folder of files with a manifest that says what made it, and from what."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import pathlib
import platform
import shutil
import time
import typing

from tfmm import config as config_lib

MANIFEST = "manifest.json"
FORMAT_VERSION = 1
STALE_S = 7 * 24 * 3600.0
_BUILDING = ".building-"  # before the name of a folder that is being made: no server takes it for a version


def fingerprint(*parts: object) -> str:
    """Returns a short, stable hash of JSON-serializable parts.

    >>> fingerprint({"a": 1}) == fingerprint({"a": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest(folder: str | pathlib.Path) -> str:
    """Returns a hash of all files of a folder, names and bytes: equal for a copy."""
    total, root = hashlib.sha256(), pathlib.Path(folder)
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        total.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                total.update(chunk)
    return total.hexdigest()


@contextlib.contextmanager
def under_construction(target: str | pathlib.Path) -> typing.Iterator[pathlib.Path]:
    """Gives the name of a folder beside a target, to make it in and move it from; what is left there is removed.

    What processes of this machine that were killed left beside the target is removed first, and what anybody left that
    nothing was added to for `STALE_S`: of a machine that is gone, say, or of a process whose id another one has by now.
    """
    target, host = pathlib.Path(target), platform.node()
    for place in target.parent.glob(f"{_BUILDING}*@*"):
        process = place.name.removesuffix(f"@{host}").rpartition("-")[2]
        if (process.isdigit() and not _is_alive(int(process))) or _is_stale(place):
            shutil.rmtree(place, ignore_errors=True)
    building = target.parent / f"{_BUILDING}{target.name}-{os.getpid()}@{host}"
    shutil.rmtree(building, ignore_errors=True)
    try:
        yield building
    finally:
        shutil.rmtree(building, ignore_errors=True)


def _is_stale(place: pathlib.Path) -> bool:
    try:
        newest = max(path.stat().st_mtime for path in (place, *place.rglob("*")))
    except FileNotFoundError:  # somebody is at work there
        return False
    return time.time() - newest > STALE_S


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def write_manifest(
    folder: str | pathlib.Path,
    kind: str,
    config: object = None,
    parents: typing.Sequence[str | pathlib.Path] = (),
    **facts: typing.Any,
) -> dict[str, typing.Any]:
    """Writes `manifest.json` last, so that its presence says the artifact is complete.

    Args:
        folder: the artifact's folder; made where missing.
        kind: what it is: `encoder`, `index_snapshot`, `examples`, `make`, `ctr`, `saved_model`, ...
        config: the stage's config dataclass, or None.
        parents: folders of the artifacts that it was made from.
        **facts: JSON values worth knowing without opening the files (dim, encoder_version, metrics, ...).
    Returns:
        The manifest.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    settings = None if config is None else config_lib.to_dict(config)
    manifest = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "created_at": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "config": settings,
        "config_hash": fingerprint(settings),
        "parents": [
            read_manifest(parent)["id"] for parent in parents if (pathlib.Path(parent) / MANIFEST).exists()
        ],
        **facts,
    }
    manifest["id"] = fingerprint({key: value for key, value in manifest.items() if key != "created_at"})
    temporary = folder / f".{MANIFEST}"
    temporary.write_text(json.dumps(manifest, indent=2, sort_keys=True) + "\n")
    temporary.replace(folder / MANIFEST)
    return manifest


def read_manifest(
    folder: str | pathlib.Path, kind: str | None = None, facts: typing.Collection[str] = ()
) -> dict[str, typing.Any]:
    """Reads an artifact's manifest.

    Args:
        folder: the artifact's.
        kind: what it must be; None: anything.
        facts: what it must say, as an older version of tfmm did not.
    Raises:
        FileNotFoundError: there is none: the stage did not finish.
        ValueError: it is of another kind, of a newer format, or lacks facts.
    """
    path = pathlib.Path(folder) / MANIFEST
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: the stage that writes this folder did not finish. Run it again."
        )
    manifest = json.loads(path.read_text())
    if manifest["format_version"] > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format {manifest['format_version']}, this version of tfmm reads up to "
            f"{FORMAT_VERSION}. Upgrade tfmm."
        )
    if kind is not None and manifest["kind"] != kind:
        raise ValueError(f"{folder} must hold an artifact of kind {kind!r}. Received: {manifest['kind']!r}.")
    if missing := sorted(set(facts) - set(manifest)):
        raise ValueError(
            f"{path} must say {', '.join(missing)}: an older version of tfmm wrote it. Run the stage that writes this "
            "folder again."
        )
    return manifest
