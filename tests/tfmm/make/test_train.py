"""Tests of MAKE pre-training."""

import dataclasses
import json

import numpy as np
import pytest

from tfmm import config as config_lib
from tfmm.index import item_index, item_vectors, snapshot
from tfmm.make import model as model_lib
from tfmm.make import train as train_lib

CONFIG = config_lib.MAKEConfig(epochs=3, batch_size=128, attention_units=(8,), units=(16, 8, 4))


class Stop(Exception):
    """Stands in for a kill."""


def train(shop, output_dir, config=CONFIG, **arguments):
    return train_lib.train(config, shop.train, shop.eval, shop.snapshot, output_dir, shop.features, **arguments)


def weights(folder):
    return model_lib.load_model(folder).get_weights()


@pytest.fixture(scope="module")
def trained(shop, tmp_path_factory):
    folder = tmp_path_factory.mktemp("make")
    train(shop, folder)
    return folder


def test_every_modality_learns_taste(shop, trained, tmp_path):
    history = json.loads((trained / "history.json").read_text())
    assert [line["epoch"] for line in history] == [0, 1, 2]
    for block in ("image_behavior", "text_behavior"):
        assert history[2][f"loss_{block}"] < history[0][f"loss_{block}"]
    assert history[2]["gauc_text_behavior"] > 0.53


@pytest.mark.slow
def test_resumed_run_equals_an_uninterrupted_one(shop, trained, tmp_path):
    def stop_after_one_epoch(stage, done, total, **metrics):
        if "auc_image_behavior" in metrics:
            raise Stop("stopped")

    with pytest.raises(Stop, match="stopped"):
        train(shop, tmp_path / "a", checkpoint_dir=tmp_path / "state", progress=stop_after_one_epoch)
    assert not (tmp_path / "a" / "manifest.json").exists()
    train(shop, tmp_path / "a", checkpoint_dir=tmp_path / "state")
    for resumed, whole in zip(weights(tmp_path / "a"), weights(trained), strict=True):
        np.testing.assert_allclose(resumed, whole, atol=1e-6)  # threads sum in another order


def test_no_epoch_writes_untrained_blocks(shop, tmp_path):
    manifest = train(shop, tmp_path, dataclasses.replace(CONFIG, epochs=0), modalities=["text"])
    assert manifest["dims"] == {"text": 8} and manifest["metrics"] == {}
    assert (tmp_path / "history.json").read_text() == "[]\n"


def test_modality_without_vectors_is_refused(shop, tmp_path):
    with pytest.raises(ValueError, match=r"`modalities` must be in the index snapshot .*\['audio'\]"):
        train(shop, tmp_path, modalities=["audio"])
    with item_index.ItemIndex(tmp_path / "index.sqlite") as index:
        index.register_encoder("image", "v1", 4)
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    with pytest.raises(ValueError, match="must hold vectors of 'image'"):
        item_vectors.load_vectors(tmp_path / "snapshot")
