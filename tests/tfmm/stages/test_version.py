"""Tests of shipping: the judged model and no other becomes a version."""

import json

import pytest
from click.testing import CliRunner

from tfmm import artifacts, cli
from tfmm.stages import folders, version


@pytest.fixture
def models(tmp_path):
    model = tmp_path / "models" / folders.MULTIMODAL / folders.SERVING
    (model / "variables").mkdir(parents=True)
    (model / "saved_model.pb").write_bytes(b"graph")
    (model / "variables" / "variables.index").write_bytes(b"weights")
    return tmp_path / "models"


def judge(models, folder, passed=True, **more):
    folder.mkdir(exist_ok=True)
    digest = artifacts.digest(models / folders.MULTIMODAL / folders.SERVING)
    verdict = {"passed": passed, "reasons": [] if passed else ["AUC is low"], "judged": digest, **more}
    (folder / folders.VERDICT).write_text(json.dumps(verdict))
    return folder


def test_the_judged_model_is_shipped_byte_by_byte_and_a_second_time_beside_it(models, tmp_path):
    evaluation = judge(models, tmp_path / "evaluation")
    first, second = (version.ship(models, evaluation, tmp_path / "serving") for _ in range(2))
    assert int(second.name) > int(first.name)
    for made in (first, second):
        assert artifacts.digest(made) == artifacts.digest(models / folders.MULTIMODAL / folders.SERVING)
    assert sorted(path.name for path in (tmp_path / "serving").iterdir()) == [first.name, second.name]


def test_what_the_gate_did_not_pass_needs_a_word(models, tmp_path):
    serving, evaluation = tmp_path / "serving", tmp_path / "evaluation"

    def refused(match, folder=evaluation):
        with pytest.raises(ValueError, match=f"The gate must have passed .*{match}.* --unjudged exports it"):
            version.ship(models, folder, serving)

    refused("no --evaluation: name the folder", None)
    refused("no .*verdict.json: `tfmm evaluate` writes it")
    refused("refused: AUC is low", judge(models, evaluation, passed=False))
    refused("of an earlier version", judge(models, evaluation, judged=None))
    judge(models, evaluation)
    (models / folders.MULTIMODAL / folders.SERVING / "variables" / "variables.index").write_bytes(b"trained again")
    refused("is about another model: run `tfmm evaluate` on this one")
    assert not serving.exists()
    assert version.ship(models, None, serving, is_unjudged=True).is_dir()


def test_export_says_what_it_ships(models, tmp_path):
    arguments = ["export", "--models", str(models), "--output", str(tmp_path / "serving")]
    result = CliRunner().invoke(cli.main, arguments)
    assert result.exit_code == 1 and "--unjudged exports it as it is" in result.output
    result = CliRunner().invoke(cli.main, [*arguments, "--unjudged"])
    assert result.exit_code == 0 and result.output.endswith(", unjudged.\n")


def test_models_without_an_export_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is missing: `tfmm train` writes it"):
        version.ship(tmp_path, None, tmp_path / "serving", is_unjudged=True)
