"""Drives the DAG, the server and the stream as processes, and writes down what happened."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import shlex
import sys
import time
import typing

from rich import console as rich_console

from tfmm import config as config_lib
from tfmm import dead_letters, folder_lock
from tfmm.ctr import integrations
from tfmm.data import as_known, checks, declared, layout, schema, unread
from tfmm.evaluate import in_service, wording
from tfmm.pretrain import contact_sheet
from tfmm.quickstart import html_report, live, processes, stage_lines, terminal
from tfmm.stages import folders
from tfmm.training import progress

SUMMARY = "summary.json"


class GateRefused(Exception):
    """The gate did not let the new model pass, and no model is in service."""


def main(workdir: pathlib.Path, data_dir: pathlib.Path | None, config: config_lib.RunConfig) -> int:
    """Runs the whole road for the command line; returns the exit code."""
    console = rich_console.Console()
    try:
        with processes.terminate_as_interrupt():
            run(workdir, data_dir, config, console)
    except KeyboardInterrupt:
        again = shlex.join(["tfmm", *sys.argv[1:]])
        console.print(f"Stopped. The same command goes on from here: {again}", style="yellow", markup=False)
        return 130
    except (BlockingIOError, ChildProcessError, TimeoutError, GateRefused) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def run(
    workdir: pathlib.Path,
    data_dir: pathlib.Path | None,
    config: config_lib.RunConfig,
    console: rich_console.Console,
) -> dict[str, typing.Any]:
    """Runs the DAG, serves its model, streams a new item into it, and writes summary and report.

    Args:
        workdir: everything that the run writes. What an earlier run in it finished is not done again.
        data_dir: Parquet tables, or None for the synthetic marketplace.
        config: the settings of every stage.
        console: where progress and the closing table are shown.
    Returns:
        The summary, as in summary.json.
    Raises:
        BlockingIOError: another run is at work in the workdir.
        ChildProcessError: the DAG, the server or the stream failed; the message ends with its log.
        GateRefused: the gate refused the model, so that there is nothing to serve.
        LayoutError: the files of a table cannot be read as one table.
        TimeoutError: a process was not ready in time, or the new item was not served in time.
    """
    from tfx_pipeline import environments

    environment = environments.Environment(workdir.resolve(), data_dir and data_dir.resolve(), config)
    with folder_lock.hold(environment.workdir) as lock:
        return _run(environment, console, lock)


def _run(environment: typing.Any, console: rich_console.Console, lock: int) -> dict[str, typing.Any]:
    from tfx_pipeline import environments, watched

    started, config, data_dir = time.monotonic(), environment.config, environment.data_dir
    tables = declared.tables(config.feature_set, config.modality_set)
    if data_dir is not None:
        unread.say(data_dir, lambda line: console.print(line, style="yellow", markup=False, highlight=False), tables)
    methods = integrations.in_words(config.methods)
    titles = {"MultimodalTrainer": f"Train {methods}"}
    with processes.PeakMemory() as memory, stage_lines.StageLines(console, titles) as lines:
        watched.run_dag(environment.workdir, environment.to_variables(), lines, lock)
        outputs = environments.latest_outputs(environment.metadata_path)
        verdict = json.loads((pathlib.Path(outputs["ModelGate.evaluation"]) / folders.VERDICT).read_text())
        if environments.newest_version(environment.serving_dir) is None:
            raise GateRefused("\n".join(wording.verdict_lines(verdict)))
        figures = live.serve_and_stream(environment, outputs, lines)
    seconds = _stage_seconds(environment.progress_path, lines.seconds)
    data = environment.data_dir or pathlib.Path(outputs["Marketplace.dataset"])
    summary = _summary(data, tables, outputs, verdict, environment.index_url, figures, seconds, memory.gb)
    summary |= {"methods": methods, "model": config.ctr.model}
    summary["total_seconds"] = round(time.monotonic() - started, 1)
    _write_report(environment.workdir / terminal.REPORT, data, outputs, summary, verdict, config.data.time_zone)
    (environment.workdir / SUMMARY).write_text(json.dumps(summary, indent=2) + "\n")
    for line in terminal.opening_lines(summary):
        console.print(line, markup=False, highlight=False)
    console.print(terminal.result_table(summary))
    for line in terminal.closing_lines(summary, environment.workdir):
        console.print(line, markup=False)
    return summary


def _stage_seconds(progress_path: pathlib.Path, own: typing.Mapping[str, float]) -> dict[str, float]:
    """Returns the seconds of each stage; a node that the cache answered keeps the time of its real run."""
    begun: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for event in progress.read_jsonl(progress_path):
        node = event["stage"].removeprefix("node:")
        if node == event["stage"]:
            continue
        if not event["done"]:
            begun[node] = event["time"]
        elif node in begun:
            seconds[node] = max(seconds.get(node, 0.0), event["time"] - begun[node])
    return {stage: round(value, 2) for stage, value in {**own, **seconds}.items()}


def _summary(
    data: pathlib.Path,
    tables: schema.Tables,
    outputs: typing.Mapping[str, str],
    verdict: typing.Mapping[str, typing.Any],
    index_url: str,
    figures: typing.Mapping[str, float],
    seconds: typing.Mapping[str, float],
    peak_memory_gb: float,
) -> dict[str, typing.Any]:
    report = json.loads((pathlib.Path(outputs["ModelGate.evaluation"]) / folders.REPORT).read_text())
    encoders = report["encoders"]
    first: dict[str, typing.Any] = next((facts for facts in encoders.values() if "acc_at_1" in facts), {})
    keys = ("auc", "gauc", "logloss", "calibration", "gauc_new_items")
    return {
        "data": {
            name: sum(sum(part.row_groups) for part in schema.table_parts(data, name, tables))
            for name in tables
            if schema.has_table(data, name, tables)
        },
        **{name: first.get(name) for name in ("acc_at_1", "acc_at_5")},
        "encoders": encoders,
        **{name: {key: report["models"][name][key] for key in keys} for name in ("id", "multimodal")},
        "hidden": report["hidden"]["models"]["multimodal"],
        **{name: report[name] for name in ("missing", "differences", "slices", in_service.NAME) if name in report},
        **_left_out(outputs, index_url),
        "gate": {name: verdict[name] for name in ("passed", "reasons", "checks", "warnings")},
        **figures,
        "stages": dict(seconds),
        "peak_memory_gb": round(peak_memory_gb, 2),
    }


def _left_out(outputs: typing.Mapping[str, str], index_url: str) -> dict[str, list[typing.Any]]:
    """Returns what the check found unread or faulty, and the dead letters of each stage by count and reason."""
    checked = json.loads((pathlib.Path(outputs["DataCheck.report"]) / folders.REPORT).read_text())
    letters = dead_letters.read(outputs["ExampleGenerator.examples"], outputs["CatalogEmbedder.snapshot"], index_url)
    return {
        "not_read": unread.in_words(layout.Unread(**found) for found in checked["unread"]),
        "faults": [str(checks.Fault(**fault)) for fault in checked["faults"]],
        "left_out": [dataclasses.asdict(found) for found in dead_letters.counts(letters)],
    }


def _write_report(
    path: pathlib.Path,
    data: pathlib.Path,
    outputs: typing.Mapping[str, str],
    summary: typing.Mapping[str, typing.Any],
    verdict: typing.Mapping[str, typing.Any],
    time_zone: str,
) -> None:
    from tfmm.index import snapshot as snapshot_lib

    items = as_known.read_table(data, "items", time_zone)
    snapshot = snapshot_lib.load_snapshot(outputs["CatalogEmbedder.snapshot"])
    galleries = {modality: html_report.gallery(snapshot, modality, items) for modality in snapshot.modalities}
    places = {
        "MAKE": pathlib.Path(outputs["MAKETrainer.make"]) / "history.json",
        "ID-only": pathlib.Path(outputs["IDTrainer.model"]) / folders.TRAINED / "history.json",
        summary["methods"]: pathlib.Path(outputs["MultimodalTrainer.model"]) / folders.TRAINED / "history.json",
    }
    encoders = pathlib.Path(outputs["SCLTrainer.encoders"])
    for place in sorted(encoders.glob("*/history.json")):
        places[f"SCL {place.parent.name}"] = place
    histories = {name: json.loads(place.read_text()) for name, place in places.items() if place.exists()}
    found = sorted(encoders.glob(f"*/{contact_sheet.FILE}"))
    sheets = {place.parent.name: json.loads(place.read_text()) for place in found}
    html_report.write_report(path, summary, galleries, html_report.curves(histories), verdict, sheets)
