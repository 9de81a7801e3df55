"""What a data folder has for a run."""

from __future__ import annotations

from tfmm.config import RunConfig
from tfmm.data import schema
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
