"""What does a model lose that goes on from day to day, against one trained from scratch, and what does it cost?

Three days of a marketplace, per seed. One road trains on day 1 (MAKE, both click models) and goes on over day 2, with
MAKE as it is; the other trains all from scratch on days 1 and 2. Both are the same commands, with the encoders of day 1
and the index of day 2. Both multimodal models then score every impression of day 3, which neither has seen, from their
SavedModels: GAUC with the paired interval over users. CPU time is that of the command that trains over day 2 or over
both, examples and exports included; what a process takes to start, measured beside them, is taken off both.
"""

import argparse
import os
import pathlib
import subprocess
import sys
import tempfile
import typing

import numpy as np
import recording

from tfmm import metrics, runs
from tfmm.assignments import override
from tfmm.data import join, schema, spans
from tfmm.evaluate import report
from tfmm.marketplace import day_by_day, generator
from tfmm.stages import run_file
from tfmm.training import examples as examples_lib

START_UP = "import tfmm.cli, tfmm.stages.click_model, tfmm.stages.examples, tfmm.stages.make"
PER_USER_DAY = 6
LEVEL = 0.95


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000, help="impressions a day")
    parser.add_argument("--items", type=int, default=5_000, help="items at the start")
    parser.add_argument("--new-items", type=int, default=1_000, help="items that enter the catalog each day")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--run", default="quickstart")
    parser.add_argument("--set", dest="assignments", action="append", default=[], metavar="STAGE.FIELD=VALUE")
    parser.add_argument("--name", default="continued_days", help="of the record")
    given = parser.parse_args()
    found = []
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as folder:
            found.append(_measure(given, seed, pathlib.Path(folder)))
    ratio = [one["cpu_s"]["continued"] / one["cpu_s"]["scratch"] for one in found]
    lowest = min(one["gauc_difference"]["low"] for one in found)
    means = recording.interval([one["gauc_difference"]["value"] for one in found])
    bars = {
        f"GAUC on day 3, continued - scratch, lowest end of {len(found)} paired {LEVEL:.0%} intervals over users":
            recording.bar(lowest, at_least=-0.005, beside={"mean of seeds": means["mean"]}),
        "CPU time of day 2, continued / scratch, start-up apart":
            recording.bar(float(np.median(ratio)), at_most=1 / 3, beside={"largest": max(ratio)}),
    }  # fmt: skip
    results = {"rows_a_day": given.rows, "seeds": found, "gauc_difference": means}
    recording.write(given.name, __doc__.splitlines()[0], results, seed=0, bars=bars)


def _measure(given: argparse.Namespace, seed: int, folder: pathlib.Path) -> dict[str, typing.Any]:
    # Both roads hold out the same newest rows, and train on all others of days 1 and 2.
    days = ["days.heldout_rows=2000", "data.eval_fraction=0.01"]
    assignments = [
        f"marketplace.num_users={given.rows // PER_USER_DAY}", f"marketplace.impressions_per_user_day={PER_USER_DAY}",
        f"marketplace.num_items={given.items}", f"marketplace.new_items_per_day={given.new_items}",
        "marketplace.num_days=3", *days, *given.assignments,
    ]  # fmt: skip
    run = override(runs.load(given.run).with_seed(seed), assignments)
    generator.generate(run.marketplace, folder / "marketplace")
    run_file.write(run, folder)
    tables = folder / "tables"
    day_by_day.append_day(folder / "marketplace", tables, 0)
    _tfmm("pretrain", f"--data={tables}", f"--output={folder / 'encoders'}", f"--run={folder / run_file.FILE}")
    snapshots = [folder / f"snapshot-{day}" for day in range(2)]
    _embed(folder, tables, snapshots[0])
    first = [f"--data={tables}", f"--snapshot={snapshots[0]}", f"--output={folder / 'day-1'}"]
    seconds = {"day_1": _tfmm("train", *first)}
    day_by_day.append_day(folder / "marketplace", tables, 1)
    _embed(folder, tables, snapshots[1])
    second = [f"--data={tables}", f"--snapshot={snapshots[1]}"]
    roads = {"continued": [f"--continue-from={folder / 'day-1'}"], "scratch": []}
    for name, own in roads.items():
        seconds[name] = _tfmm("train", *second, f"--output={folder / name}", *own)
    start_up = _cpu_seconds([sys.executable, "-c", START_UP])
    scores, rows = _day_3(run, folder, tables, list(roads))
    difference = metrics.user_bootstrap(
        "gauc", rows["label"], scores["continued"], rows["user_id"], baseline_scores=scores["scratch"], level=LEVEL
    )
    gauc = {name: metrics.gauc(rows["label"], score, rows["user_id"]).value for name, score in scores.items()}
    return {
        "seed": seed,
        "rows_day_3": len(rows["label"]),
        "gauc": gauc,
        "gauc_difference": {"value": difference.value, "low": difference.low, "high": difference.high},
        "cpu_s": {name: round(value - start_up, 2) for name, value in seconds.items()},
        "start_up_cpu_s": round(start_up, 2),
    }


def _day_3(
    run: typing.Any, folder: pathlib.Path, tables: pathlib.Path, names: list[str]
) -> tuple[dict[str, np.ndarray], examples_lib.Columns]:
    """Returns each road's scores of all impressions of day 3, and their keys and labels."""
    through = generator.WEEK_START_US + 2 * day_by_day.DAY_US - 1
    day_by_day.append_day(folder / "marketplace", tables, 2)
    join.write_examples(tables, run.data, run.feature_set, folder / "day-3", before=spans.Before(through, through, {}))
    files = [examples_lib.example_files(examples_lib.split_pattern(folder / "day-3", split)) for split in schema.SPLITS]
    parts = [examples_lib.read_columns(one, run.feature_set, ("user_id", "label")) for one in files]
    rows = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    scores = {}
    for name in names:
        model = folder / name / "multimodal" / "Format-Serving"
        scores[name] = np.concatenate([report.score_examples(model, one)["score"] for one in files])
    return scores, rows


def _embed(folder: pathlib.Path, tables: pathlib.Path, snapshot: pathlib.Path) -> None:
    index = [f"--index={folder / 'index.sqlite'}", f"--snapshot={snapshot}"]
    _tfmm("embed", f"--data={tables}", f"--encoders={folder / 'encoders'}", *index)


def _tfmm(*words: str) -> float:
    """Runs a command; returns its CPU seconds."""
    return _cpu_seconds([sys.executable, "-m", "tfmm.cli", *words])


def _cpu_seconds(command: list[str]) -> float:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} must end well. Received: exit status {process.returncode}.")
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
