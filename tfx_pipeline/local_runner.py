"""Runs the DAG on TFX's local engine: `python tfx_pipeline/local_runner.py`, or by the `tfx` command."""

import logging
import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the command puts only this folder there

from absl import logging as absl_logging

from tfmm import folder_lock
from tfmm.training import progress
from tfx_pipeline import environments


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
    """Builds the pipeline of this environment, runs it, and links what it made.

    Raises:
        BlockingIOError: another run is at work in the workdir.
    """
    environment = environments.Environment.from_variables()
    with folder_lock.hold(environment.workdir):
        from tfx import v1 as tfx  # takes seconds, which a refused run need not wait for

        from tfx_pipeline import pipeline, published

        absl_logging.set_verbosity(absl_logging.INFO)
        absl_logging.get_absl_logger().addHandler(NodeProgress(progress.jsonl(environment.progress_path)))
        tfx.orchestration.LocalDagRunner().run(pipeline.create_pipeline(environment))
        published.publish(environment)


if __name__ == "__main__":
    try:
        run()
    except BlockingIOError as refused:
        sys.exit(str(refused))
