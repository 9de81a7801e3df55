"""Where a run writes, by names that take nothing to know: the libraries that a run loads take seconds."""

from __future__ import annotations

import os
import pathlib
import typing

from tfmm import buckets, plain_paths

VARIABLE, DEFAULT = "TFMM_WORKDIR", "tfmm_workdir"
VERBOSE = "TFMM_VERBOSE"  # the variable, where it is not empty, shows the whole log of a run at the terminal


def named(variables: typing.Mapping[str, str] = os.environ) -> pathlib.Path:
    """Returns the workdir that the variables name.

    Raises:
        ValueError: as `verify`, or it is the URL of a bucket.
    """
    given = variables.get(VARIABLE) or DEFAULT
    buckets.require_local(given, f"The workdir ({VARIABLE})")
    workdir = pathlib.Path(given).resolve()
    verify(workdir)
    return workdir


def verify(workdir: pathlib.Path) -> None:
    """Raises ValueError where TFX would take a workdir for a pattern."""
    if plain_paths.is_pattern(workdir):
        raise ValueError(
            f"The workdir must have none of {' '.join(plain_paths.PATTERN)} in its path: TFX takes such names for "
            f"patterns. Received: {workdir}. Name another folder; stages by hand (`tfmm pretrain`, `tfmm "
            "embed`, `tfmm train`) take any."
        )


def log_path(workdir: pathlib.Path) -> pathlib.Path:
    """The log of TFX and of what nodes say, of all runs."""
    return workdir / "logs" / "pipeline.log"


def progress_path(workdir: pathlib.Path) -> pathlib.Path:
    """The events of all runs, see `tfmm.training.progress.jsonl`."""
    return workdir / "progress.jsonl"


def metadata_path(workdir: pathlib.Path) -> pathlib.Path:
    """The file of ML Metadata."""
    return workdir / "metadata.sqlite"
