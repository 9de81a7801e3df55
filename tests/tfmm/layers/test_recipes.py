"""The layers in other people's models; each recipe runs in a process of its own."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

RECIPES = pathlib.Path(__file__).with_name("recipes")
NEEDS = {
    "keras_functional": "keras",
    "from_ids": "keras",
    "tfrs_model": "tensorflow_recommenders",
    "keras_rs_model": "keras_rs",
}
IN_COMPAT = {"keras_rs_model"}  # keras-rs does not import beside TensorFlow 2.16


@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.compat] * (name in IN_COMPAT)) for name in NEEDS]
)
def test_recipe_runs(root, recipe):
    if importlib.util.find_spec(NEEDS[recipe]) is None:
        pytest.skip(f"{NEEDS[recipe]} is not installed in this environment")
    environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, str(RECIPES / f"{recipe}.py")], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]


def test_every_recipe_is_run():
    assert {path.stem for path in RECIPES.glob("*.py")} == {*NEEDS, "clicks"}
