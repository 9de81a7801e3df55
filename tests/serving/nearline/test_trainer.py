"""The near-line trainer over a log of requests and labels, as a process: rows, weights, pushes."""

import json
import pathlib
import re
import shutil
import time

import httpx
import numpy as np
import pytest
from prometheus_client import parser

from serving.streaming import event_log
from tfmm import artifacts
from tfmm.ctr import state as state_lib
from tfmm.export import saved_model
from tfmm.saved_model import load_session
from tfmm.training import checkpoint

REQUESTS, SHOWN = 200, 4
pytestmark = pytest.mark.timeout(1800)  # the first of them trains the model that all go on from


def payloads(records):
    return [json.dumps(record).encode() for record in records]


def wait_for(condition, trainer, timeout_s=400):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, trainer.said()[-3000:]
        assert trainer.process.poll() is None, trainer.said()[-3000:]
        time.sleep(0.1)


def metrics_of(trainer):
    """What a trainer tells Prometheus, by name and the labels' values."""
    (port,) = re.findall(r"metrics on 127\.0\.0\.1:(\d+)", trainer.said())
    families = parser.text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=60).text)
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


@pytest.fixture(scope="module")
def first_rows(models):
    return state_lib.read_manifest(models / "models/multimodal/Format-State")["training"]["rows"]


def variables(folder: pathlib.Path):
    return checkpoint.read(folder / "state" / "variables")[0]


def assert_pre_rank_is_kept(version, models, trainer):
    """The pushed version answers it with the head of the model before, on its own tables, and says so."""
    manifest, folder = saved_model.read_manifest(version), models / "models"
    teacher = artifacts.read_manifest(folder / "multimodal/Format-TFMM")["id"]
    assert manifest["pre_ranking_teacher"] == teacher != manifest["parents"][0]
    assert f"`pre_rank` keeps the head of the models before, which ranking model {teacher} taught" in trainer.said()
    ids, user = [1001, 1002, 1050], {"user_id": [1], "behavior_item_ids": [[1003]], "behavior_categories": [[1]]}
    request, found = {**user, "item_id": ids, "category": [1, 2, 3]}, []
    for place in (version, folder / "multimodal/Format-Serving"):
        with load_session(place) as model:
            found.append(model("pre_rank", request)["logit"])
    np.testing.assert_allclose(*found, atol=1.0)  # the head is the same, and embeddings moved a little
    assert np.isfinite(found[0]).all() and (found[0] != found[1]).any()


def test_the_head_of_the_model_is_kept_and_one_trained_anew_on_it_is_taken_at_the_next_start(models, tmp_path):
    version, kept = tmp_path / "version", tmp_path / "work" / "pre_ranking"
    shutil.copytree(models / "models/multimodal/Format-Serving", version)
    head = saved_model.head_of(version)
    shutil.move(head, tmp_path / "head")
    kept.parent.mkdir()
    assert saved_model.kept_head(version, kept) is None and not kept.exists()  # the model never had one
    shutil.move(tmp_path / "head", head)
    for text in ("first", "second"):
        (head / "said").write_text(text)
        assert saved_model.kept_head(version, kept) == str(kept) and artifacts.digest(kept) == artifacts.digest(head)
    shutil.rmtree(version)  # its folder is written at this moment
    assert saved_model.kept_head(version, kept) == str(kept) and (kept / "said").read_text() == "second"
    assert list(kept.parent.iterdir()) == [kept]


def test_what_is_served_is_trained_judged_and_pushed(nearline_shop, models, first_rows, start_trainer, tmp_path):
    log = event_log.SQLiteEventLog(tmp_path / "served.sqlite")
    log.append(payloads(nearline_shop.records(100, REQUESTS)))
    shutil.copytree(models / "models", tmp_path / "models")
    trainer = start_trainer(
        tmp_path / "work", "--log", log.path, "--window-seconds", "5", "--slice-rows", "320", "--checkpoint-seconds",
        "1", "--slice-minutes", "100000", "--metrics-port", "0", "--models", str(tmp_path / "models"),
    )  # fmt: skip
    wait_for(lambda: "ready" in trainer.said(), trainer)
    shutil.rmtree(tmp_path / "models")  # as where it is trained anew: candidates keep the head
    wait_for(lambda: trainer.rows() == first_rows + REQUESTS * SHOWN, trainer)
    wait_for(lambda: "is pushed as" in trainer.said(), trainer)
    told = metrics_of(trainer)
    assert told["tfmm_nearline_slice",] >= told["tfmm_nearline_slice_passed",] == 1
    assert told["tfmm_nearline_slice_rows",] == 320 and told["tfmm_nearline_slice_judged_seconds",] > time.time() - 900
    for metric in ("auc", "gauc", "logloss", "calibration"):
        assert told["tfmm_nearline_slice_metric", metric, "multimodal"] > 0
    trainer.stop()
    facts, folder = trainer.facts()
    (version,) = [path for path in (tmp_path / "work" / "versions").iterdir() if path.name.isdigit()]
    trained = saved_model.read_manifest(version)["training"]
    origin = state_lib.read_manifest(models / "models/multimodal/Format-State")
    assert trained["parent"] == origin["id"] and trained["rows"] == first_rows + 320
    assert_pre_rank_is_kept(version, models, trainer)
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
