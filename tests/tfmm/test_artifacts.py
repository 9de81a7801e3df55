import json
import os
import platform
import subprocess
import sys
import time

import pytest

from tfmm import artifacts, config


def test_manifest_says_config_parents_and_facts(tmp_path):
    parent = artifacts.write_manifest(tmp_path / "pairs", "pairs", rows=3)
    artifacts.write_manifest(
        tmp_path / "encoder", "encoder", config.SCLConfig(), [tmp_path / "pairs"], dim=64
    )
    manifest = artifacts.read_manifest(tmp_path / "encoder", "encoder")
    assert manifest["parents"] == [parent["id"]]
    assert manifest["dim"] == 64
    assert manifest["config"]["modality"] == "image"


def test_id_depends_on_content_and_not_on_time(tmp_path):
    first, second, other = (
        artifacts.write_manifest(tmp_path / name, "pairs", rows=rows)
        for name, rows in (("a", 3), ("b", 3), ("c", 4))
    )
    assert first["id"] == second["id"] != other["id"]


def test_unfinished_stage_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="did not finish"):
        artifacts.read_manifest(tmp_path)


def test_other_kind_is_refused(tmp_path):
    artifacts.write_manifest(tmp_path, "pairs")
    with pytest.raises(ValueError, match="must hold an artifact of kind 'encoder'"):
        artifacts.read_manifest(tmp_path, "encoder")


def test_newer_format_is_refused(tmp_path):
    artifacts.write_manifest(tmp_path, "pairs")
    path = tmp_path / artifacts.MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 99}))
    with pytest.raises(ValueError, match="Upgrade tfmm"):
        artifacts.read_manifest(tmp_path)


def test_manifest_of_an_older_version_says_what_to_do(tmp_path):
    artifacts.write_manifest(tmp_path, "ctr", dims={})
    with pytest.raises(ValueError, match=r"must say feature_set, sizes: an older version .* Run the stage"):
        artifacts.read_manifest(tmp_path, "ctr", ("sizes", "dims", "feature_set"))


def test_what_nobody_has_added_to_for_days_is_removed_whoever_left_it(tmp_path):
    mine, other = f".building-17-{os.getppid()}@{platform.node()}", ".building-17-1@gone"
    for name in (mine, other, ".building-18-1@elsewhere", ".building-19-1@elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    old = time.time() - artifacts.STALE_S - 60
    for name in (mine, other, ".building-19-1@elsewhere"):
        os.utime(tmp_path / name / "file", (old, old))
        os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / ".building-19-1@elsewhere" / "file")  # which is still written
    with artifacts.under_construction(tmp_path / "20"):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {".building-18-1@elsewhere", ".building-19-1@elsewhere"}


def test_what_a_killed_process_was_making_is_removed_and_what_a_living_one_makes_stays(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = platform.node()
    left = tmp_path / f".building-17-{dead.pid}@{host}"
    others = [tmp_path / f".building-17-{os.getppid()}@{host}", tmp_path / f".building-17-{dead.pid}@elsewhere-{host}x"]
    for place in (left, *others):
        place.mkdir()
    with artifacts.under_construction(tmp_path / "18") as building:
        building.mkdir()
        (building / "file").touch()
        building.replace(tmp_path / "18")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["18", *(place.name for place in others)])
    with pytest.raises(ValueError, match="no room"), artifacts.under_construction(tmp_path / "19") as building:
        building.mkdir()
        raise ValueError("no room")
    assert not building.exists()
