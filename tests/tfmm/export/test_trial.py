"""One request per signature before a version is pushed."""

import shutil

import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import saved_model as loader
from tfmm.export import signatures, trial


@pytest.fixture(scope="module")
def exported(export_model):
    return export_model(config=config_lib.ExportConfig(index_capacity=400, batch_buckets=(4,), candidate_buckets=(4,)))


def test_every_signature_is_asked_and_answers(exported):
    asked = trial.requests(exported.version_dir)
    assert sorted(asked) == exported.manifest["signatures"]
    with loader.load_session(exported.version_dir) as loaded:
        before = loaded(signatures.STATUS, {})
        assert trial.fault(exported.version_dir, loaded) is None
        after = loaded(signatures.STATUS, {})
    assert {name: values.tolist() for name, values in before.items()} == {n: v.tolist() for n, v in after.items()}
    assert trial.fault_in_session(exported.version_dir) is None


def test_signatures_together_answer_as_alone(exported):
    asked = trial.requests(exported.version_dir)
    with loader.load_session(exported.version_dir) as loaded:
        together = loaded.together(asked)
        for signature, inputs in asked.items():
            for name, values in loaded(signature, inputs).items():
                np.testing.assert_array_equal(together[signature][name], values)


def test_signature_that_fails_in_the_session_is_named(exported, monkeypatch):
    broken = {**trial.requests(exported.version_dir)}
    broken[signatures.RANK] = {**broken[signatures.RANK], "item_id": np.zeros(0, np.int64), "category": np.ones(3, int)}
    monkeypatch.setattr(trial, "requests", lambda version_dir: broken)
    assert trial.fault_in_session(exported.version_dir).startswith("rank: ")


def test_model_without_vectors_answers(export_model):
    assert trial.fault_in_session(export_model(modalities=()).version_dir) is None


def test_version_that_cannot_be_loaded_is_said_in_a_line(exported, tmp_path):
    broken = tmp_path / "1"
    shutil.copytree(exported.version_dir, broken)
    for path in (broken / "variables").glob("variables.data*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = trial.fault_in_session(broken)
    assert said is not None and said.startswith("it cannot be loaded: ") and "\n" not in said


def test_signature_that_fails_or_gives_no_number_is_named(exported):
    def fails(signature, inputs):
        if signature == signatures.RANK:
            raise tf.errors.InternalError(None, None, "XLA compilation\ndisabled")
        return {}

    assert trial.fault(exported.version_dir, fails) == "rank: XLA compilation disabled"
    found = trial.fault(exported.version_dir, lambda signature, inputs: {"score": np.array([0.5, np.nan])})
    assert found is not None and found.endswith(": `score` is not finite")
