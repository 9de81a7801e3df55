"""What nodes are given: keys of the cache that follow encoders of a user's own, and what MAKE is trained on."""

import dataclasses
import sys

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import presets
from tfmm.config import Method
from tfmm.modalities import Modality
from tfx_pipeline import environments, outside, pipeline

TEAM = '''
import pathlib

import tensorflow as tf

import still_parts


class Still:
    def __init__(self, config):
        pass

    def version(self):
        return pathlib.Path("weights.txt").read_text()

    def encode(self, contents):
        return still_parts.GAIN * tf.cast(tf.strings.length(contents), tf.float32)[:, None]
'''


@pytest.fixture
def keys(tmp_path, monkeypatch):
    """Returns a function that gives the key of each node's code, of a run with an encoder in the current folder."""
    (tmp_path / "still_team.py").write_text(TEAM)
    (tmp_path / "still_parts.py").write_text("GAIN = 1.0\n")
    (tmp_path / "weights.txt").write_text("mine-1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    modalities = (Modality("still", "still_team:Still", column="title", frozen=True),)
    run = dataclasses.replace(presets.small(), modalities=modalities)
    environment = environments.Environment(tmp_path / "work", None, run)

    def keys():
        nodes = pipeline.create_pipeline(environment).components
        return {node.id: node.exec_properties["code"] for node in nodes if "code" in node.exec_properties}

    yield keys
    for name in ("still_team", "still_parts"):
        sys.modules.pop(name, None)


def test_edit_of_a_helper_and_new_weights_run_the_encoders_anew_and_no_click_model(keys, tmp_path):
    found = [keys(), keys()]
    (tmp_path / "still_parts.py").write_text("GAIN = 2.0\n")
    found.append(keys())
    (tmp_path / "weights.txt").write_text("mine-2")
    found.append(keys())
    codes = {name: [key[name] for key in found] for name in found[0]}
    assert codes["SCLTrainer"][0] == codes["SCLTrainer"][1] and len(set(codes["SCLTrainer"])) == 3
    for name in ("PairBuilder", "ExampleGenerator", "MAKETrainer", "IDTrainer"):
        assert len(set(codes[name])) == 1, name


def test_nodes_are_given_the_index_that_is_named(tmp_path, redis_server):
    url = redis_server.url(prefix=str(tmp_path))
    nodes = pipeline.create_pipeline(environments.Environment(tmp_path, None, presets.small(), index=url)).components
    found = {node.id: node.exec_properties["index_url"] for node in nodes if "index_url" in node.exec_properties}
    assert found == dict.fromkeys(("CatalogEmbedder", "ModelGate"), url)


def test_an_index_that_may_lose_rows_is_refused_before_anything_is_trained_for_it(tmp_path, make_redis):
    url = make_redis("--appendonly", "no").url()
    environment = environments.Environment(tmp_path, None, presets.small(), index=url)
    with pytest.raises(ValueError, match="must keep every row: appendonly yes"):
        pipeline.create_pipeline(environment)
    pipeline.create_pipeline(environment, stamps=outside.NewStamps(), is_here=False)  # elsewhere it may be another


def test_make_is_told_which_sequences_methods_read(tmp_path):
    found = {}
    for methods in (("simtier", "make"), ("simtier",)):
        run = dataclasses.replace(presets.small(), methods=tuple(Method(name) for name in methods))
        nodes = pipeline.create_pipeline(environments.Environment(tmp_path, None, run)).components
        (make,) = (node for node in nodes if node.id == "MAKETrainer")
        found[methods[-1]] = make.exec_properties["sequences"]
    assert found == {"make": '["behavior"]', "simtier": "[]"}
