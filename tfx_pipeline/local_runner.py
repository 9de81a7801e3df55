"""Runs the DAG on TFX's local engine: `python tfx_pipeline/local_runner.py`, or by the `tfx` command.

The stages are shown, and TFX's log is kept in the workdir; `--verbose`, or a value in TFMM_VERBOSE, shows the log.
"""

import logging
import os
import pathlib
import re
import sys
import typing

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))  # the command puts only this folder there

from absl import logging as absl_logging

from tfmm import folder_lock
from tfmm.training import progress
from tfx_pipeline import watched
from tfx_pipeline import workdir as workdir_lib


class NodeProgress(logging.Handler):
    """Turns the runner's "Component X is running / finished" into progress events."""

    def __init__(self, report: progress.Progress) -> None:
        super().__init__()
        self._report = report
        self.node = ""  # that is at work

    def emit(self, record: logging.LogRecord) -> None:
        match = re.match(r"Component (\S+) is (running|finished)\.", record.getMessage())
        if match:
            self.node = match[1] if match[2] == "running" else ""
            self._report(f"node:{match[1]}", int(match[2] == "finished"), 1)


def run() -> None:
    """Builds the pipeline of this environment, runs it, links what it made, and says what that is.

    Raises:
        BlockingIOError: another run is at work in the workdir.
    """
    workdir = workdir_lib.named()
    with folder_lock.hold(workdir):
        report = progress.jsonl(workdir_lib.progress_path(workdir))
        nodes = NodeProgress(report)
        absl_logging.set_verbosity(absl_logging.INFO)
        absl_logging.get_absl_logger().addHandler(nodes)
        try:
            said = _run(report)
        except Exception as error:
            report(watched.FAILURE, 0, 1, watched.in_words(nodes.node, error))
            raise
        report(watched.OUTCOME, 1, 1, said)
        print(said)


def register() -> None:
    """Builds the pipeline for the `tfx` command, which executes this file once and keeps `LocalDagRunner.run` from it.

    Where nothing is to be trained on, the run itself will say so: what is registered then is its name and its root.

    Raises:
        BlockingIOError: another run is at work in the workdir.
    """
    from tfmm.data import spans
    from tfx_pipeline import continued

    with folder_lock.hold(workdir_lib.named()):
        try:
            _build_and_run(logging.warning)
        except spans.EmptySpan:
            _build_and_run(logging.warning, continued.Road(num_rows=0))


def _run(report: progress.Progress) -> str:
    from tfmm.data import spans
    from tfx_pipeline import environments, outcome, published, retention

    try:
        _build_and_run(lambda line: report(watched.CAUTION, 1, 1, line))
        nothing = ""
    except spans.EmptySpan as empty:
        nothing = str(empty)
    environment = environments.Environment.from_variables()
    published.publish(environment)  # with nothing new too: the run before may have been killed before this
    said = [nothing, outcome.service_line(environment)] if nothing else outcome.lines(environment)
    try:
        retention.prune(environment)
    except OSError as error:
        said.append(f"What is beyond `keep` could not be removed: {error}")
    return "\n".join(said)


def _build_and_run(say: typing.Callable[[str], object], road: typing.Any = None) -> None:
    from tfx import v1 as tfx  # takes seconds, which a refused run need not wait for

    from tfx_pipeline import environments, pipeline

    environment = environments.Environment.from_variables()
    tfx.orchestration.LocalDagRunner().run(pipeline.create_pipeline(environment, road=road, say=say))


def main() -> int:
    """Runs the DAG as the command line wants it; returns the exit code."""
    try:
        if "tfx" in sys.modules:  # nothing else loads it before this file runs
            register()
        elif "--verbose" in sys.argv[1:] or os.environ.get(workdir_lib.VERBOSE):
            run()
        else:
            return watched.main()
    except BlockingIOError as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
