"""One request per signature before a version is pushed."""

import shutil

import numpy as np
import tensorflow as tf

from tfmm.export import signatures, trial


def test_every_signature_is_asked_and_answers(multimodal, loaded):
    asked = trial.requests(multimodal.version_dir)
    assert sorted(asked) == multimodal.manifest["signatures"]
    before = loaded(signatures.STATUS, {})
    assert trial.fault(multimodal.version_dir, loaded) is None
    after = loaded(signatures.STATUS, {})
    assert {name: values.tolist() for name, values in before.items()} == {n: v.tolist() for n, v in after.items()}
    assert trial.fault_in_session(multimodal.version_dir) is None


def test_signatures_together_answer_as_alone(multimodal, loaded):
    asked = trial.requests(multimodal.version_dir)
    together = loaded.together(asked)
    for signature, inputs in asked.items():
        for name, values in loaded(signature, inputs).items():
            np.testing.assert_array_equal(together[signature][name], values)


def test_signature_that_fails_in_the_session_is_named(multimodal, monkeypatch):
    broken = {**trial.requests(multimodal.version_dir)}
    broken[signatures.RANK] = {**broken[signatures.RANK], "item_id": np.zeros(0, np.int64), "category": np.ones(3, int)}
    monkeypatch.setattr(trial, "requests", lambda version_dir: broken)
    assert trial.fault_in_session(multimodal.version_dir).startswith("rank: ")


def test_model_without_vectors_answers(ids_alone):
    assert trial.fault_in_session(ids_alone.version_dir) is None


def test_version_that_cannot_be_loaded_is_said_in_a_line(multimodal, tmp_path):
    broken = tmp_path / "1"
    shutil.copytree(multimodal.version_dir, broken)
    for path in (broken / "variables").glob("variables.data*"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    said = trial.fault_in_session(broken)
    assert said is not None and said.startswith("it cannot be loaded: ") and "\n" not in said


def test_signature_that_fails_or_gives_no_number_is_named(multimodal):
    def fails(signature, inputs):
        if signature == signatures.RANK:
            raise tf.errors.InternalError(None, None, "XLA compilation\ndisabled")
        return {}

    assert trial.fault(multimodal.version_dir, fails) == "rank: XLA compilation disabled"
    found = trial.fault(multimodal.version_dir, lambda signature, inputs: {"score": np.array([0.5, np.nan])})
    assert found is not None and found.endswith(": `score` is not finite")
