"""Where the streaming job works: in this process, or on an engine outside, such as a Flink cluster."""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import threading
import time
import typing

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from serving.streaming import flink_jobs
from tfmm import beam as beam_lib
from tfmm import registered

IN_HERE = ("--streaming", *beam_lib.LOCAL)
ON_FLINK = (
    "--streaming",
    "--checkpointing_interval=10000",  # ms; what it keeps is small, as the index has the positions
    "--max_bundle_time_mills=10",  # until a timer is handed on, which else waits a second for company
)
_BUNDLE_IN_HERE_S, _BUNDLE_OUTSIDE_S = 60.0, 0.1
_LOOK_S, _CANCEL_WITHIN_S = 0.2, 60.0
_APPEAR_S = 15.0  # until Flink lists a job that was handed over
_SETTLE_S = 2.0  # until it lists one that a killed process handed over last
_log = logging.getLogger(__name__)


class Engine:
    """What runs a job.

    Args:
        given: Beam's options of the command line. Where they name no runner, the variable `TFMM_BEAM` counts before
            them if it names an engine outside; an engine in here is one process for a stream, whatever it says.
        variables: of the environment; None: this process'.
    Attributes:
        words: all of the job's options of Beam.
        is_outside: whether it works in processes that this one does not start.
        parallelism: how many readers work at once: what `--parallelism` says outside, one in here.
    Raises:
        ValueError: the options cannot be used.
    """

    def __init__(self, given: typing.Sequence[str], variables: typing.Mapping[str, str] | None = None):
        named = beam_lib.named() if variables is None else beam_lib.named(variables)
        if beam_lib.parsed(given)[0] or beam_lib.parsed(named)[0] in beam_lib.IN_HERE:
            named = ()
        words = [*named, *given]
        runner = beam_lib.parsed(words)[0]
        beam_lib.verify(words if runner else [*beam_lib.LOCAL, *words])
        self.is_outside = runner not in (None, *beam_lib.IN_HERE)
        parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        parser.add_argument("--parallelism", type=int, default=1)
        parser.add_argument("--flink_master")
        parser.add_argument("--job_name")
        found, _ = parser.parse_known_args(words)
        self.parallelism = max(1, found.parallelism) if self.is_outside else 1
        self._master, self._name = found.flink_master, found.job_name
        is_portable = runner in beam_lib.PORTABLE
        if is_portable and self._master is None:
            raise ValueError(
                "A stream on Flink needs --flink_master=HOST:PORT, Flink's REST interface, among Beam's options: its "
                f"job is ended there, which Beam's job server cannot do. Received: {' '.join(words)}."
            )
        self.words = [*(ON_FLINK if is_portable else IN_HERE), *words]

    @property
    def bundle_s(self) -> float:
        """Seconds until a bundle ends, where nothing else is said."""
        return _BUNDLE_OUTSIDE_S if self.is_outside else _BUNDLE_IN_HERE_S

    def place(self, url: str | os.PathLike[str]) -> str:
        """Returns a path or URL for the job's steps: absolute outside, where workers have folders of their own."""
        return registered.absolute(url) if self.is_outside else os.fspath(url)

    def num_readers(self, wanted: int | None) -> int:
        """Returns how many readers share a source's logs: as many as are wanted, else as work at once.

        Raises:
            ValueError: fewer than one; or several in here, where they take turns, each for a whole bundle.
        """
        if wanted is not None and wanted < 1:
            raise ValueError(f"`readers` must be at least 1. Received: {wanted}.")
        if wanted is not None and wanted > 1 and not self.is_outside:
            raise ValueError(
                f"`readers` must be 1 in this process, where one reads all logs: others would wait for "
                f"{_BUNDLE_IN_HERE_S:.0f} s each. Received: {wanted}. Leave it out, or name an engine outside among "
                "Beam's options, such as Flink."
            )
        return wanted or self.parallelism

    def run(self, make: typing.Callable[[beam.Pipeline], object], key: str, stop: threading.Event) -> None:
        """Runs a job to its end. One outside is cancelled when `stop` is set; what it has not read stays in its source.

        A job that an earlier process left behind on Flink is cancelled first.

        Args:
            make: makes the steps of the job.
            key: what tells the job from others, of which it gets its name.
            stop: set it to end the job.
        Raises:
            RuntimeError: it failed outside.
            Exception: what failed in here.
        """
        jobs, words = None, list(self.words)
        name = self._name or f"tfmm-stream-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
        if self.is_outside and self._master is not None:
            jobs, words = flink_jobs.FlinkJobs(self._master, name), [*words, f"--job_name={name}"]
            count = jobs.cancel(_CANCEL_WITHIN_S)
            if stop.wait(_SETTLE_S):
                return
            if count := count + jobs.cancel(_CANCEL_WITHIN_S):
                _log.warning("cancelled %d jobs of the name %s, which an earlier process left on Flink", count, name)
        pipeline = beam.Pipeline(options=PipelineOptions(words))
        make(pipeline)
        result = pipeline.run()  # in here it is over now
        while not PipelineState.is_terminal(result.state):
            if stop.wait(_LOOK_S):
                if jobs is None:
                    result.cancel()
                else:
                    end(jobs, result)
                return
        result.wait_until_finish()


def end(jobs: flink_jobs.FlinkJobs, result: typing.Any) -> None:
    """Cancels the jobs of a run, also one that was handed over but now, which Flink does not list at once.

    Args:
        jobs: of Flink.
        result: of Beam's run.
    Raises:
        OSError, RuntimeError: as `FlinkJobs.cancel`.
    """
    latest = time.monotonic() + _APPEAR_S
    while not jobs.cancel(_CANCEL_WITHIN_S):
        if PipelineState.is_terminal(result.state):
            return
        if time.monotonic() > latest:
            _log.error("Flink lists no job within %.0f s: look whether one starts later, and cancel it", _APPEAR_S)
            return
        time.sleep(_LOOK_S)
    jobs.cancel(_CANCEL_WITHIN_S)  # one more that came meanwhile
