"""What the demo stands on: a workdir that a quickstart has trained in, and the programs that it starts."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil

from serving.deploy.redis import server as redis_server
from tfmm import artifacts, extras
from tfmm.config import RunConfig
from tfmm.export import saved_model
from tfmm.export.signatures import LOGGED
from tfmm.stages.folders import SERVING, STATE

# A program that must be on the PATH, what it is for, and how it comes there.
PROGRAMS = (
    (("java", "mvn"), "Kafka needs a JDK, of Java 17 say, and Maven", "apt-get install default-jdk-headless maven"),
    ((redis_server.PROGRAM,), "the item index needs a Redis", "apt-get install redis-server"),
)
MODULES = {"stream": ("apache_beam", "confluent_kafka", "redis"), "serving": ("grpc", "orjson", "uvicorn")}


@dataclasses.dataclass(frozen=True)
class Trained:
    """Folders of a workdir, each of which may not be there."""

    workdir: pathlib.Path
    run: RunConfig | None
    tables: pathlib.Path  # of the marketplace
    index: pathlib.Path
    encoders: pathlib.Path  # of the version in service
    model: pathlib.Path  # the multimodal click model, as it was trained
    id_model: pathlib.Path  # the click model of ids alone
    version: pathlib.Path | None  # in service

    @property
    def folder(self) -> pathlib.Path:
        """The folder that has all that the demo writes."""
        return self.workdir / "demo"


def verify(trained: Trained) -> None:
    """Checks that all is there.

    Raises:
        ValueError: all that lacks, with the way out.
    """
    if faults := [*workdir_faults(trained), *_machine_faults()]:
        raise ValueError("The demo cannot run so:\n- " + "\n- ".join(faults))


def workdir_faults(trained: Trained) -> list[str]:
    """Returns what speaks against a workdir, with the way out."""
    again = f"`tfmm quickstart --workdir {trained.workdir}` trains it"
    if trained.run is None or trained.version is None:
        return [f"{trained.workdir} must hold a version in service. Received: none. {again}"]
    if not trained.tables.is_dir():
        return [
            f"{trained.workdir} must be trained on the marketplace, whose shoppers click. Received: data of"
            " your own, whose users cannot be asked. Run a quickstart without --data in another workdir"
        ]
    needed = (trained.index, trained.encoders, trained.model / SERVING, trained.model / STATE)
    if lacking := [str(path) for path in needed if not path.exists()]:
        return [f"{trained.workdir} must be trained to its end. Received: no {', '.join(lacking)}. {again}"]
    if artifacts.digest(trained.model / SERVING) != artifacts.digest(trained.version):
        return [
            f"the newest model of {trained.workdir} must be the one in service. Received: one that the gate refused, "
            f"and {trained.version.name} in service. Run the quickstart again, or in another workdir"
        ]
    if lacking := sorted({*LOGGED.values()} - {*saved_model.read_manifest(trained.version)["signatures"]}):
        return [
            f"{trained.version} must have the signatures that the log of what is served needs. Received: no "
            f"{', '.join(lacking)}, as an earlier tfmm exported it. Run the quickstart in another workdir"
        ]
    return []


def _machine_faults() -> list[str]:
    faults = []
    for programs, what, way_out in PROGRAMS:
        if lacking := [program for program in programs if shutil.which(program) is None]:
            faults.append(f"{what}. Not on PATH: {', '.join(lacking)}. {way_out}")
    for extra, modules in MODULES.items():
        try:
            extras.verify(extra, *modules)
        except extras.MissingExtraError as error:
            faults.append(str(error))
    return faults
