"""Whether the engine of the DAG's Beam nodes (`tfmm.beam`) sees the folders of a run, and has the memory for it."""

from __future__ import annotations

import contextlib
import pathlib
import typing

from tfmm import beam, buckets
from tfmm.data import footprint
from tfmm.features import FeatureSet

MOUNT = "TFMM_MOUNT"
_CGROUP = pathlib.Path("/sys/fs/cgroup/memory.max")


def verify_places(options: typing.Sequence[str], places: typing.Iterable[str | pathlib.Path], mount: str) -> None:
    """Refuses folders that the workers of an engine cannot see.

    Args:
        options: Beam's.
        places: the workdir, the data, and where artifacts go.
        mount: a folder that all workers see under the same path, by TFMM_MOUNT; "": there is none.
    Raises:
        ValueError: workers are on other machines, and a folder is of this one alone.
    """
    if beam.parsed(options)[0] != beam.DATAFLOW:
        return
    shared = pathlib.Path(mount).resolve() if mount else None
    unseen = [
        str(place)
        for place in dict.fromkeys(map(str, places))
        if not buckets.is_url(place) and (shared is None or not pathlib.Path(place).resolve().is_relative_to(shared))
    ]
    if unseen:
        raise ValueError(
            f"Workers of Dataflow are machines of their own: they must see workdir, data and artifacts under the same "
            f"paths as this one. Received, not below a mount that they share ({MOUNT}={mount}): {', '.join(unseen)}. "
            "Put them on a volume that this machine and the image of --sdk_container_image mount at one path, and name "
            f"that path by {MOUNT}; or take Flink, whose task managers can run here (docs/pipeline.md)."
        )


def require_memory(
    options: typing.Sequence[str],
    data_dir: str | pathlib.Path,
    feature_set: FeatureSet,
    say: typing.Callable[[str], object],
    num_rows: int | None = None,
) -> None:
    """Says before work starts what the join needs of this machine's memory, where its engine holds all rows there.

    Args:
        options: Beam's.
        data_dir: the tables.
        feature_set: what a row of examples holds.
        say: is told where memory may not be enough.
        num_rows: impressions that are joined; None: all of the tables'.
    Raises:
        ValueError: the machine does not have as much.
    """
    if beam.parsed(options)[0] not in beam.IN_HERE:
        return
    num_rows = footprint.num_rows(data_dir, feature_set) if num_rows is None else num_rows
    least, most = footprint.bytes_of(num_rows, feature_set)
    total, available = machine_memory()
    if most <= available:
        return
    needs = (
        f"Beam's FnApiRunner holds all rows that it joins in memory. {num_rows:,} impressions of {data_dir} take about "
        f"{least / 1e9:.1f} to {most / 1e9:.1f} GB"
    )
    by = f"{beam.VARIABLE}, docs/pipeline.md"
    ways = f"Take Flink or Dataflow ({by}), or `tfmm train`, which joins on disk without TFX."
    if least > total:
        raise ValueError(f"{needs}, and this machine has {total / 1e9:.1f} GB. {ways}")
    say(f"{needs}, and {available / 1e9:.1f} GB are free: the run may be killed. {ways}")


def machine_memory() -> tuple[int, int]:
    """Returns the bytes of memory that this machine, or this process' container, has, and those that are free."""
    import psutil

    memory = psutil.virtual_memory()
    limit = memory.total
    with contextlib.suppress(OSError, ValueError):  # "max", or no container
        limit = min(limit, int(_CGROUP.read_text()))
    return limit, min(limit, memory.available)
