"""Training and ranking on a GPU: `make test-gpu`, which says "not run" where there is none."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import saved_model as saved_model_lib
from tfmm.config import PRECISIONS, CTRConfig, MAKEConfig, SCLConfig, TrainingConfig
from tfmm.ctr import train as ctr
from tfmm.export import saved_model
from tfmm.features import FeatureSet
from tfmm.index import item_vectors
from tfmm.make import train as make
from tfmm.pretrain import train as scl
from tfmm.training import precision

pytestmark = pytest.mark.gpu

FEATURES = FeatureSet().resolved(max_behaviors=6, min_count=1)
ON_GPU = [TrainingConfig(precision=how) for how in PRECISIONS] + [TrainingConfig("mirrored", PRECISIONS[1])]


def in_words(training):
    return f"{training.strategy}-{training.precision}"


@pytest.fixture(params=ON_GPU, ids=in_words)
def training(request):
    return request.param


@pytest.fixture
def used_memory():
    """Returns the most bytes of the first GPU that were in use since the test began."""
    tf.config.experimental.reset_memory_stats("GPU:0")
    before = tf.config.experimental.get_memory_info("GPU:0")["current"]
    return lambda: tf.config.experimental.get_memory_info("GPU:0")["peak"] - before


def losses(folder):
    lines = json.loads((folder / "history.json").read_text())
    return np.array([[value for name, value in line.items() if name.startswith("loss")] for line in lines])


@pytest.mark.parametrize("name", ["text", "image"])
def test_encoders_learn_on_the_gpu(training, pairs, tmp_path, used_memory, name):
    config = SCLConfig(
        modality=name, dim=8, image_size=16, width=4, batch_size=8, epochs=8, memory_bank_size=21, memory_bank_share=1.0
    )
    scl.train(config, pairs / name, tmp_path, training=training)
    found = losses(tmp_path)
    assert np.isfinite(found).all() and found[-1] < found[0]
    assert used_memory() > 0


def test_make_learns_on_the_gpu(training, shop, tmp_path, used_memory):
    manifest = make.train(
        MAKEConfig(epochs=3), shop.train, shop.eval, shop.snapshot, tmp_path, FEATURES, training=training
    )
    assert min(value for name, value in manifest["metrics"].items() if name.startswith("auc")) > 0.55
    assert used_memory() > 0


def test_click_model_learns_on_the_gpu_and_ranks_there_by_xla(training, shop, tmp_path, used_memory):
    own = {"modalities": ("image", "text"), "snapshot_dir": shop.snapshot}
    config = CTRConfig(units=(16,), batch_size=64)
    model_dir, version_dir = tmp_path / "model", tmp_path / "tfmm" / "1"
    manifest = ctr.train(
        config, shop.train, shop.eval, shop.vocabularies, model_dir, FEATURES, training=training, **own
    )
    assert manifest["metrics"]["auc"] > 0.55 and used_memory() > 0
    kinds = dict.fromkeys(("user_id", "item_id", "category"), "int64")
    export = config_lib.ExportConfig(index_capacity=400, batch_buckets=(64,), candidate_buckets=(64,), jit_compile=True)
    saved_model.export(model_dir, shop.vocabularies, shop.snapshot, kinds, export, version_dir)
    items = np.arange(1000, 1040)
    user = {
        "user_id": np.array([7]),
        "behavior_item_ids": np.array([[1001, 1002, 1003, 0, 0, 0]]),
        "behavior_categories": np.array([[1, 2, 3, 0, 0, 0]]),
    }
    candidates = {"item_id": items, "category": items % 5 + 1}
    with saved_model_lib.load_session(version_dir) as served:
        ranked = served("rank", {**user, **candidates})["logit"]
        repeated = {name: np.repeat(values, len(items), 0) for name, values in user.items()}
        one_by_one = served("serving_default", {**repeated, **candidates})["logit"]
    assert ranked.dtype == np.float32
    np.testing.assert_allclose(ranked, one_by_one, atol=1e-4)  # sums in another order, TensorFloat-32 perhaps


def test_item_vectors_lie_on_the_device(shop):
    table = item_vectors.load_vectors(shop.snapshot, ("image",))["image"]
    with precision.policy(PRECISIONS[0]):
        found = tf.function(table.lookup)(tf.constant([[1, 2], [3, 0]]))
    assert "GPU" in table._rows.device and "GPU" in found.rows.device
