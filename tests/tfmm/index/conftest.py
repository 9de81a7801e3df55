"""Tiny encoders and catalogs for the tests of the index."""

import itertools
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm import artifacts
from tfmm.index import store


class _ByteEncoder(tf.Module):
    """Embeds a content by its length and first bytes; "bad" contents give the zero vector."""

    def __init__(self, dim, offset):
        super().__init__()
        self.weights = tf.Variable(np.random.default_rng(offset).normal(size=[8, dim]), dtype=tf.float32)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="content")])
    def embed(self, content):
        padded = tf.strings.substr(tf.strings.join([content, tf.fill(tf.shape(content), "." * 8)]), 0, 8)
        values = tf.reshape(tf.io.decode_raw(padded, tf.uint8), [-1, 8])
        vectors = tf.math.l2_normalize(tf.cast(values, tf.float32) @ self.weights, axis=1)
        is_bad = tf.strings.regex_full_match(content, "bad.*")
        return {"vector": tf.where(is_bad[:, None], tf.zeros_like(vectors), vectors)}


def write_encoder(folder: pathlib.Path, modality: str, dim: int = 8, version: str = "v1") -> str:
    module = _ByteEncoder(dim, len(version) + len(modality))
    tf.saved_model.save(module, str(folder / "encoder"), signatures={"serving_default": module.embed})
    artifacts.write_manifest(folder, "encoder", encoder_version=version, modality=modality, dim=dim)
    return str(folder)


@pytest.fixture(scope="session")
def encoder_dirs(tmp_path_factory):
    """Encoder folders by modality: image (8 values) and text (6 values)."""
    root = tmp_path_factory.mktemp("encoders")
    return {"image": write_encoder(root / "image", "image"), "text": write_encoder(root / "text", "text", 6)}


@pytest.fixture
def catalog(tmp_path):
    """A data folder of 10 items: two without image, one image that cannot be decoded, two row groups."""
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    images = [None, b"bad bytes", *(f"image {n}".encode() for n in range(7)), None]
    pq.write_table(
        pa.table(
            {
                "item_id": [f"item-{n}" for n in range(10)],
                "title": [f"title {n}" for n in range(10)],
                "image": pa.array(images, pa.binary()),
                "category": ["shoes"] * 9 + [None],
                "created_at": pa.array([1_000_000 + n for n in range(10)], pa.timestamp("us")),
            }
        ),
        data_dir / "items.parquet",
        row_group_size=6,
    )
    return data_dir


OWN_STORES = pathlib.Path(__file__).parent / "stores"


@pytest.fixture
def own_store(install_entry_point):
    """Installs a store of somebody's own: its file, and one line of its package's entry points."""
    install_entry_point(OWN_STORES, "tfmm.index_stores", "pickled = pickled:PickledStore")


STORES = {  # {}: a new folder
    "sqlite": "sqlite:///{}/items.sqlite",
    "pickled": "pickled://{}/items.pickle",
    "redis": "redis://{}",  # a prefix in the tests' server
}


def url_in(folder, request):
    if request.param == "redis":
        return request.getfixturevalue("redis_server").url(prefix=str(folder))
    return STORES[request.param].format(folder)


@pytest.fixture(params=STORES)
def url(request, own_store, tmp_path):
    return url_in(tmp_path, request)


@pytest.fixture
def index(url):
    with store.open_store(url) as index:
        yield index


@pytest.fixture(params=STORES)
def fresh(request, own_store, tmp_path):
    """Opens new stores, for tests that need one per example."""
    numbers = itertools.count()
    return lambda: store.open_store(url_in(tmp_path / str(next(numbers)), request))
