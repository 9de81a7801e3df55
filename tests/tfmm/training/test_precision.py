"""Mixed precision: what is trained in 16 bits, judged and exported in float32."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf

from tfmm import preprocessing
from tfmm.config import PRECISIONS, CTRConfig, MAKEConfig, SCLConfig, TrainingConfig
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as ctr
from tfmm.ctr.optimizer import TwoRateAdam
from tfmm.features import FeatureSet
from tfmm.index import item_vectors
from tfmm.make import train as make
from tfmm.pretrain import train as scl
from tfmm.training import examples as examples_lib
from tfmm.training import precision, sources

FEATURES = FeatureSet().resolved(max_behaviors=6, min_count=1)
MIXED = PRECISIONS[1:]
SIZES = {"user_id": 5_001, "item_id": 5_002, "category": 5_003}


@pytest.fixture(scope="module")
def train(shop, pairs, tmp_path_factory):
    """Returns a function that trains in a precision, and returns the manifest, the losses by epoch, and the folder."""
    place = tmp_path_factory.mktemp("precision")

    def train(name, how):
        folder = place / how / name
        examples, also = (shop.train, shop.eval), {"training": TrainingConfig(precision=how), "checkpoint_dir": folder}
        if name == "ctr":
            config = CTRConfig(units=(8,), attention_units=(8,), batch_size=256)
            own = {"modalities": ("image", "text"), "snapshot_dir": shop.snapshot}
            manifest = ctr.train(config, *examples, shop.vocabularies, folder, FEATURES, **own, **also)
        elif name == "make":
            config = MAKEConfig(epochs=1, attention_units=(8,), units=(8, 8, 8))
            manifest = make.train(config, *examples, shop.snapshot, folder, FEATURES, **also)
        else:
            bank = {"memory_bank_size": 21, "memory_bank_share": 1.0}
            config = SCLConfig(modality="text", text_buckets=256, dim=8, batch_size=8, epochs=4, **bank)
            manifest = scl.train(config, pairs / "text", folder, **also)
        assert keras.config.dtype_policy().name == "float32"  # as it was before
        lines = json.loads((folder / "history.json").read_text())
        return manifest, [line["loss"] for line in lines if "loss" in line], folder

    return train


@pytest.fixture(scope="module")
def trained(train):
    """`train`, each once; read-only."""
    return functools.cache(train)


@pytest.mark.parametrize("how", MIXED)
def test_click_model_learns_as_in_float32_and_is_judged_in_it(trained, shop, how):
    (exact, losses, _), (manifest, found, folder) = trained("ctr", "float32"), trained("ctr", how)
    assert found != losses
    np.testing.assert_allclose(found, losses, atol=0.01)
    assert abs(manifest["metrics"]["auc"] - exact["metrics"]["auc"]) < 0.02
    model = model_lib.load_model(folder)
    tables = item_vectors.load_vectors(shop.snapshot, ("image", "text"))
    preprocessor = preprocessing.load(FEATURES, shop.vocabularies)
    rows = sources.open_source(examples_lib.example_files(shop.eval), FEATURES, tables, preprocessor)
    assert ctr.evaluate(model, tables, rows) == manifest["metrics"]  # of the model as it is loaded, in float32
    with np.load(next(folder.glob("*/state.npz"))) as state:
        assert {state[name].dtype.name for name in state.files if name.startswith("model/")} <= {"float32", "uint32"}


@pytest.mark.parametrize("how", MIXED)
@pytest.mark.parametrize("name", ["make", "text"])
def test_encoders_and_make_learn_as_in_float32(trained, name, how):
    (exact, losses, _), (manifest, found, folder) = trained(name, "float32"), trained(name, how)
    if name == "make":
        for block, value in exact["metrics"].items():
            assert abs(manifest["metrics"][block] - value) < 0.02
        return
    np.testing.assert_allclose(found, losses, rtol=0.02)
    encode = tf.saved_model.load(str(folder / "encoder")).signatures["serving_default"]
    vector = encode(content=tf.constant([b"word1 word2", b""]))["vector"].numpy()
    assert vector.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vector, axis=1), [1.0, 0.0], atol=1e-6)


def test_training_in_bfloat16_goes_on_from_its_checkpoint(train, trained):
    first = trained("text", "mixed_bfloat16")  # the bank is of 16 bits too
    again = train("text", "mixed_bfloat16")
    assert again[0]["encoder_version"] == first[0]["encoder_version"] and again[1] == first[1]


@pytest.mark.parametrize("how", MIXED)
def test_rows_of_tables_are_cast_and_not_the_tables(how):
    with precision.policy(how):
        model = model_lib.CTRModel(CTRConfig(units=(4,)), MAKEConfig(), FEATURES, SIZES, {"image": 8})
        model.build()
    inputs = model_lib.padding_inputs(FEATURES, {"image": 8})
    graph = tf.function(lambda inputs: model(inputs, training=True)).get_concrete_function(inputs).graph
    cast = [op.inputs[0].shape[:1].as_list() for op in graph.get_operations() if op.type == "Cast"]
    assert not [shape for shape in cast if shape and shape[0] in SIZES.values()]
    scales = {op.outputs[0].dtype.name for op in graph.get_operations() if "scales" in op.name}
    assert scales <= {"float32"}  # of int8 rows: a rounded cosine lies in another tier


def slices(values):
    return tf.IndexedSlices(tf.constant(values), tf.constant([1, 1]), tf.constant([3, 1]))


def test_gradients_that_are_not_finite_change_the_scale_alone():
    table, dense = keras.Variable([[1.0]] * 3, name="embeddings"), keras.Variable([1.0])
    with precision.policy("mixed_float16"):
        optimizer = precision.scaled(TwoRateAdam(0.1, 0.5))
    optimizer.build([table, dense])
    scale = precision.FIRST_SCALE

    @tf.function
    def step(values, value):
        optimizer.apply([slices(values), value], [table, dense])

    step([[np.inf], [1.0]], tf.constant([scale]))
    assert table.numpy().tolist() == [[1.0]] * 3 and dense.numpy().tolist() == [1.0]
    assert float(optimizer.scale) == scale / 2 and int(optimizer.optimizer.iterations) == 0
    step([[scale], [0.5 * scale]], tf.constant([scale]))
    np.testing.assert_allclose(table.numpy(), [[1.0], [0.5], [1.0]], atol=1e-5)  # Adam's first step is the rate
    np.testing.assert_allclose(dense.numpy(), [0.9], atol=1e-5)
    optimizer.finite_steps.assign(precision.GROWTH_STEPS - 1)
    step([[scale], [0.5 * scale]], tf.constant([scale]))
    assert float(optimizer.scale) == scale and int(optimizer.finite_steps) == 0


def test_bfloat16_needs_no_loss_scaling():
    with precision.policy("mixed_bfloat16"):
        optimizer = TwoRateAdam(0.1, 0.5)
        assert precision.scaled(optimizer) is optimizer
