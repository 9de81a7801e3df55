"""What users bring by dotted name: `module:name`, looked for in the current folder first."""

from __future__ import annotations

import importlib
import os
import sys
import typing

from tfmm.config import RunConfig

_TRAINED, _FROZEN = ("prepare", "build_model"), ("encode",)  # methods of encoders


def find(reference: str, what: str) -> typing.Any:
    """Returns what `module:name` stands for.

    Args:
        reference: module and name.
        what: said in the error.
    Raises:
        ValueError: it cannot be imported.
    """
    module, _, name = reference.partition(":")
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:  # a module of somebody else's may fail in any way
        raise ValueError(
            f"{what} must name something that can be imported from here. Received: {reference!r} "
            f"({type(error).__name__}: {error}). Name module:name, and put the module on PYTHONPATH."
        ) from error


def faults(config: RunConfig) -> list[str]:
    """Returns what is wrong with the dotted names of a run, a line each; it imports their modules."""
    found = []
    for method in config.methods:
        if ":" in method.name:
            try:
                find(method.name, f"method {method.name!r}")
            except ValueError as error:
                found.append(str(error))
    for modality in config.modalities:
        if ":" in modality.encoder:
            try:
                encoder = find(modality.encoder, f"modality {modality.name!r}: `encoder`")
            except ValueError as error:
                found.append(str(error))
                continue
            if not callable(encoder):
                found.append(f"modality {modality.name!r}: `encoder` must be callable, not {type(encoder).__name__}")
            elif isinstance(encoder, type):
                wanted = _FROZEN if modality.frozen else _TRAINED
                if lacking := [name for name in wanted if not hasattr(encoder, name)]:
                    found.append(
                        f"modality {modality.name!r}: the class {modality.encoder} must have {', '.join(lacking)}. "
                        + _way_out(modality.frozen)
                    )
    return found


def _way_out(is_frozen: bool) -> str:
    if is_frozen:
        return "Give it `encode`: string [B] -> float32 [B, D]"
    return "Derive it from tfmm.pretrain.encoders.Encoder, or say frozen=True where nothing is to be trained"


def require(config: RunConfig) -> RunConfig:
    """Returns a run whose dotted names can be imported.

    Raises:
        ValueError: some cannot; all of them are told.
    """
    if found := faults(config):
        raise ValueError("What a run names must be there. Received:\n- " + "\n- ".join(found))
    return config
