"""The DAG as a process of its own with its log in a file: a person sees its stages, and how it ended."""

from __future__ import annotations

import pathlib
import shlex
import sys
import time
import typing

from rich import console as rich_console

from tfmm import folder_lock, full_disk
from tfmm.quickstart import processes, stage_lines
from tfmm.training import progress
from tfx_pipeline import workdir as workdir_lib

OUTCOME, FAILURE = "outcome", "failure"  # events of a run that say how it ended, in their note
CAUTION = "caution"  # one that says before the first stage what may go wrong
_NAME = "The pipeline"
_LONGEST = 2000  # characters of an error


def main() -> int:
    """Runs the DAG of this process' environment; returns the exit code."""
    console, errors = rich_console.Console(), rich_console.Console(stderr=True)
    began = time.monotonic()
    try:
        workdir = workdir_lib.named()
        log = workdir_lib.log_path(workdir)
        with processes.terminate_as_interrupt(), folder_lock.hold(workdir) as lock:
            _say(console, f"Run in {workdir}. TFX's log: {log}")
            with stage_lines.StageLines(console) as lines:
                outcome = run_dag(workdir, {workdir_lib.VARIABLE: str(workdir)}, lines, lock)
    except KeyboardInterrupt:
        _say(errors, f"Stopped. The same command goes on from here: {shlex.join(sys.argv)}", "yellow")
        return 130
    except (BlockingIOError, ChildProcessError, ValueError) as error:
        _say(errors, str(error), "red")
        return 1
    _say(console, f"{time.monotonic() - began:.1f} s in all\n{outcome}")
    return 0


def run_dag(
    workdir: pathlib.Path, variables: typing.Mapping[str, str], lines: stage_lines.StageLines, lock: int
) -> str:
    """Runs the DAG in a process of its own and shows its stages.

    Args:
        workdir: of the run.
        variables: that describe it, see `environments`.
        lines: where stages are shown.
        lock: descriptor of the workdir's lock, see `folder_lock.hold`.
    Returns:
        What it came to, in lines: see `outcome.lines`.
    Raises:
        ChildProcessError: it failed; the message names stage, error and log.
    """
    events, log = stage_lines.Events(workdir_lib.progress_path(workdir)), workdir_lib.log_path(workdir)
    variables = {**variables, folder_lock.SHARED: str(lock)}
    said: dict[str, str] = {}
    with processes.Child(_NAME, ["tfx_pipeline.local_runner", "--verbose"], log, variables, shared=[lock]) as dag:
        is_running = True
        while is_running:
            is_running = dag.process.poll() is None
            for event in events.new():
                if event["stage"] in (OUTCOME, FAILURE):
                    said[event["stage"]] = event[progress.NOTE]
                elif event["stage"] == CAUTION:
                    lines.remark(event[progress.NOTE])
                else:
                    lines.show(event)
            time.sleep(0.2)
        if FAILURE in said:
            raise ChildProcessError(f"{said[FAILURE]}\nThe whole log: {log}")
        dag.check()
    return said.get(OUTCOME, "")


def in_words(node: str, error: BaseException) -> str:
    """Returns a block that says which stage failed, and why.

    Beam puts the whole traceback of a worker into its error's message; the error itself stands at its end.
    """
    title = f"{stage_lines.TITLES.get(node, node)} ({node})" if node else "The run, before its first stage,"
    if full := full_disk.told(error):
        return f"{title} failed. {full}"
    text = str(error).strip()
    if "Traceback (most recent call last)" in text:
        own = [line for line in text.splitlines() if line and not line[0].isspace()]
        text = own[-1] if own else text
    cut = "..." if len(text) > _LONGEST else ""
    return f"{title} failed. {type(error).__name__}: {text[:_LONGEST]}{cut}"


def _say(console: rich_console.Console, text: str, style: str = "") -> None:
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)
