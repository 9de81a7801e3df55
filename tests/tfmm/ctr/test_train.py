"""Tests of CTR training."""

import json

import numpy as np
import pytest

from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.index import item_vectors
from tfmm.make import model as make_model
from tfmm.make import train as make_train
from tfmm.training import examples as examples_lib
from tfmm.training import sources

SMALL = {"batch_size": 256, "learning_rate": 1e-2, "attention_units": (8,), "units": (16,)}
METHODS = (config_lib.Method("simtier", {"num_tiers": 8}), config_lib.Method("make"))
MAKE = config_lib.MAKEConfig(epochs=1, batch_size=256, attention_units=(8,), units=(16, 8, 4))


class Stop(Exception):
    """Stands in for a kill."""


def train(shop, output_dir, modalities=("image", "text"), seed=0, epochs=1, snapshot=True, **arguments):
    own = {name: arguments.pop(name) for name in ("block_rows", "segments") if name in arguments}
    config = config_lib.CTRConfig(seed=seed, epochs=epochs, **SMALL, **own)
    return train_lib.train(
        config,
        shop.train,
        shop.eval,
        shop.vocabularies,
        output_dir,
        shop.features,
        modalities=modalities,
        methods=METHODS,
        snapshot_dir=shop.snapshot if snapshot else None,
        **arguments,
    )


def weights(folder):
    return model_lib.load_model(folder).get_weights()


def assert_close(left, right, atol=1e-5):
    """Equal up to the order in which threads sum."""
    for one, other in zip(left, right, strict=True):
        np.testing.assert_allclose(one, other, atol=atol)


@pytest.fixture(scope="module")
def make_dir(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("make")
    make_train.train(MAKE, shop.train, shop.eval, shop.snapshot, folder, shop.features)
    return folder


@pytest.fixture(scope="module")
def trained(shop, make_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ctr")
    train(shop, folder, make_dir=make_dir)
    return folder


@pytest.fixture(scope="module")
def twin(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("twin")
    train(shop, folder, modalities=(), snapshot=False)
    return folder


def test_pretrained_make_stays_as_it_was(make_dir, trained):
    extractor, model = make_model.load_model(make_dir), model_lib.load_model(trained)
    for modality in ("image", "text"):
        name = f"{modality}_behavior"
        assert_close(extractor.blocks[name].get_weights(), dict(model.make_blocks())[name].get_weights(), atol=0)


def test_history_and_manifest_have_the_metrics(trained):
    manifest = json.loads((trained / "manifest.json").read_text())
    history = json.loads((trained / "history.json").read_text())
    assert set(manifest["metrics"]) == {"auc", "gauc", "logloss"}
    assert manifest["metrics"]["gauc"] == history[-1]["gauc"]
    assert (history[0]["epoch"], history[0]["segment"], history[0]["steps"]) == (0, 0, 12)


def test_same_seed_gives_the_same_model_and_another_seed_another(shop, twin, tmp_path):
    train(shop, tmp_path / "again", modalities=(), snapshot=False)
    assert_close(weights(twin), weights(tmp_path / "again"))
    train(shop, tmp_path / "other", modalities=(), snapshot=False, seed=1)
    assert np.abs(weights(twin)[0] - weights(tmp_path / "other")[0]).max() > 1e-3


def test_id_twin_does_not_read_the_snapshot(shop, twin, make_dir, tmp_path):
    train(shop, tmp_path, modalities=(), snapshot=True, make_dir=make_dir)
    assert_close(weights(twin), weights(tmp_path))
    assert json.loads((tmp_path / "manifest.json").read_text())["parents"] == []


@pytest.mark.slow
def test_without_pretraining_make_is_trained_jointly(shop, tmp_path):
    train(shop, tmp_path / "ctr", make_config=MAKE)
    untrained = config_lib.MAKEConfig(epochs=0, batch_size=256, attention_units=(8,), units=(16, 8, 4))
    make_train.train(untrained, shop.train, shop.eval, shop.snapshot, tmp_path / "make", shop.features)
    train(shop, tmp_path / "from_untrained", make_dir=tmp_path / "make")
    before = make_model.load_model(tmp_path / "make").blocks["image_behavior"].get_weights()
    for folder in ("ctr", "from_untrained"):
        after = dict(model_lib.load_model(tmp_path / folder).make_blocks())["image_behavior"].get_weights()
        assert any(np.abs(a - b).max() > 1e-4 for a, b in zip(before, after, strict=True)), folder


@pytest.mark.slow
@pytest.mark.parametrize("modalities", [(), ("image", "text")])
def test_resumed_run_equals_an_uninterrupted_one(shop, make_dir, tmp_path, modalities):
    own = {"modalities": modalities, "make_dir": make_dir, "block_rows": 256, "segments": 12}
    train(shop, tmp_path / "whole", **own)
    segments = []

    def stop_in_the_middle(stage, done, total, **metrics):
        segments.append(done)
        if done >= 6:
            raise Stop("stopped")

    with pytest.raises(Stop, match="stopped"):
        train(shop, tmp_path / "a", checkpoint_dir=tmp_path / "c", progress=stop_in_the_middle, **own)
    train(shop, tmp_path / "a", checkpoint_dir=tmp_path / "c", **own)
    assert_close(weights(tmp_path / "whole"), weights(tmp_path / "a"))
    assert len(json.loads((tmp_path / "a" / "history.json").read_text())) == 12


def test_rows_are_read_in_time_order_with_their_slots(shop):
    tables = item_vectors.load_vectors(shop.snapshot, ["image"])
    files = examples_lib.example_files(shop.eval)
    preprocessor = preprocessing.load(shop.features, shop.vocabularies)
    columns = sources.open_source(files, shop.features, tables, preprocessor).gather(np.arange(1000))
    assert (np.diff(columns["timestamp"]) > 0).all()
    assert columns["image_behavior_slots"].shape == columns["behavior_item_ids_index"].shape
    assert ((columns["image_behavior_slots"] > 0) <= (columns["behavior_item_ids_index"] > 0)).all()
    assert (columns["item_id_index"] == 1).any()  # new items are out of the vocabulary


def test_bad_arguments_are_refused(shop, make_dir, tmp_path):
    with pytest.raises(ValueError, match="`snapshot_dir` must be given"):
        train(shop, tmp_path, snapshot=False)
    with pytest.raises(FileNotFoundError, match="Transform the examples first"):
        preprocessing.load(shop.features, tmp_path)
    preprocessor = preprocessing.load(shop.features, shop.vocabularies)
    sizes = dict(preprocessor.sizes)
    preprocessor.sizes["item_id"] = 5
    with pytest.raises(ValueError, match="`item_id_index` must be below 5, the size of vocabulary 'item_id'"):
        sources.open_source(examples_lib.example_files(shop.eval), shop.features, {}, preprocessor)
    extractor = make_model.load_model(make_dir)
    model = model_lib.CTRModel(config_lib.CTRConfig(), MAKE, shop.features, sizes, {"image": 99})
    with pytest.raises(ValueError, match="MAKE must be pre-trained on 'image' vectors of 99 values"):
        model.take_make(extractor)
