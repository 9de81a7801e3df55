"""What the server's tests share: a model of every signature that the protocol knows, a click model, a process."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import typing

import keras
import numpy as np
import psutil
import pytest
import tensorflow as tf

from serving import served_log
from tests.serving.model_server.calls import SEND_S
from tfmm import config as config_lib
from tfmm import preprocessing, saved_model
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model as export_lib
from tfmm.features import DEFAULT_FEATURES, STORED, Feature, FeatureSet, Sequence
from tfmm.fingerprints import fingerprint
from tfmm.index import encode, item_features, item_index, snapshot


@pytest.fixture(scope="module", autouse=True)
def patient_logs():
    """Logs of servers that end have all the time that they need, on whatever disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_log, "_STOP_S", 300.0)
        yield


DTYPES = ("float16", "float32", "float64", "int8", "int32", "int64", "uint16", "uint32", "uint64", "bool", "string")


def signature(function, **inputs):
    return tf.function(function).get_concrete_function(**inputs)


def spec(dtype, shape=None, name="x"):
    return tf.TensorSpec(shape, dtype, name=name)


def example_signature(outputs):
    """A signature that reads feature x of serialized examples, and gives what `outputs` makes of x and x / 2 + 2."""

    def run(inputs):
        x = tf.io.parse_example(inputs, {"x": tf.io.FixedLenFeature([1], tf.float32)})["x"]
        return outputs(x, x / 2.0 + 2.0)

    return signature(run, inputs=spec(tf.string, [None], "inputs"))


def write_model(path):
    signatures = {
        "serving_default": signature(lambda x: {"y": x / 2.0 + 2.0}, x=spec(tf.float32)),
        "x_to_y": signature(lambda inputs: {"outputs": inputs / 2.0 + 2.0}, inputs=spec(tf.float32, None, "inputs")),
        "named": signature(
            lambda **tensors: {name: tf.identity(tensor) for name, tensor in tensors.items()},
            int_tensor=spec(tf.int32, None, "int_tensor"),
            str_tensor=spec(tf.string, None, "str_tensor"),
            float_tensor=spec(tf.float32, None, "float_tensor"),
            dbl_tensor=spec(tf.float64, None, "dbl_tensor"),
        ),
        "status": signature(lambda: {"watermark": tf.constant([7])}),
        "as_bytes": signature(lambda x: {"y_bytes": tf.identity(x)}, x=spec(tf.string)),
        "to_number": signature(lambda x: {"y": tf.strings.to_number(x)}, x=spec(tf.string)),
        "as_complex": signature(lambda x: {"y": tf.complex(x, x)}, x=spec(tf.float32)),
        "as_scalar": signature(lambda x: {"y": tf.reduce_sum(x)}, x=spec(tf.float32, [None])),
        "uneven": signature(lambda x: {"y": x[:1], "z": tf.identity(x)}, x=spec(tf.float32, [None])),
        "none_of": signature(lambda x: {"y": x[:0]}, x=spec(tf.float32, [None])),
        "regress_x_to_y": example_signature(lambda x, y: {"outputs": y}),
        "classify_x_to_y": example_signature(lambda x, y: {"scores": y}),
        "classes": example_signature(
            lambda x, y: {
                "classes": tf.tile(tf.constant([["low", "high"]]), [tf.shape(x)[0], 1]),
                "scores": tf.concat([x, y], 1),
            }
        ),
        "flat_scores": example_signature(lambda x, y: {"scores": y[:, 0]}),
        "float_classes": example_signature(lambda x, y: {"classes": y}),
        "mismatched": example_signature(
            lambda x, y: {"classes": tf.as_string(x), "scores": tf.concat([x, y], 1)}
        ),
        "other_batch": example_signature(lambda x, y: {"outputs": tf.concat([y, y], 0)}),
    }
    for dtype in DTYPES:
        signatures[dtype] = signature(lambda x: {"y": tf.identity(x)}, x=spec(dtype))
    return saved_model.save(tf.Module(), signatures, path)


@pytest.fixture(scope="session")
def write_protocol_model():
    """Writes a version folder whose signatures are those that the protocol's cases ask."""
    return write_model


FEATURES = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("brand", "item"),
        Feature("price", "item", "number", scaling="log"),
        Feature("tags", "item", "ids", max_values=3),
        Feature("in_stock", "item", "boolean"),
        Feature("launched", "item", "time"),
        Feature("device", "context", num_buckets=8),
        Feature("age", "behavior", "number", source="behaviors.age"),
    ),
    (Sequence("clicks", features=("item_id", "category", "price", "age")),),
).resolved(max_behaviors=4, min_count=1)
ID_TYPES = dict.fromkeys(("user_id", "item_id", "category", "device"), "int64") | {"brand": "string", "tags": "string"}
ITEMS, DIM = np.arange(100, 140), 6


def write_click_model(folder, **settings):
    """Writes a version of a click model with features of every kind, vectors and an index of items; weights drawn.

    Args:
        folder: gets `tfmm/1` and what it was made of.
        **settings: of the export.
    """
    draw, given = np.random.default_rng(0), encode.GivenVectors(DIM, "vector")
    brands, tags = fingerprint([f"brand {n}" for n in range(5)]), fingerprint(["red", "new", "soft"])
    vocabularies = {"user_id": np.arange(1, 9), "item_id": ITEMS, "category": np.arange(1, 4), "brand": brands,
                    "tags": tags}  # fmt: skip
    statistics = {"price": np.array([2.0, 1.0], np.float32), "age": np.array([30.0, 0.05], np.float32)}
    preprocessing.write(folder / "vocabulary", vocabularies, statistics)
    layout = item_features.Layout.of(FEATURES, ID_TYPES)
    stored = {
        "category": draw.integers(1, 4, len(ITEMS)), "brand": draw.choice(brands, len(ITEMS)),
        "price": np.exp(draw.normal(2, 1, len(ITEMS))).astype(np.float32), "tags": draw.choice(tags, [len(ITEMS), 3]),
        "in_stock": np.ones(len(ITEMS), np.float32), "launched": draw.integers(0, 10**15, len(ITEMS)),
    }  # fmt: skip
    with item_index.ItemIndex(folder / "items.sqlite") as index:
        index.register_encoder(STORED, layout.version, layout.dim, layout.text)
        index.write(STORED, layout.version, ITEMS, layout.pack(stored), np.ones(len(ITEMS)), [1] * len(ITEMS))
        rows, scales = encode.quantize(draw.normal(size=[len(ITEMS), DIM]))
        index.write("vector", given.version, ITEMS, rows, scales, [1] * len(ITEMS))
        index.activate(STORED, layout.version)
        index.activate("vector", given.version)
        snapshot.write_snapshot(index, folder / "snapshot")
    keras.utils.set_random_seed(0)
    model = model_lib.CTRModel(
        config_lib.CTRConfig(units=(8,), attention_units=(4,)), config_lib.MAKEConfig(), FEATURES,
        preprocessing.load(FEATURES, folder / "vocabulary").sizes, {"vector": DIM},
        (config_lib.Method("simtier", {"num_tiers": 8}),),
    )  # fmt: skip
    model.build()
    model_lib.save_model(model, folder / "model")
    settings = {"index_capacity": 256, "batch_buckets": (4, 64), "candidate_buckets": (4, 64)} | settings
    parts = (folder / name for name in ("model", "vocabulary", "snapshot"))
    export_lib.export(*parts, ID_TYPES, config_lib.ExportConfig(**settings), folder / "tfmm" / "1")
    return folder / "tfmm"


class ServerProcess(typing.NamedTuple):
    """A server in a process of its own, with a click model `tfmm` and the protocol's model `half`."""

    process: subprocess.Popen
    grpc: str
    rest: tuple[str, int]
    token: str
    stderr: pathlib.Path

    def memory(self) -> int:
        """Resident bytes now."""
        return psutil.Process(self.process.pid).memory_info().rss


@contextlib.contextmanager
def process(root, folder, base_paths, *flags):
    configs = "".join(f'config {{ name: "{n}" base_path: "{p}" model_platform: "tensorflow" }}\n'
                      for n, p in base_paths.items())  # fmt: skip
    file, ready, stderr = folder / "models.config", folder / "ready.json", folder / "stderr.log"
    file.write_text(f"model_config_list {{ {configs} }}")
    (folder / "token").write_text(token := "a-token-that-nobody-guesses")
    with stderr.open("wb") as log:
        started = subprocess.Popen(
            [sys.executable, "-m", "serving.model_server", f"--model_config_file={file}", "--port=0",
             "--rest_api_port=0", f"--ready_file={ready}", f"--token_file={folder / 'token'}", *flags],
            cwd=root, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=log,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 500
        while not ready.exists():
            assert started.poll() is None and time.monotonic() < deadline, stderr.read_text()[-2000:]
            time.sleep(0.05)
        ports = json.loads(ready.read_text())
        yield ServerProcess(
            started, f"127.0.0.1:{ports['grpc_port']}", ("127.0.0.1", ports["rest_port"]), token, stderr
        )
    finally:
        started.kill()
        started.wait()


@pytest.fixture(scope="module")
def fuzzed_server(root, tmp_path_factory, write_protocol_model):
    """A server whose limits are so low that drawn requests meet them."""
    folder = tmp_path_factory.mktemp("fuzzed")
    write_protocol_model(folder / "half" / "123")
    models = {"tfmm": write_click_model(folder), "half": folder / "half"}
    limits = ("--max_request_bytes=65536", "--max_candidates=64", f"--send_timeout_seconds={SEND_S}")
    with process(root, folder, models, *limits) as started:
        yield started


@pytest.fixture(scope="session")
def raw_example():
    """Draws one serialized example with the columns that the click model reads, and those that it does not."""

    def draw(rng):
        features = {}
        for name, wanted in preprocessing.raw_spec(FEATURES).items():
            size = int(np.prod(wanted.shape))
            if wanted.dtype == tf.int64:
                drawn = tf.train.Feature(int64_list={"value": [rng.randrange(150) for _ in range(size)]})
            else:
                drawn = tf.train.Feature(float_list={"value": [rng.gauss(0, 1) for _ in range(size)]})
            features[name] = drawn
        return tf.train.Example(features={"feature": features}).SerializeToString()

    return draw


@pytest.fixture(scope="session", name="write_click_model")
def _write_click_model():
    """`write_click_model`, for tests that serve it inside their process."""
    return write_click_model
