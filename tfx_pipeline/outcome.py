"""What a run came to, in words: the gate's verdict, the models' metrics, and last where the model in service lies."""

from __future__ import annotations

import io
import json

from rich import console as rich_console

from tfmm import dead_letters
from tfmm.evaluate import wording
from tfmm.quickstart import terminal
from tfmm.stages import folders
from tfx_pipeline import anomalies
from tfx_pipeline.environments import ANOMALIES, Environment, latest_outputs, newest_version

_WIDTH = 100  # of the table
_LOSING = ("ExampleGenerator.examples", "CatalogEmbedder.snapshot")  # outputs beside which dead letters lie


def lines(environment: Environment) -> list[str]:
    """Returns them for the last run in a workdir, whose links are set, see `published`."""
    evaluation = environment.workdir / "evaluation"
    report, verdict = (
        json.loads((evaluation / name).read_text("utf-8")) for name in (folders.REPORT, folders.VERDICT)
    )
    version = newest_version(environment.serving_dir)
    stays = [] if verdict["passed"] or version is None else ["The model in service stays."]
    models = {name: report["models"][name] for name in (folders.ID, folders.MULTIMODAL)}
    text = io.StringIO()
    table = terminal.result_table({**models, "methods": "multimodal", "model": environment.config.ctr.model})
    rich_console.Console(file=text, width=_WIDTH).print(table)
    outputs = latest_outputs(environment.metadata_path)
    lost = dead_letters.counts(dead_letters.read(*(outputs[name] for name in _LOSING)))
    doubts = json.loads((environment.workdir / ANOMALIES / anomalies.FILE).read_text("utf-8"))["anomalies"]
    return [
        *wording.verdict_lines(verdict),
        *(f"Warning: {anomalies.Anomaly(**doubt)}." for doubt in doubts),
        *dead_letters.count_lines(lost, environment.workdir),
        *stays,
        *(line.rstrip() for line in text.getvalue().rstrip().splitlines()),
        f"More: {evaluation / folders.REPORT}",
        service_line(environment),
    ]


def service_line(environment: Environment) -> str:
    """Returns which model is in service, and where it lies."""
    version = newest_version(environment.serving_dir)
    return f"In service: {version}" if version else f"No model is in service: {environment.serving_dir} is empty."
