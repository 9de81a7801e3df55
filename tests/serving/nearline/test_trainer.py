"""The near-line trainer over a log of requests and labels, as a process: rows, weights, pushes."""

import json
import pathlib
import time

import numpy as np
import pytest

from serving.streaming import event_log
from tfmm.ctr import state as state_lib
from tfmm.export import saved_model
from tfmm.training import checkpoint

REQUESTS, SHOWN = 200, 4


def payloads(records):
    return [json.dumps(record).encode() for record in records]


def wait_for(condition, trainer, timeout_s=400):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, trainer.said()[-3000:]
        assert trainer.process.poll() is None, trainer.said()[-3000:]
        time.sleep(0.1)


@pytest.fixture(scope="module")
def first_rows(models):
    return state_lib.read_manifest(models / "models/multimodal/Format-State")["training"]["rows"]


def variables(folder: pathlib.Path):
    return checkpoint.read(folder / "state" / "variables")[0]


@pytest.mark.timeout(900)
def test_what_is_served_is_trained_judged_and_pushed(nearline_shop, models, first_rows, start_trainer, tmp_path):
    log = event_log.SQLiteEventLog(tmp_path / "served.sqlite")
    log.append(payloads(nearline_shop.records(100, REQUESTS)))
    trainer = start_trainer(
        tmp_path / "work", "--log", log.path, "--window-seconds", "5", "--slice-rows", "320", "--checkpoint-seconds",
        "1", "--slice-minutes", "100000",
    )  # fmt: skip
    wait_for(lambda: trainer.rows() == first_rows + REQUESTS * SHOWN, trainer)
    wait_for(lambda: "is pushed as" in trainer.said(), trainer)
    trainer.stop()
    facts, folder = trainer.facts()
    (version,) = [path for path in (tmp_path / "work" / "versions").iterdir() if path.name.isdigit()]
    trained = saved_model.read_manifest(version)["training"]
    origin = state_lib.read_manifest(models / "models/multimodal/Format-State")
    assert trained["parent"] == origin["id"] and trained["rows"] == first_rows + 320
    assert facts["join"]["counts"]["requests"] == facts["join"]["counts"]["shown"] == REQUESTS
    before, after = checkpoint.read(models / "models/multimodal/Format-State/variables")[0], variables(folder)
    names = origin["names"]["model"]
    for place, name in enumerate(names):
        old, new = before[f"model/{place}"], after[f"model/{place}"]
        if "/make-" in name:
            np.testing.assert_array_equal(old, new, err_msg=name)
        elif name.endswith("embeddings") and "item_id" in name:
            assert len(new) > len(old)  # ids that were seen often enough
            assert (new[: len(old)] != old).any()
