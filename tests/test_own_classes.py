"""The road with a model and a method of a user's own, in one file in the folder where the command is given."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfx_pipeline import environments

OWN = '''
import keras
from keras import ops

from tfmm.ctr.integrations import Integration
from tfmm.ctr.ranker import Ranker


class Wide(Ranker):
    def __init__(self, feature_set, sizes, name=None):
        super().__init__(feature_set, sizes, name)
        self.output_layer = keras.layers.Dense(1)

    def call(self, impressions, knowledge, training=None):
        return self.output_layer(impressions.join([impressions.joined(), *knowledge]))[:, 0]


class BestMatch(Integration):
    def parts(self, context):
        known = ops.where(context.both_exist, context.similarity(), -1.0)
        return [ops.max(known, axis=1, keepdims=True)]
'''
RUN = '''
preset = "small"

[[methods]]
name = "simtier"

[[methods]]
name = "own_team:BestMatch"

[marketplace]
num_users = 300
num_days = 3

[make]
epochs = 1

[ctr]
model = "own_team:Wide"

[gate]
min_auc = 0.0
min_gauc = 0.0
min_gain_over_id = -1.0
max_logloss_rise = 9.0
max_calibration_rise = 9.0
max_hidden_bias = 100.0
'''


def quickstart(folder, *more):
    command = "from tfmm import cli; cli.main()"  # as the installed command: the current folder is not on its path
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1]), "PYTHONSAFEPATH": "1"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    arguments = ["quickstart", "--run", "run.toml", "--workdir", "work", *more]
    code = f"import sys; sys.path = [p for p in sys.path if p]; sys.argv[1:] = {arguments!r}; {command}"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, text=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_own_classes_travel_the_road_and_their_source_is_part_of_the_cache(tmp_path):
    (tmp_path / "own_team.py").write_text(OWN)
    (tmp_path / "run.toml").write_text(RUN)
    done = quickstart(tmp_path, "--set", 'ctr.model_settings={"depth": 3}')
    assert done.returncode == 1 and "The model 'own_team:Wide' has the settings []. Received: ['depth']" in done.stderr
    assert not (tmp_path / "work").exists()
    done = quickstart(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    before = environments.latest_outputs(tmp_path / "work" / "metadata.sqlite")
    (tmp_path / "own_team.py").write_text(OWN.replace("Dense(1)", "Dense(1, use_bias=False)"))
    done = quickstart(tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    after = environments.latest_outputs(tmp_path / "work" / "metadata.sqlite")
    changed = {name for name in before if before[name] != after[name]}
    assert {"IDTrainer.model", "MultimodalTrainer.model"} <= changed
    assert not {"SCLTrainer.encoders", "MAKETrainer.make", "ExampleGenerator.examples"} & changed
