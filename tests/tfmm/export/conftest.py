"""Click models of a small shop, exported in the forms that the tests need."""

import dataclasses
import glob
import pathlib

import keras
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm import saved_model as saved_model_lib
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model

INT64 = {"user_id": "int64", "item_id": "int64", "category": "int64"}
DIMS = {"image": 16, "text": 8}
CONFIG = config_lib.ExportConfig(index_capacity=400, batch_buckets=(4, 16), candidate_buckets=(4, 16))


def write_model(shop, folder, modalities, vocabularies=None):
    """Writes a model with weights drawn large enough for every input to move the score."""
    keras.utils.set_random_seed(0)
    sizes = preprocessing.load(shop.features, vocabularies or shop.vocabularies).sizes
    config = config_lib.CTRConfig(units=(16, 8), attention_units=(6,))
    methods = (config_lib.Method("simtier", {"num_tiers": 10}), config_lib.Method("make"))
    make = config_lib.MAKEConfig(attention_units=(6,), units=(8, 6, 4))
    model = model_lib.CTRModel(config, make, shop.features, sizes, {m: DIMS[m] for m in modalities}, methods)
    model.build()
    seeds = keras.random.SeedGenerator(1)  # keras's own goes on from what other tests have drawn
    for variable in model.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.1, seed=seeds))
    model_lib.save_model(model, folder)
    return folder


@dataclasses.dataclass(frozen=True)
class Exported:
    shop: object
    model_dir: pathlib.Path
    version_dir: pathlib.Path
    manifest: dict
    snapshot: pathlib.Path | None


@pytest.fixture(scope="session")
def export_model(shop, tmp_path_factory):
    """Exports a model of some modalities with other settings."""

    def export(modalities=("image", "text"), id_types=INT64, config=CONFIG, version="1"):
        folder = tmp_path_factory.mktemp("export")
        snapshot = shop.snapshot if modalities else None
        model_dir = write_model(shop, folder / "model", modalities)
        manifest = saved_model.export(
            model_dir, shop.vocabularies, snapshot, id_types, config, folder / "tfmm" / version
        )
        return Exported(shop, model_dir, folder / "tfmm" / version, manifest, snapshot)

    return export


@pytest.fixture(scope="session")
def write_own_model():
    """The function that writes a model, for tests with features of their own."""
    return write_model


@pytest.fixture(scope="session")
def multimodal(export_model):
    return export_model()


@pytest.fixture(scope="session")
def ids_alone(export_model):
    """The export of a model without vectors."""
    return export_model(modalities=())


@pytest.fixture(scope="session")
def loaded(multimodal):
    """The multimodal export, for tests that only read."""
    with saved_model_lib.load_session(multimodal.version_dir) as model:
        yield model


@pytest.fixture
def fresh(multimodal):
    """The multimodal export in a session of its own: upserts of one test are not seen by another."""
    with saved_model_lib.load_session(multimodal.version_dir) as model:
        yield model


@pytest.fixture(scope="session")
def examples(shop):
    """The serialized evaluation examples, which hold the raw columns."""
    return list(tf.data.TFRecordDataset(sorted(glob.glob(shop.eval)), "GZIP").take(100).as_numpy_iterator())
