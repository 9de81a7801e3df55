"""Runs the DAG on TFX's local engine: `python tfx_pipeline/local_runner.py`, or by the `tfx` command."""

import logging
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the command puts only this folder there

from absl import logging as absl_logging
from tfx import v1 as tfx

from tfmm.training import progress
from tfx_pipeline import environments, pipeline, published


class NodeProgress(logging.Handler):
    """Turns the runner's "Component X is running / finished" into progress events."""

    def __init__(self, report: progress.Progress) -> None:
        super().__init__()
        self._report = report

    def emit(self, record: logging.LogRecord) -> None:
        match = re.match(r"Component (\S+) is (running|finished)\.", record.getMessage())
        if match:
            self._report(f"node:{match[1]}", int(match[2] == "finished"), 1)


def run() -> None:
    """Builds the pipeline of this environment, runs it, and links what it made."""
    environment = environments.Environment.from_variables()
    environment.workdir.mkdir(parents=True, exist_ok=True)
    absl_logging.set_verbosity(absl_logging.INFO)
    absl_logging.get_absl_logger().addHandler(NodeProgress(progress.jsonl(environment.progress_path)))
    tfx.orchestration.LocalDagRunner().run(pipeline.create_pipeline(environment))
    published.publish(environment)


if __name__ == "__main__":
    run()
