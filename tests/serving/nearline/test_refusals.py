"""What the near-line trainer refuses, and what goes on all the same."""

import dataclasses
import json
import pathlib
import shutil
import time

import numpy as np
import pytest

from serving.nearline import checkpoints, judge, trainer
from serving.streaming import event_log, letters
from tfmm.config import TrainingConfig
from tfmm.ctr import state as state_lib
from tfmm.index import item_index
from tfmm.stages import run_file

REQUESTS, SHOWN = 120, 4
pytestmark = pytest.mark.timeout(1800)  # the first of them trains the model that all go on from


@pytest.fixture
def settings(models, tmp_path):
    return trainer.Settings(
        logs=("served.sqlite",), models_dir=models / "models", index_url=str(models / "index.sqlite"),
        work_dir=tmp_path, serving_dir=tmp_path / "versions", letters_url="letters.sqlite",
    )  # fmt: skip


def test_settings_that_cannot_be_are_refused_all_at_once(settings):
    with pytest.raises(ValueError, match=r"cannot run so:\n- `logs` must name.*\n- `window_s` must be positive, not 0"):
        dataclasses.replace(settings, logs=(), window_s=0)
    with pytest.raises(ValueError, match="`judged_rows` must be at most `slice_rows`, not 9000 of 5000"):
        dataclasses.replace(settings, judged_rows=9000)


def test_vectors_of_another_encoder_are_refused(models, settings, tmp_path):
    run = run_file.read(models / "models")
    with item_index.ItemIndex(tmp_path / "other.sqlite") as index:
        index.register_encoder("text", "v2", 8)
    other = dataclasses.replace(settings, index_url=str(tmp_path / "other.sqlite"))
    several = dataclasses.replace(run, training=TrainingConfig(strategy="mirrored"))
    with pytest.raises(ValueError, match=r"no text v1, but text v2\. Embed the catalog.*\n- `training.strategy` must"):
        trainer.Trainer(several, other)


def test_a_model_without_a_state_is_refused(models, settings, tmp_path):
    (tmp_path / "models").mkdir()
    run = run_file.read(models / "models")
    with pytest.raises(FileNotFoundError, match="must be the state of a model's training"):
        trainer.Trainer(run, dataclasses.replace(settings, models_dir=tmp_path / "models"))


def test_where_the_disk_is_full_the_checkpoint_before_stays(tmp_path):
    kept = checkpoints.Checkpoints(tmp_path, 0.0)

    def save_state(folder: pathlib.Path) -> None:
        folder.mkdir(parents=True)
        (folder / "weights").write_text("1")

    def save_on_full_disk(folder: pathlib.Path) -> None:
        save_state(folder)
        with open("/dev/full", "w") as file:
            file.write("2")

    kept.save(save_state, {"positions": {"a": 1}}, {"waiting": {"_at": np.arange(3)}})
    with pytest.raises(OSError, match="No space left on device"):
        kept.save(save_on_full_disk, {"positions": {"a": 2}}, {})
    newest = checkpoints.Checkpoints(tmp_path, 0.0).newest()
    facts, rows = checkpoints.read(newest)
    assert facts == {"positions": {"a": 1}} and rows["waiting"]["_at"].tolist() == [0, 1, 2]
    assert [path.name for path in tmp_path.iterdir()] == [newest.name]  # nothing half-written is left
    kept.save(save_state, {"positions": {"a": 3}}, {})
    assert checkpoints.read(kept.newest())[0] == {"positions": {"a": 3}} and not newest.exists()


def test_only_versions_that_it_pushed_are_removed(tmp_path):
    for name in ("1", "2", "3", "4", "5"):
        (tmp_path / name).mkdir()
    for name in ("2", "4", "5"):
        judge._keep(tmp_path, name, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [judge.PUSHED, "1", "3", "4", "5"]


def test_a_candidate_that_the_gate_refuses_is_not_pushed_and_training_goes_on(
    nearline_shop, models, start_trainer, tmp_path
):
    shutil.copytree(models / "models", tmp_path / "models")
    run = run_file.read(models / "models")
    run_file.write(dataclasses.replace(run, gate=dataclasses.replace(run.gate, min_auc=1.0)), tmp_path / "models")
    records = nearline_shop.records(100, REQUESTS)
    with event_log.SQLiteEventLog(tmp_path / "served.sqlite") as log:
        log.append([b"?", *(json.dumps(record).encode() for record in records)])
    rows = state_lib.read_manifest(models / "models/multimodal/Format-State")["training"]["rows"] + REQUESTS * SHOWN
    running = start_trainer(
        tmp_path / "work", "--log", log.path, "--window-seconds", "5", "--slice-rows", "160", "--slice-minutes",
        "100000", "--models", str(tmp_path / "models"),
    )  # fmt: skip
    deadline = time.monotonic() + 600
    while "is not pushed, training goes on: AUC of multimodal" not in running.said() or running.rows() < rows:
        assert time.monotonic() < deadline and running.process.poll() is None, running.said()[-3000:]
        time.sleep(0.1)
    running.stop()
    assert not (tmp_path / "work" / "versions").exists()
    (letter,) = letters.read(f"folder://{tmp_path / 'work' / 'dead_letters'}")
    assert letter.position == 1 and letter.reason.startswith("not JSON") and letter.payload == b"?"
