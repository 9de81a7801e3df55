"""Where the streaming job works: in this process, or on an engine outside, such as a Flink cluster."""

from __future__ import annotations

import argparse
import hashlib
import logging
import threading
import typing

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from serving.streaming import flink_jobs
from tfmm import beam as beam_lib

IN_HERE = ("--streaming", *beam_lib.LOCAL)
ON_FLINK = (
    "--streaming",
    "--checkpointing_interval=10000",  # ms; what it keeps is small, as the index has the positions
    "--max_bundle_time_mills=10",  # until a timer is handed on, which else waits a second for company
)
_BUNDLE_IN_HERE_S, _BUNDLE_OUTSIDE_S = 60.0, 0.1
_LOOK_S, _CANCEL_WITHIN_S = 0.2, 60.0
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
            if count := jobs.cancel(_CANCEL_WITHIN_S):
                _log.warning("cancelled %d jobs of the name %s, which an earlier process left on Flink", count, name)
        pipeline = beam.Pipeline(options=PipelineOptions(words))
        make(pipeline)
        result = pipeline.run()  # in here it is over now
        while not PipelineState.is_terminal(result.state):
            if stop.wait(_LOOK_S):
                if jobs is None:
                    result.cancel()
                else:
                    jobs.cancel(_CANCEL_WITHIN_S)
                return
        result.wait_until_finish()
