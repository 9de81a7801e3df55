"""Weights of a file into a net, after every layer has been compared: Keras itself is silent on layers left over."""

from __future__ import annotations

import hashlib
import os
import pathlib
import tempfile
import typing

if typing.TYPE_CHECKING:  # loaded where weights are, and not where declarations are checked
    import h5py
    import keras

SUFFIX = ".weights.h5"
_SHOWN = 5  # layers that an error names
_NOT_WEIGHTS = ("optimizer", "seed_generator")  # groups of a file that no vector depends on

Shapes = dict[str, tuple[int, ...]]


def fault(path: str | os.PathLike[str]) -> str | None:
    """Returns why a path cannot name weights, or None."""
    if not str(path).endswith(SUFFIX):
        return f"`weights` must be a file {SUFFIX} as Keras 3's `save_weights` writes it, not {os.fspath(path)!r}"
    return None if pathlib.Path(path).is_file() else f"`weights` must be a file that exists, not {os.fspath(path)!r}"


def load(net: keras.Model, path: str | os.PathLike[str], name: str) -> None:
    """Sets the weights of a net to those of a file, which holds the net alone or as one part of a larger model.

    Args:
        net: built.
        path: a file as `keras.Model.save_weights` writes it.
        name: of the net, for messages.
    Raises:
        ValueError: no such file, or one of another net: the layers that differ, with their shapes.
    """
    import h5py

    if said := fault(path):
        raise ValueError(f"{said}.")
    with tempfile.TemporaryDirectory() as folder:
        own = pathlib.Path(folder) / f"own{SUFFIX}"
        net.save_weights(own)
        with h5py.File(own) as file:
            wanted, names = _shapes(file), _layer_names(file)
        own.unlink()
        try:
            opened = h5py.File(path)
        except OSError as error:
            raise ValueError(f"`weights` must be a whole HDF5 file. Received: {os.fspath(path)} ({error}).") from error
        with opened as file:
            part = _part_like(file, wanted)
            if part is None:
                raise ValueError(_difference(wanted, _shapes(file), {**_layer_names(file), **names}, path, name))
            if part:
                with h5py.File(own, "w") as copied:
                    for key in file[part]:
                        file.copy(f"{part}/{key}", copied)
        net.load_weights(own if part else path)


def digest(path: str | os.PathLike[str]) -> str:
    """Returns 16 hex digits of a file's bytes."""
    found = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            found.update(block)
    return found.hexdigest()[:16]


def _shapes(group: h5py.Group) -> Shapes:
    found: Shapes = {}

    def visit(place: str, value: typing.Any) -> None:
        if hasattr(value, "shape") and not any(part.startswith(_NOT_WEIGHTS) for part in place.split("/")):
            found[place] = tuple(value.shape)

    group.visititems(visit)
    return found


def _layer_names(group: h5py.Group) -> dict[str, str]:
    """Returns the layers' names by the group that holds their weights."""
    found: dict[str, str] = {}

    def visit(place: str, value: typing.Any) -> None:
        if "name" in value.attrs:
            found[place] = str(value.attrs["name"])

    group.visititems(visit)
    return found


def _part_like(file: h5py.File, wanted: Shapes) -> str | None:
    """Returns the group of a file that holds a net of these shapes, "" where it is the file; None where none does."""
    if _shapes(file) == wanted:
        return ""
    groups: list[str] = []
    file.visititems(lambda place, value: None if hasattr(value, "shape") else groups.append(place))
    return next((place for place in groups if _shapes(file[place]) == wanted), None)


def _difference(
    wanted: Shapes, found: Shapes, names: dict[str, str], path: str | os.PathLike[str], net: str
) -> str:
    """Returns what differs, layer by layer: those of another shape first."""
    lines = []
    for place in sorted({*wanted, *found}, key=lambda place: (place not in wanted or place not in found, place)):
        ours, theirs = wanted.get(place), found.get(place)
        if ours != theirs:
            group, _, number = place.rpartition("/")
            layer = f"layer {names.get(group, group)!r}, weight {number}"
            lines.append(f"{layer}: {ours or 'nothing'} in {net}, {theirs or 'nothing'} in the file")
    more = f"\n- and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return (
        f"`weights` must be those of {net}, layer by layer. Received: {os.fspath(path)}, of another net or another "
        f"`image_size`:\n- " + "\n- ".join(lines[:_SHOWN]) + more
    )
