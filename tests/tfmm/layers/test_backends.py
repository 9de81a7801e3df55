"""The layers on each Keras backend, in a process of its own."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("on_any_backend.py")


@pytest.mark.compat
@pytest.mark.parametrize("backend", ["jax", "torch"])  # the other tests run on TensorFlow
def test_every_layer_conforms(root, backend):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed in this environment; `pip install {backend}` runs this test")
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": str(root),
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"every layer conforms on {backend}" in done.stdout
