"""A near-line trainer that is killed at random moments ends as one that was not: no row is lost, none comes twice."""

import json
import random
import signal
import time

import numpy as np
import pytest

from serving.streaming import event_log
from tfmm import artifacts
from tfmm.ctr import state as state_lib
from tfmm.training import checkpoint

REQUESTS, SHOWN = 240, 4


def payloads(records):
    return [json.dumps(record).encode() for record in records]


def finish(trainer, rows):
    deadline = time.monotonic() + 600
    while trainer.rows() < rows:
        assert time.monotonic() < deadline and trainer.process.poll() is None, trainer.said()[-3000:]
        time.sleep(0.05)
    trainer.stop()
    return trainer.facts()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_trainer_that_is_killed_at_random_moments_ends_as_one_that_was_not(
    nearline_shop, models, start_trainer, tmp_path, kills
):
    """While it runs, half of the records still come; slices end, ids join, candidates are frozen and judged."""
    records, moments = payloads(nearline_shop.records(100, REQUESTS)), random.Random(kills)
    origin = state_lib.read_manifest(models / "models/multimodal/Format-State")["training"]
    rows = origin["rows"] + REQUESTS * SHOWN
    log = event_log.SQLiteEventLog(tmp_path / "served.sqlite")
    log.append(records[: len(records) // 2])
    options = ("--log", log.path, "--window-seconds", "5", "--slice-rows", "500", "--checkpoint-seconds", "0",
               "--slice-minutes", "100000")  # fmt: skip
    left, step = records[len(records) // 2 :], len(records) // 2 // kills + 1
    for number in range(kills):
        trainer = start_trainer(tmp_path / "killed", *options)
        deadline, facts = time.monotonic() + 600, trainer.facts()
        seen = facts[1].name if facts else ""
        while (found := trainer.facts()) is None or found[1].name == seen:  # it has gone on from the one before
            assert time.monotonic() < deadline and trainer.process.poll() is None, trainer.said()[-3000:]
            time.sleep(0.02)
        log.append(left[number * step : (number + 1) * step])
        time.sleep(moments.uniform(0.0, 0.5))
        assert trainer.process.poll() is None, trainer.said()[-3000:]
        trainer.process.send_signal(signal.SIGKILL)
        trainer.process.wait()
    killed, killed_folder = finish(start_trainer(tmp_path / "killed", *options), rows)
    whole, whole_folder = finish(start_trainer(tmp_path / "whole", *options), rows)
    assert killed["training"] == whole["training"] and killed["training"]["rows"] == rows
    assert killed["positions"] == whole["positions"] == {log.name: len(records)}
    for name in ("requests", "shown", "labels", "dead_letters"):
        assert killed["join"]["counts"].get(name) == whole["join"]["counts"].get(name), name
    (wanted, _), (found, _) = (checkpoint.read(f / "state/variables") for f in (whole_folder, killed_folder))
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    states = [artifacts.digest(folder / "state" / "vocabulary") for folder in (whole_folder, killed_folder)]
    assert states[0] == states[1]
    shown = [state_lib.shown_before(folder / "state") for folder in (whole_folder, killed_folder)]
    assert shown[0] == shown[1] and sum(shown[0].values()) == rows
