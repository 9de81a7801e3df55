"""A trainer that is told to stop ends, also while its index is away, and loses no row."""

import dataclasses
import json
import shutil
import sqlite3
import threading

import pytest

from serving.nearline import trainer
from serving.streaming import event_log
from tfmm.stages import run_file


@pytest.mark.timeout(1800)
def test_a_trainer_that_is_stopped_while_its_index_is_away_ends_at_its_last_checkpoint(nearline_shop, models, tmp_path):
    shutil.copy(models / "index.sqlite", tmp_path / "index.sqlite")
    with event_log.SQLiteEventLog(tmp_path / "served.sqlite") as log:
        log.append([json.dumps(record).encode() for record in nearline_shop.records(100, 40)])
    (tmp_path / "work").mkdir()
    settings = trainer.Settings(
        logs=(str(tmp_path / "served.sqlite"),), models_dir=models / "models", work_dir=tmp_path / "work",
        index_url=str(tmp_path / "index.sqlite"), serving_dir=tmp_path / "versions", window_s=5.0,
        letters_url=str(tmp_path / "letters.sqlite"), checkpoint_s=1e6,
    )  # fmt: skip
    running, stop = trainer.Trainer(run_file.read(models / "models"), settings), threading.Event()
    before = running.learner.rows
    with sqlite3.connect(tmp_path / "index.sqlite") as other:
        tables = other.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for (name,) in tables.fetchall():
            other.execute(f"DROP TABLE {name}")
    other.close()
    thread = threading.Thread(target=running.run, args=(stop,), daemon=True)
    thread.start()
    thread.join(3.0)
    assert thread.is_alive()  # it waits for the index
    stop.set()
    thread.join(120.0)
    assert not thread.is_alive() and running._checkpoints.newest() is None and running.learner.rows == before
    running.close()
    again = trainer.Trainer(
        run_file.read(models / "models"), dataclasses.replace(settings, index_url=str(models / "index.sqlite"))
    )
    stop = threading.Event()
    while again.learner.rows < before + 40 * 4:
        again._work(stop)
    again.close()
