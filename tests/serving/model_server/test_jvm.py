"""A pushed model in TensorFlow for the JVM, by its C++ loader: the scores are Python's (`make test-jvm`)."""

import pathlib
import subprocess

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import named_tensor_pb2

from serving.deploy import started
from tfmm import saved_model
from tfmm.export import signatures, trial

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def jvm(root, tmp_path_factory):
    """Returns a function that calls signatures of a version, by name and inputs, in a JVM."""
    started.require_tools("TensorFlow for the JVM", "java", "javac", "mvn")
    here, jars = root / "serving" / "deploy" / "jvm", root / ".cache" / "jvm"
    if not (jars / "complete").exists():
        started.fetch_jars(here / "pom.xml", jars)
        (jars / "complete").touch()
    classes = tmp_path_factory.mktemp("classes")
    subprocess.run(["javac", "-cp", f"{jars}/*", "-d", classes, here / "Signatures.java"], check=True, timeout=300)

    def call(version, requests):
        folder = tmp_path_factory.mktemp("requests")
        for name, inputs in requests.items():
            (folder / f"{name}.in").write_bytes(b"".join(written(key, value) for key, value in inputs.items()))
        command = ["java", "-cp", f"{jars}/*:{classes}", "Signatures", version, folder]
        subprocess.run(command, check=True, timeout=600)
        return {name: read(folder / f"{name}.out") for name in requests}

    return call


def written(name, value):
    """A tensor with its name, its length before it."""
    array = np.asarray(value)
    proto = tf.make_tensor_proto(array)
    if array.dtype.kind not in "OSU":  # TensorFlow writes a value that repeats once
        proto = type(proto)(dtype=proto.dtype, tensor_shape=proto.tensor_shape, tensor_content=array.tobytes())
    raw = named_tensor_pb2.NamedTensorProto(name=name, tensor=proto).SerializeToString()
    return varint(len(raw)) + raw


def varint(number):
    parts = []
    while number > 127:
        parts.append(number % 128 + 128)
        number //= 128
    return bytes([*parts, number])


def read(path: pathlib.Path):
    left, found = path.read_bytes(), {}
    while left:
        size, place = 0, 0
        while left[place] > 127:
            size += (left[place] - 128) << 7 * place
            place += 1
        size += left[place] << 7 * place
        one = named_tensor_pb2.NamedTensorProto.FromString(left[place + 1 : place + 1 + size])
        found[one.name] = tf.make_ndarray(one.tensor)
        left = left[place + 1 + size :]
    return found


def drawn(inputs):
    """Inputs of the same shapes, with items that the model knows, and vectors."""
    draw, found = np.random.default_rng(0), dict(inputs)
    for name, values in inputs.items():
        if values.dtype == np.int8:
            rows = found[name] = draw.integers(-127, 128, values.shape).astype(np.int8)
            norms = np.linalg.norm(rows.astype(np.float32), axis=-1)
            found[f"{name.removesuffix('rows')}scales"] = (1 / norms).astype(np.float32)
        elif name.endswith("item_id"):
            found[name] = draw.integers(100, 140, values.shape)
    return found


def test_scores_are_pythons(jvm, write_click_model, tmp_path):
    version = write_click_model(tmp_path) / "1"
    asked = (signatures.POINTWISE, signatures.RANK, signatures.RANK_IDS, signatures.VECTORS, signatures.STATUS)
    requests = {name: drawn(trial.requests(version)[name]) for name in asked}
    with saved_model.load_session(version) as loaded:
        wanted = {name: loaded(name, inputs) for name, inputs in requests.items()}
    assert np.ptp(wanted[signatures.RANK]["score"]) > 0
    found = jvm(version, requests)
    for name, outputs in wanted.items():
        assert found[name].keys() == outputs.keys()
        for key, values in outputs.items():
            if values.dtype.kind == "f":
                np.testing.assert_allclose(found[name][key], values, atol=1e-5)
            else:
                np.testing.assert_array_equal(found[name][key], values)
