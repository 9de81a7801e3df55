"""Tests of where a run's settings come from."""

import json

import pytest

from tfmm import config, presets, runs

MODULE = '''
from tfmm import presets
from tfmm.features import Feature
import dataclasses


def weekly():
    run = presets.small()
    return dataclasses.replace(run, features=(*run.features, Feature("brand", "item", dim=4)))


def nothing():
    return 3
'''
TOML = '''
preset = "small"

[make]
epochs = 2

[[features]]
name = "user_id"
role = "user"
source = "impressions.user_id"

[[features]]
name = "item_id"
role = "item"
source = "impressions.item_id"

[[sequences]]
name = "clicks"
actions = ["click"]
length = 30

[[methods]]
name = "simtier"
settings = {num_tiers = 10}
'''


def test_function_of_the_current_folder_is_found(tmp_path, monkeypatch):
    (tmp_path / "my_runs_a.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    run = runs.load("my_runs_a:weekly")
    assert run.feature_set["brand"].dim == 4
    with pytest.raises(ValueError, match=r"must return a RunConfig\. Received: int"):
        runs.load("my_runs_a:nothing")
    with pytest.raises(ValueError, match="must name a function that can be imported"):
        runs.load("my_runs_a:daily")
    with pytest.raises(ValueError, match="must name a function that can be imported"):
        runs.load("no_such_module:weekly")


def test_toml_changes_its_preset(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    run = runs.load(str(tmp_path / "run.toml"))
    assert (run.make.epochs, run.make.batch_size) == (2, presets.small().make.batch_size)
    assert [sequence.length for sequence in run.feature_set.sequences] == [30]
    assert run.methods == (config.Method("simtier", {"num_tiers": 10}),)


def test_whole_run_survives_json(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(config.to_dict(presets.small())))
    assert runs.load(str(tmp_path / "run.json")) == presets.small()


def test_what_cannot_be_used_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"must be a preset \(quickstart, small, rich, paper\), module:function"):
        runs.load("smal")
    with pytest.raises(ValueError, match=r"must be a file\. Received: none of that name"):
        runs.load(str(tmp_path / "none.toml"))
    for name, text, words in (
        ("a.toml", "preset = ", "must be readable TOML"),
        ("b.toml", 'preset = "tiny"', r"`preset` must be one of \['quickstart', 'small', 'rich', 'paper'\]"),
        ("c.json", "[1]", "must hold the fields of RunConfig"),
        ("d.toml", "[ctr]\nuser_width = 3", "CTRConfig has the fields"),
        ("f.toml", "[make]\nepochs = 'two'", "`epochs` of MAKEConfig must be a int. Received: 'two'"),
        ("g.toml", "[[features]]\nname = 'brand'", "Feature must have its fields. Received: .*'role'"),
        ("h.toml", "features = 3", "`features` of RunConfig must be a list. Received: 3"),
        ("i.toml", "make = 3", "`make` of RunConfig must be a table. Received: 3"),
        ("e.toml", "[ctr]\nuser_dim = 3", r"settings have moved: ctr\.user_dim to features\.user_id\.dim"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=words):
            runs.load(str(tmp_path / name))
