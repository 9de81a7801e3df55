"""What every benchmark writes: results/<name>.json with the figures, versions, hardware, commit and seed."""

import importlib.metadata
import json
import math
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import time
import typing

from scipy import stats

RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = ("tensorflow", "keras", "numpy", "apache-beam", "tfx", "scikit-learn")


def interleave(sides: dict[str, typing.Callable[[], typing.Any]], repeats: int,
               warm_ups: int = 1, block_s: float = 0.0) -> dict[str, list[float]]:
    """Times the sides in turn, so that a slow minute of the machine meets all of them.

    Args:
        sides: name -> call without arguments that returns when its work is done.
        repeats: timed rounds; `warm_ups` rounds before them are not timed.
        block_s: in a round, a side shorter than this is called several times in a row, for about so many seconds:
            it is timed warm, as in a server or a training loop, not as the first call after another side has
            emptied the caches. 0: once.
    Returns:
        Name -> seconds per call, one value a round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    calls = dict.fromkeys(sides, 1)
    for round_number in range(warm_ups + repeats):
        for name, call in sides.items():
            start = time.perf_counter()
            for _ in range(calls[name]):
                call()
            elapsed = (time.perf_counter() - start) / calls[name]
            if round_number >= warm_ups:
                seconds[name].append(elapsed)
            else:
                calls[name] = max(1, int(block_s / elapsed))
    return seconds


def spread(values: list[float]) -> dict[str, float]:
    """Returns the median, the quartiles and the number of values."""
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "q1": quartiles[0], "q3": quartiles[2], "n": len(values)}


def interval(values: list[float]) -> dict[str, float]:
    """Returns the mean and its 95 % interval by Student's t; without bounds where there are fewer than two values."""
    mean = statistics.mean(values)
    has_spread = len(values) > 1
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values) if has_spread else math.inf
    return {"mean": mean, "low": float(mean - half), "high": float(mean + half)}


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


def bar(measured: float, at_least: float | None = None, at_most: float | None = None,
        beside: dict[str, float] | None = None) -> dict[str, typing.Any]:
    """Returns a bar of the project beside its figure, whether it is met, and figures to read it by."""
    met = (at_least is None or measured >= at_least) and (at_most is None or measured <= at_most)
    limits = {"at_least": at_least, "at_most": at_most}
    limits = {name: limit for name, limit in limits.items() if limit is not None}
    return {"measured": measured, **limits, "met": met, **({"beside": beside} if beside else {})}


def write(name: str, question: str, results: typing.Any, seed: int | None = None,
          bars: dict[str, dict[str, typing.Any]] | None = None) -> pathlib.Path:
    """Writes results/<name>.json and shows it, with the bars last; returns its path."""
    record = {
        "question": question,
        **({"bars": bars} if bars else {}),
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
    for title, figure in (bars or {}).items():
        limit = " and ".join(f"{k.replace('_', ' ')} {figure[k]:g}" for k in ("at_least", "at_most") if k in figure)
        beside = "".join(f", {name} {value:.3g}" for name, value in figure.get("beside", {}).items())
        print(f"{'met   ' if figure['met'] else 'MISSED'} {title}: {figure['measured']:.4g} ({limit}{beside})")
    return path
