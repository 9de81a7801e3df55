"""What a run of the DAG made, where a user finds it: links in the workdir, each changed at once."""

from __future__ import annotations

import os
import pathlib
import typing

from absl import logging

from tfmm import artifacts
from tfmm.export import saved_model
from tfmm.index import encode
from tfx_pipeline.environments import ANOMALIES, ENCODERS, STATISTICS, Environment, latest_outputs, newest_version

OUTPUTS = {  # by link: what the last run made, the gate's verdict whatever it was
    "marketplace": "Marketplace.dataset",
    STATISTICS: "StatisticsGen.statistics",
    ANOMALIES: "AnomalyCheck.report",
    "snapshot": "CatalogEmbedder.snapshot",
    "models/make": "MAKETrainer.make",
    "models/id": "IDTrainer.model",
    "models/multimodal": "MultimodalTrainer.model",
    "evaluation": "ModelGate.evaluation",
}


def require_room(environment: Environment) -> None:
    """Raises ValueError where something else stands at a link's place."""
    places = [environment.workdir / name for name in (ENCODERS, *OUTPUTS)]
    if taken := [str(place) for place in places if place.exists() and not place.is_symlink()]:
        raise ValueError(
            f"The workdir must have room for links to what the run makes. Received, already there: {', '.join(taken)}. "
            "Name another workdir, or move them."
        )


def publish(environment: Environment) -> None:
    """Links the last run's outputs, and as `encoders/<modality>` the encoders of the version in service.

    After a refusal the newest encoders are not those: an item that they embed would be refused by every server. Where
    nothing has run there is nothing to link: the stock `tfx` command executes a pipeline's file once to register it.
    """
    if not environment.metadata_path.exists():
        return
    outputs = latest_outputs(environment.metadata_path)
    for name, output in OUTPUTS.items():
        _link(environment.workdir / name, outputs.get(output))
    version = newest_version(environment.serving_dir)
    found = None if version is None else _encoders_of(version, environment.pipeline_root)
    if version is not None and found is None:
        logging.warning("The encoders that %s was made with are not in %s.", version, environment.pipeline_root)
    _link(environment.encoders_dir, found)


def _encoders_of(version: pathlib.Path, pipeline_root: pathlib.Path) -> pathlib.Path | None:
    """Returns the newest folder of encoders whose vectors a version takes."""
    index = saved_model.read_manifest(version)["index"]
    wanted = {modality: facts["encoder_version"] for modality, facts in index.items()}
    wanted = {modality: found for modality, found in wanted.items() if not found.startswith(encode.GIVEN)}
    folders = sorted((pipeline_root / "SCLTrainer" / "encoders").glob("[0-9]*"), key=lambda folder: -int(folder.name))
    return next((folder for folder in folders if _versions(folder, wanted) == wanted), None)


def _versions(folder: pathlib.Path, modalities: typing.Iterable[str]) -> dict[str, str]:
    complete = [name for name in modalities if (folder / name / artifacts.MANIFEST).exists()]
    return {name: artifacts.read_manifest(folder / name)["encoder_version"] for name in complete}


def _link(place: pathlib.Path, target: str | pathlib.Path | None) -> None:
    """Lets a link lead to a folder, by a path that holds when the workdir moves; None: there is none."""
    if target is None:
        place.unlink(missing_ok=True)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = place.with_name(f".{place.name}-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, place.parent))
    temporary.replace(place)
