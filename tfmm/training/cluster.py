"""TF_CONFIG: the processes that train together, and which of them this is."""

from __future__ import annotations

import json
import typing

VARIABLE = "TF_CONFIG"  # of the environment
CHIEF, _WORKER = _JOBS = ("chief", "worker")
_EXAMPLE = '{"cluster": {"worker": ["10.0.0.1:2222", "10.0.0.2:2222"]}, "task": {"type": "worker", "index": 0}}'


def require(text: str) -> None:
    """Raises a ValueError, with all that is wrong, unless TF_CONFIG describes a cluster and a task in it.

    >>> require('{"cluster": {"worker": ["here:1"]}, "task": {"type": "worker", "index": 0}}')
    """
    if found := list(_faults(text)):
        raise ValueError(
            f"`training.strategy=multi_worker` needs {VARIABLE} in the environment of each process: the same cluster "
            f"in all, and a task of its own in each, as in {_EXAMPLE}. Received:\n- " + "\n- ".join(found)
        )


def _faults(text: str) -> typing.Iterator[str]:
    if not text:
        yield "nothing: it is not set. For a single process take training.strategy=one, or mirrored"
        return
    try:
        given = json.loads(text)
    except json.JSONDecodeError as error:
        yield f"no JSON: {error}"
        return
    jobs: typing.Any = given.get("cluster") if isinstance(given, dict) else None
    if not isinstance(jobs, dict) or not jobs:
        yield f"a `cluster` that names no jobs: {jobs!r}"
        jobs = {}
    for job, places in jobs.items():
        if job not in _JOBS:
            yield f"the job {job!r}; only {' and '.join(_JOBS)} train together"
        elif not isinstance(places, list) or not places or not all(map(_is_place, places)):
            yield f"the job {job!r} must list its processes as host:port, not {places!r}"
        elif job == CHIEF and len(places) > 1:
            yield f"{len(places)} processes of the job {CHIEF!r}; there is one chief"
    task: typing.Any = given.get("task") if isinstance(given, dict) else None
    job, index = (task.get("type"), task.get("index")) if isinstance(task, dict) else (None, None)
    if not isinstance(job, str) or type(index) is not int:
        yield f"a `task` without type and index: {task!r}"
    elif jobs and job not in jobs:
        yield f"the task {job} {index}; the cluster has {' and '.join(jobs)} alone"
    elif jobs and isinstance(jobs[job], list) and not 0 <= index < len(jobs[job]):
        yield f"the task {job} {index}; the cluster has {len(jobs[job])} of that job, counted from 0"


def _is_place(place: object) -> bool:
    host, _, port = place.rpartition(":") if isinstance(place, str) else ("", "", "")
    return bool(host) and port.isdigit()
