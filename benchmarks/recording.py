"""What every benchmark writes: results/<name>.json with the figures, versions, hardware, commit and seed."""

import importlib.metadata
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import typing

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("tensorflow", "keras", "numpy", "apache-beam", "tfx", "scikit-learn")


def interleave(sides: dict[str, typing.Callable[[], typing.Any]], repeats: int,
               warm_ups: int = 1) -> dict[str, list[float]]:
    """Times the sides in turn, so that a slow minute of the machine meets all of them.

    Args:
        sides: name -> call without arguments that returns when its work is done.
        repeats: timed calls of each side; `warm_ups` calls before them are not timed.
    Returns:
        Name -> seconds of each call.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for round_number in range(warm_ups + repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            call()
            if round_number >= warm_ups:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median, the quartiles and the number of values."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "q1": quartiles[0], "q3": quartiles[2], "n": len(values)}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _commit() -> str:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], capture_output=True, text=True,
                              cwd=RESULTS.parent).stdout.strip()

    changes = git("status", "--porcelain", "--untracked-files=no")
    return git("rev-parse", "HEAD") + ("+changes" if changes else "")


def write(name: str, question: str, results: typing.Any, seed: int | None = None) -> pathlib.Path:
    """Writes results/<name>.json and shows it; returns its path."""
    record = {
        "question": question,
        "results": results,
        "command": " ".join(["python", *sys.argv]),
        "seed": seed,
        "commit": _commit(),
        "versions": {"python": platform.python_version(),
                     **{package: _version(package) for package in PACKAGES if _version(package)}},
        "hardware": {"processor": _processor(), "cores": len(os.sched_getaffinity(0)),
                     "load": os.getloadavg()[0]},
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return path
