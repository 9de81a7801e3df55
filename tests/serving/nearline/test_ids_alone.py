"""A model of ids alone goes on near-line, too: it is trained, frozen, exported and judged without any vector."""

import json
import shutil
import threading

import keras
import pytest

from serving.nearline import __main__ as nearline
from serving.nearline import candidates, judge, trainer
from serving.streaming import event_log
from tfmm import preprocessing
from tfmm.ctr import model as model_lib
from tfmm.ctr import state as state_lib
from tfmm.evaluate import in_service
from tfmm.export import saved_model
from tfmm.stages import run_file
from tfmm.stages.folders import MULTIMODAL, SERVING, STATE, TRAINED

REQUESTS, SHOWN = 80, 4
pytestmark = pytest.mark.timeout(1800)  # the first of them trains the model that all go on from


@pytest.fixture
def id_model(models, tmp_path):
    """The folder of a model of ids alone, fresh, with the vocabularies and the training's facts of the other one."""
    run, place = run_file.read(models / "models"), tmp_path / "id"
    known = state_lib.read_manifest(models / "models" / MULTIMODAL / STATE)["training"]
    training = {**known, "encoder_versions": {}}
    id_types = saved_model.read_manifest(models / "models" / MULTIMODAL / SERVING)["id_types"]
    keras.utils.set_random_seed(0)
    sizes = preprocessing.load(run.feature_set, models / "vocabulary").sizes
    model = model_lib.CTRModel(run.ctr, run.make, run.feature_set, sizes, {}, ())
    model.build()
    state = state_lib.State(model, state_lib.optimizer_of(model, run.ctr), {})
    state_lib.save(state, place / STATE, models / "vocabulary", training=training, seen={})
    model_lib.save_model(model, place / TRAINED, training=training)
    saved_model.export(place / TRAINED, models / "vocabulary", None, id_types, run.export, place / SERVING)
    run_file.write(run, place)
    return place


def test_it_is_trained_and_its_candidate_judged_and_pushed(models, id_model, nearline_shop, tmp_path):
    with event_log.SQLiteEventLog(tmp_path / "served.sqlite") as log:
        log.append(json.dumps(record).encode() for record in nearline_shop.records(100, REQUESTS))
    shutil.copytree(id_model / SERVING, tmp_path / "versions" / "1")
    settings = trainer.Settings(
        logs=(log.path,), models_dir=id_model, index_url=str(models / "index.sqlite"), work_dir=tmp_path / "work",
        serving_dir=tmp_path / "versions", letters_url=f"sqlite:///{tmp_path / 'letters.sqlite'}", window_s=5.0,
        slice_rows=REQUESTS * SHOWN, judged_rows=128, slice_minutes=1e5, block_s=1e5,
    )  # fmt: skip
    run, stop = run_file.read(id_model), threading.Event()
    running = trainer.Trainer(run, settings)
    try:
        before = running.learner.rows
        while running.learner.rows < before + REQUESTS * SHOWN:
            running._take_records(stop)
            running._train_blocks(stop)
    finally:
        running.close()
    (folder,) = (tmp_path / "work").glob(f"*/{candidates.FOLDER}/1")
    result = judge.judge(folder)
    assert result["passed"] and result["rows"] == 128 and set(result["metrics"]) == {MULTIMODAL, in_service.NAME}
    assert saved_model.read_manifest(result["version"])["index"] == {}
    assert sorted(path.name for path in (tmp_path / "versions").glob("[0-9]*")) != ["1"]


def test_vectors_that_the_index_lacks_are_still_refused(models, id_model, tmp_path):
    """Of ids alone are those models whose state says so."""
    said = json.loads((id_model / STATE / "manifest.json").read_text())
    said["training"]["encoder_versions"] = {"text": "v9"}
    (id_model / STATE / "manifest.json").write_text(json.dumps(said))
    settings = trainer.Settings(
        logs=("served.sqlite",), models_dir=id_model, index_url=str(models / "index.sqlite"), work_dir=tmp_path,
        serving_dir=tmp_path / "versions", letters_url="letters.sqlite",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"must hold vectors of the model's encoders. Received: no text v9"):
        trainer.Trainer(run_file.read(id_model), settings)


def test_one_click_model_takes_the_run_beside_all_of_them(models, tmp_path):
    folder = models / "models"
    assert not (folder / MULTIMODAL / run_file.FILE).exists()
    assert nearline.run_of(folder / MULTIMODAL) == nearline.run_of(folder) == run_file.read(folder)
    (tmp_path / "models").mkdir()
    run_file.write(run_file.read(folder), tmp_path)
    assert nearline.run_of(tmp_path / "models") is None  # of models that are not trained yet
