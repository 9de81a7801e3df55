"""What `tfmm train --head pre-ranking` refuses, before any work."""

import pathlib

import pytest
from click.testing import CliRunner

from tfmm import artifacts, cli, presets
from tfmm.stages import examples, run_file
from tfmm.stages.folders import MULTIMODAL, PRE_RANKING, TRAINED


@pytest.fixture
def ask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("tables", "snapshot", "parent"):
        (tmp_path / name).mkdir()

    def run(*more):
        folders = ["--data", "tables", "--snapshot", "snapshot", "--output", "models"]
        result = CliRunner().invoke(cli.main, ["train", *folders, "--head", "pre-ranking", *more])
        assert result.exit_code == 1 and "Traceback" not in result.output
        return result.output

    return run


def test_without_a_ranking_model_it_says_what_to_run_first(ask):
    assert "is taught by the ranking model" in (said := ask()) and "Run `tfmm train` with this `--output`" in said


def test_options_of_the_ranking_models_training_are_refused_by_name(ask):
    said = ask("--continue-from", "parent", "--label-window", "9")
    assert "must be left out. Received: --continue-from, --label-window." in said


def test_a_pipelines_models_have_no_head_and_it_says_how_to_get_one(ask, tmp_path):
    artifacts.write_manifest(tmp_path / "models" / MULTIMODAL / TRAINED, "ctr")
    run_file.write(presets.small(), tmp_path / "models")
    said = " ".join(ask().split())
    assert "models has none: models of `tfmm quickstart`" in said and "--snapshot WORKDIR/snapshot" in said
    assert not (tmp_path / "models" / PRE_RANKING).exists()


def test_another_ranking_model_is_not_asked_for_in_passing(ask, tmp_path):
    artifacts.write_manifest(tmp_path / "models" / MULTIMODAL / TRAINED, "ctr")
    for pattern in map(pathlib.Path, examples.patterns(tmp_path / "models")):
        pattern.parent.mkdir(parents=True, exist_ok=True)
        pattern.with_name(pattern.name.replace("*", "00000")).touch()
    run_file.write(presets.small(), tmp_path / "models")
    assert "ctr.units: [128, 64], not [3]" in ask("--set", "ctr.units=[3]", "--set", "pre_ranking.dim=3")
