"""Which engine runs Beam's jobs: the options of TFMM_BEAM, checked before any work.

Beam's own options, as on a command line. Without the variable Beam works in the process that starts the job. Pinned is
the runner, since DirectRunner may become one that downloads itself.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import socket
import typing

VARIABLE = "TFMM_BEAM"
LOCAL = ("--runner=FnApiRunner", "--direct_running_mode=in_memory", "--direct_num_workers=1")
IN_HERE = ("FnApiRunner", "BundleBasedDirectRunner")  # hold what they shuffle in the memory of one process
PORTABLE = ("PortableRunner", "FlinkRunner", "SparkRunner")
DATAFLOW = "DataflowRunner"
_LONG_NAMES = {name.lower(): name for name in (*IN_HERE, *PORTABLE, DATAFLOW)}


def named(variables: typing.Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Returns the options that the variable names, or those of one process; they are not checked.

    >>> named({"TFMM_BEAM": "--runner=FnApiRunner --direct_num_workers=1"})
    ('--runner=FnApiRunner', '--direct_num_workers=1')
    """
    return tuple(shlex.split(variables.get(VARIABLE, ""))) or LOCAL


def verify(options: typing.Sequence[str], is_here: bool = True) -> None:
    """Refuses options of Beam that cannot be used, as far as that can be told before a job starts.

    Args:
        options: Beam's.
        is_here: whether jobs are started from this machine: servers that they name must answer then.
    Raises:
        ValueError: all that is wrong.
    """
    if found := _faults(options, is_here):
        raise ValueError(
            f"{VARIABLE} must be options of Beam (docs/pipeline.md). Received: {' '.join(options)}.\n- "
            + "\n- ".join(found)
        )


def parsed(options: typing.Sequence[str]) -> tuple[str | None, dict[str, typing.Any]]:
    """Returns the name of the runner, and all options that are given."""
    from apache_beam.options import pipeline_options

    found = pipeline_options.PipelineOptions(list(options))
    runner = found.view_as(pipeline_options.StandardOptions).runner
    return _long_name(runner), found.get_all_options(drop_default=True)


def _long_name(runner: str | None) -> str | None:
    """Returns a runner's class, as Beam's own options may name it: Flink and flinkrunner are FlinkRunner.

    >>> _long_name("Flink"), _long_name("dataflow"), _long_name("fnapirunner"), _long_name("Direct")
    ('FlinkRunner', 'DataflowRunner', 'FnApiRunner', 'Direct')
    """
    lower = (runner or "").lower()
    return _LONG_NAMES.get(lower, _LONG_NAMES.get(f"{lower}runner", runner))


def _faults(options: typing.Sequence[str], is_here: bool) -> list[str]:
    from apache_beam import runners

    if stray := [word for word in options if not word.startswith("--")]:
        return [f"each word must begin with --, such as --runner=FnApiRunner; these do not: {' '.join(stray)}"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            runner, given = parsed(options)
    except SystemExit:  # Beam's parser ends the process
        return [said.getvalue().strip().splitlines()[-1].partition("error: ")[2]]
    if runner is None or runner.lower() in ("direct", "directrunner"):
        return [f"--runner must be named, and not as DirectRunner, which is another one in each version: {LOCAL[0]}"]
    if runner not in _LONG_NAMES.values():
        return [f"--runner={runner} cannot be used: it must be one of {', '.join(_LONG_NAMES.values())}"]
    try:
        runners.create_runner(runner)
    except (AttributeError, ImportError, ValueError) as error:
        return [f"--runner={runner} cannot be used: {error}"]
    if runner in IN_HERE:
        return _local_faults(given)
    if runner in PORTABLE:
        return _portable_faults(given, is_here)
    return _dataflow_faults(given)


def _local_faults(given: typing.Mapping[str, typing.Any]) -> list[str]:
    workers = given.get("direct_num_workers", 1)
    if workers != 1 and given.get("direct_running_mode", "in_memory") == "in_memory":
        return [f"--direct_num_workers={workers} needs --direct_running_mode=multi_processing"]
    return []


def _portable_faults(given: typing.Mapping[str, typing.Any], is_here: bool) -> list[str]:
    found = []
    if not (given.get("job_endpoint") or given.get("flink_master") or given.get("spark_master_url")):
        found.append("--job_endpoint=HOST:PORT is not given: Beam's job server; `make flink-up` starts one here")
    ways = {"job_endpoint": "Beam's job server", "environment_config": "the pool of Python workers"}
    is_pool = given.get("environment_type") == "EXTERNAL"
    for name, what in ways.items() if is_here else ():
        address = given.get(name)
        if address and (name == "job_endpoint" or is_pool) and not _answers(address):
            found.append(f"--{name}={address}: {what} does not answer there; `make flink-up` starts one here")
    return found


def _dataflow_faults(given: typing.Mapping[str, typing.Any]) -> list[str]:
    needed = {
        "project": "the project that pays",
        "region": "where workers run",
        "temp_location": "gs://BUCKET/FOLDER for what lies between steps",
    }
    found = [f"--{name} is not given: {what}" for name, what in needed.items() if not given.get(name)]
    if not (given.get("sdk_container_image") or given.get("setup_file")):
        found.append("--sdk_container_image is not given: an image with Beam and tfmm, since workers import it")
    return found


def _answers(address: str) -> bool:
    host, _, port = str(address).rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=5):
            return True
    except (OSError, ValueError):
        return False
