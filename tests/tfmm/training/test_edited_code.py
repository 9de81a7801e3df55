"""An edit of the code that a training runs: its old checkpoint is not the answer; and what goes on says so."""

import json
import os
import shutil
import subprocess
import sys

import pytest

TRAIN = """
import sys
from tfmm.config import CTRConfig
from tfmm.ctr import train
from tfmm.features import FeatureSet
from tfmm.training import progress

shop, output = sys.argv[1:]
features = FeatureSet().resolved(max_behaviors=6, min_count=1)
train.train(
    CTRConfig(units=(8,), attention_units=(8,)), f"{shop}/examples/train-*", f"{shop}/examples/eval-*",
    f"{shop}/vocabulary", output, features, checkpoint_dir=f"{output}/checkpoints", progress=progress.lines(print),
)
"""
EDITED = "INITIAL_DEVIATION = 0.01"


@pytest.mark.timeout(1800)
def test_training_after_an_edit_of_the_code_begins_anew_and_says_what_it_takes_up(shop, root, tmp_path):
    shutil.copytree(root / "tfmm", tmp_path / "tfmm", ignore=shutil.ignore_patterns("__pycache__"))
    output = tmp_path / "model"

    def train():
        done = subprocess.run(
            [sys.executable, "-c", TRAIN, str(shop.folder), str(output)], text=True, capture_output=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        metrics = json.loads((output / "manifest.json").read_text())["metrics"]
        return metrics, [line for line in done.stdout.splitlines() if "before" in line]

    first, said = train()
    assert said == []
    again, said = train()
    (state,) = output.glob("checkpoints/*/state.npz")
    assert again == first and said == [f"ctr_id: 1 of 1 parts were trained before, and are taken from {state}"]
    model = tmp_path / "tfmm" / "ctr" / "model.py"
    text = model.read_text()
    assert text.count(EDITED) == 1
    model.write_text(text.replace(EDITED, EDITED.replace("0.01", "5.0")))
    edited, said = train()
    assert edited != first and said == []
    assert len(list(output.glob("checkpoints/*/state.npz"))) == 2


@pytest.mark.parametrize("module", ["tfmm.ctr.train", "tfmm.make.train", "tfmm.pretrain.train"])
def test_the_key_of_each_training_holds_the_code_that_it_imports(module):
    from tfmm import source

    found = set(source.imported_modules(module))
    parts = {
        "tfmm.ctr.train": {"tfmm.ctr.optimizer", "tfmm.ctr.integrations", "tfmm.layers.simtier", "tfmm.make.model"},
        "tfmm.make.train": {"tfmm.make.model", "tfmm.layers.make", "tfmm.training.loop"},
        "tfmm.pretrain.train": {"tfmm.pretrain.scl", "tfmm.pretrain.encoders", "tfmm.losses.info_nce"},
    }
    assert parts[module] <= found
