"""What ML Metadata knows of a workdir's runs: read only, and while a run goes on, too."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import shutil
import sqlite3
import tempfile
import typing

from tfmm import extras

COMPLETE, CACHED, FAILED, RUNNING = "complete", "cached", "failed", "running"
FINISHED = (COMPLETE, CACHED)
Properties = dict[str, typing.Any]


@dataclasses.dataclass(frozen=True)
class Artifact:
    """A folder that a node made.

    Attributes:
        output: what the node calls it.
        properties: its own, such as `pushed_version` of a pushed model.
    """

    id: int
    kind: str
    output: str
    uri: str
    properties: Properties


@dataclasses.dataclass(frozen=True)
class Execution:
    """A node of a run: that it worked, or was answered by the cache.

    Attributes:
        begun: seconds since 1970.
        seconds: until its end, or its last sign of life.
        parameters: what it was given beside artifacts.
        inputs: ids of the artifacts that it read, by name.
    """

    id: int
    node: str
    run: str
    state: str
    begun: float
    seconds: float
    parameters: Properties
    inputs: dict[str, list[int]]
    outputs: tuple[Artifact, ...]


def executions(path: str | os.PathLike[str]) -> list[Execution]:
    """Returns the nodes of all runs in a metadata file, oldest first; none where there is no file."""
    if not pathlib.Path(path).exists():
        return []
    with tempfile.TemporaryDirectory() as folder:
        copy = pathlib.Path(folder) / "copy.sqlite"
        _copy(pathlib.Path(path).resolve(), copy)
        return _executions(*_open(copy))


def _executions(store: typing.Any, protos: typing.Any) -> list[Execution]:
    states = {
        protos.Execution.COMPLETE: COMPLETE,
        protos.Execution.CACHED: CACHED,
        protos.Execution.FAILED: FAILED,
        protos.Execution.RUNNING: RUNNING,
    }
    runs, nodes = (_names(store, kind) for kind in ("pipeline_run", "node"))
    found = sorted((e for e in store.get_executions() if e.last_known_state in states), key=lambda e: e.id)
    artifacts = {artifact.id: artifact for artifact in store.get_artifacts()}
    inputs: dict[int, dict[str, list[int]]] = {e.id: {} for e in found}
    outputs: dict[int, list[Artifact]] = {e.id: [] for e in found}
    for event in store.get_events_by_execution_ids(list(inputs)) if found else []:
        name = event.path.steps[0].key if event.path.steps else ""
        if event.type == protos.Event.INPUT:
            inputs[event.execution_id].setdefault(name, []).append(event.artifact_id)
        elif event.type == protos.Event.OUTPUT:
            artifact = artifacts[event.artifact_id]
            kept = _properties(artifact.custom_properties)
            outputs[event.execution_id].append(Artifact(artifact.id, artifact.type, name, artifact.uri, kept))
    return [
        Execution(
            e.id,
            nodes.get(e.id, "").rpartition(".")[2],
            runs.get(e.id, ""),
            states[e.last_known_state],
            e.create_time_since_epoch / 1e3,
            (e.last_update_time_since_epoch - e.create_time_since_epoch) / 1e3,
            _properties(e.custom_properties),
            inputs[e.id],
            tuple(outputs[e.id]),
        )
        for e in found
    ]


def last_of(found: typing.Iterable[Execution], node: str) -> Execution | None:
    """Returns a node's last execution that ended well, by work or by the cache."""
    return next((e for e in reversed(list(found)) if e.node == node and e.state in FINISHED), None)


def _copy(path: pathlib.Path, to: pathlib.Path) -> None:
    """Copies the file as it is at one moment: a run that writes meanwhile waits for milliseconds, not for ML Metadata.

    What a killed run left in the middle of a write is undone in the copy; only who may write could undo it in the file.
    """
    try:
        source = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=60.0)
        with contextlib.closing(source), contextlib.closing(sqlite3.connect(to)) as copy:
            source.backup(copy)
    except sqlite3.OperationalError:
        shutil.copyfile(path, to)
        journal = path.with_name(f"{path.name}-journal")
        if journal.exists():
            shutil.copyfile(journal, to.with_name(f"{to.name}-journal"))
        with contextlib.closing(sqlite3.connect(to)) as copy:
            copy.execute("SELECT COUNT(*) FROM sqlite_master")


def _open(path: str | os.PathLike[str]) -> tuple[typing.Any, typing.Any]:
    metadata_store: typing.Any = extras.require("ml_metadata.metadata_store", "pipeline")
    protos: typing.Any = extras.require("ml_metadata.proto.metadata_store_pb2", "pipeline")
    connection = protos.ConnectionConfig()
    connection.sqlite.filename_uri = os.fspath(path)
    connection.sqlite.connection_mode = protos.SqliteMetadataSourceConfig.READONLY
    return metadata_store.MetadataStore(connection), protos


def _names(store: typing.Any, kind: str) -> dict[int, str]:
    """Returns the name of each execution's context of one kind, by execution."""
    return {e.id: c.name for c in store.get_contexts_by_type(kind) for e in store.get_executions_by_context(c.id)}


def _properties(values: typing.Mapping[str, typing.Any]) -> Properties:
    kinds = {name: value.WhichOneof("value") for name, value in values.items()}
    return {name: getattr(values[name], kind) for name, kind in kinds.items() if kind}
