"""The runs of a workdir by ML Metadata: states, seconds per node, artifacts and what they were made of."""

from __future__ import annotations

import dataclasses
import datetime
import os
import pathlib
import typing

from rich import table as rich_table

from tfmm import artifacts, folder_lock
from tfmm.quickstart import stage_lines
from tfmm.stages import folders
from tfx_pipeline import metadata
from tfx_pipeline import workdir as workdir_lib

STOPPED = "stopped"  # a run or node that was at work when its process ended
_STYLES = {metadata.FAILED: "red", metadata.RUNNING: "yellow", STOPPED: "red", metadata.CACHED: "dim"}


@dataclasses.dataclass(frozen=True)
class Input:
    """An artifact that a node read, and the node and run that made it; "": no node of this workdir did."""

    name: str
    uri: str
    node: str
    run: str


@dataclasses.dataclass(frozen=True)
class Node:
    """A node of a run; of one that the cache answered, `made_in` names the run that did the work.

    `training` is what a click model says it was trained through (`tfmm.ctr.lineage`), {} of other nodes.
    """

    name: str
    state: str
    begun: str
    seconds: float
    made_in: str
    outputs: dict[str, str]
    inputs: list[Input]
    training: dict[str, typing.Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Run:
    """A run: `seconds` from its first node to its last sign of life."""

    id: str
    state: str
    begun: str
    seconds: float
    nodes: list[Node]


@dataclasses.dataclass(frozen=True)
class Status:
    """What a workdir knows of its runs, oldest first, and who is at work there now."""

    workdir: str
    at_work: str | None
    runs: list[Run]


_LAST = "Pusher"  # the node with which a run is complete, whether it pushes or not


def read(workdir: str | os.PathLike[str]) -> Status:
    """Returns the status of a workdir.

    Raises:
        FileNotFoundError: no run of the DAG wrote there.
    """
    place = pathlib.Path(workdir).resolve()
    path = workdir_lib.metadata_path(place)
    if not path.is_file():
        raise FileNotFoundError(f"{place} must be the workdir of a run of the pipeline. Received: none of {path.name}.")
    at_work, found = folder_lock.holder(place), metadata.executions(path)
    makers = {artifact.id: (e, artifact) for e in reversed(found) if e.outputs for artifact in e.outputs}
    by_run: dict[str, list[metadata.Execution]] = {}
    for execution in found:
        by_run.setdefault(execution.run, []).append(execution)
    newest = next(reversed(by_run), None)
    runs = [_run(name, nodes, makers, at_work is not None and name == newest) for name, nodes in by_run.items()]
    return Status(str(place), at_work, runs)


def _run(
    name: str,
    executions: list[metadata.Execution],
    makers: typing.Mapping[int, tuple[metadata.Execution, metadata.Artifact]],
    is_live: bool,
) -> Run:
    nodes = [_node(execution, makers, is_live) for execution in executions]
    states = {node.state for node in nodes}
    ended = [state for state in (metadata.FAILED, STOPPED, metadata.RUNNING) if state in states]
    if ended:
        state = ended[0]
    elif any(node.name == _LAST for node in nodes):
        state = metadata.COMPLETE
    else:  # between two nodes, or before the first
        state = metadata.RUNNING if is_live else STOPPED
    begun = executions[0].begun
    return Run(name, state, _moment(begun), round(max(e.begun + e.seconds for e in executions) - begun, 2), nodes)


def _node(
    execution: metadata.Execution,
    makers: typing.Mapping[int, tuple[metadata.Execution, metadata.Artifact]],
    is_live: bool,
) -> Node:
    is_left = execution.state == metadata.RUNNING and not is_live
    inputs = []
    for name, ids in execution.inputs.items():
        for number in ids:
            maker, artifact = makers.get(number, (None, None))
            uri = artifact.uri if artifact else ""
            inputs.append(Input(name, uri, maker.node if maker else "", maker.run if maker else ""))
    outputs = {artifact.output: artifact.uri for artifact in execution.outputs}
    made = {makers[artifact.id][0].run for artifact in execution.outputs if artifact.id in makers}
    return Node(
        execution.node,
        STOPPED if is_left else execution.state,
        _moment(execution.begun),
        round(execution.seconds, 2),
        min(made, default="") if execution.state == metadata.CACHED else execution.run,
        outputs,
        inputs,
        next(filter(None, map(_training, outputs.values())), {}),
    )


def _training(uri: str) -> dict[str, typing.Any]:
    state = pathlib.Path(uri) / folders.STATE
    if not (state / artifacts.MANIFEST).is_file():
        return {}
    training: dict[str, typing.Any] = artifacts.read_manifest(state)["training"]
    return training


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds")


def tables(status: Status, run_id: str | None = None, is_lineage: bool = False) -> list[rich_table.Table]:
    """Returns the runs and the nodes of one as tables, and with `is_lineage` what each artifact was made of.

    Args:
        status: as `read` gives it.
        run_id: the run whose nodes are shown, or the beginning of its id; None: the last.
        is_lineage: whether the third table is wanted.
    Raises:
        ValueError: there is no such run.
    """
    chosen = [run for run in status.runs if run_id is None or run.id.startswith(run_id)][-1:]
    if not chosen:
        known = ", ".join(run.id for run in status.runs) or "none"
        raise ValueError(f"`--run` must be the id of a run, or its beginning. Received: {run_id!r}; known: {known}.")
    runs = _table("Runs", "run", "state", "begun", "seconds", "worked", "cached")
    for run in status.runs:
        states = [node.state for node in run.nodes]
        counts = (str(states.count(state)) for state in (metadata.COMPLETE, metadata.CACHED))
        runs.add_row(run.id, _styled(run.state), run.begun, f"{run.seconds:.1f}", *counts)
    result = [runs]
    for run in chosen:
        nodes = _table(f"Nodes of {run.id}", "node", "what it does", "state", "seconds", "made in")
        for node in run.nodes:
            made_in = node.made_in if node.made_in != run.id else ""
            title = stage_lines.TITLES.get(node.name, "")
            nodes.add_row(node.name, title, _styled(node.state), f"{node.seconds:.1f}", made_in)
        result.append(nodes)
        if is_lineage:
            result.append(_lineage(run, pathlib.Path(status.workdir)))
    return result


def _lineage(run: Run, workdir: pathlib.Path) -> rich_table.Table:
    table = _table("Artifacts", "artifact", "where", "made of")
    table.show_lines = True
    for node in run.nodes:
        made_of = "\n".join(f"{one.name}: {_short(one.uri, workdir) or 'not of this workdir'}" for one in node.inputs)
        if node.training:
            made_of += f"\n{_in_words(node.training)}"
        for name, uri in node.outputs.items():
            table.add_row(f"{node.name}.{name}", _short(uri, workdir), made_of)
    return table


def _in_words(training: typing.Mapping[str, typing.Any]) -> str:
    """Returns through what a click model was trained, and with which encoders."""
    span, through = training["span"], _moment(training["trained_through"]["timestamp"] / 1e6)
    encoders = "".join(f", {name} encoder {version}" for name, version in training["encoder_versions"].items())
    return f"span {span['number']}: {span['rows']:,} rows, through {through}{encoders}"


def _table(title: str, *columns: str) -> rich_table.Table:
    table = rich_table.Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")  # ids and paths are whole, also where the terminal is narrow
    return table


def _short(uri: str, workdir: pathlib.Path) -> str:
    return os.path.relpath(uri, workdir) if uri.startswith(f"{workdir}{os.sep}") else uri


def _styled(state: str) -> str:
    return f"[{_STYLES[state]}]{state}[/]" if state in _STYLES else state
