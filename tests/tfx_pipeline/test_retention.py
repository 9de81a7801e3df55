"""Old versions and checkpoints go by a setting; what is in service stays."""

import dataclasses
import os

import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import presets
from tfmm.config import KeepConfig
from tfx_pipeline import environments, retention


def prune(tmp_path, **settings):
    run = dataclasses.replace(presets.small(), keep=KeepConfig(**settings))
    retention.prune(environments.Environment(tmp_path, None, run))


@pytest.fixture
def versions(tmp_path):
    folder = tmp_path / "serving" / "tfmm"
    for name in ("9", "10", "100", "200", "300"):
        (folder / name).mkdir(parents=True)
        if name not in ("100", "300"):  # a push that was killed, and one that goes on
            (folder / name / "saved_model.pb").touch()
    (folder / "notes").mkdir()
    return folder


def test_all_stay_where_nothing_else_is_said(tmp_path, versions):
    prune(tmp_path)
    assert {path.name for path in versions.iterdir()} == {"9", "10", "100", "200", "300", "notes"}


@pytest.mark.parametrize("count, older", [(1, set()), (2, {"10"}), (3, {"10", "9"}), (9, {"10", "9"})])
def test_newest_whole_versions_stay_and_what_is_newer_still(tmp_path, versions, count, older):
    prune(tmp_path, versions=count)
    assert {path.name for path in versions.iterdir()} == older | {"200", "300", "notes"}


def test_folder_without_a_whole_version_is_left_alone(tmp_path):
    (tmp_path / "serving" / "tfmm" / "9").mkdir(parents=True)
    prune(tmp_path, versions=1)
    assert (tmp_path / "serving" / "tfmm" / "9").is_dir()


def test_deletion_that_was_cut_off_is_ended(tmp_path, versions):
    (versions / ".removing-8" / "variables").mkdir(parents=True)
    prune(tmp_path, versions=9)
    assert not (versions / ".removing-8").exists()


def test_checkpoints_written_last_stay_of_each_training(tmp_path):
    for number, place in enumerate(("make/old", "make/new", "encoders/image/old", "encoders/image/new", "id_model/a")):
        state = tmp_path / "checkpoints" / place / "state.npz"
        state.parent.mkdir(parents=True)
        state.touch()
        os.utime(state, (number, number))
    prune(tmp_path, checkpoints=1)
    left = {str(path.parent.relative_to(tmp_path / "checkpoints")) for path in tmp_path.rglob("state.npz")}
    assert left == {"make/new", "encoders/image/new", "id_model/a"}


@pytest.mark.parametrize("name", ["versions", "checkpoints"])
def test_counts_are_not_negative(name):
    with pytest.raises(ValueError, match=f"`{name}` must not be negative"):
        KeepConfig(**{name: -1})
