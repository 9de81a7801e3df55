import pathlib

import pytest

from tfmm import presets
from tfx_pipeline import environments


def test_variables_describe_the_environment(tmp_path):
    environment = environments.Environment(tmp_path / "work", tmp_path / "data", presets.quickstart())
    assert environments.Environment.from_variables(environment.to_variables()) == environment


def test_without_variables_the_marketplace_is_made_small(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    environment = environments.Environment.from_variables({})
    assert environment == environments.Environment(tmp_path / "tfmm_workdir", None, presets.small())


def test_data_fingerprint_follows_the_files(tmp_path):
    (tmp_path / "items.parquet").write_bytes(b"one")
    before = environments.data_fingerprint(tmp_path)
    assert environments.data_fingerprint(tmp_path) == before
    (tmp_path / "items.parquet").write_bytes(b"other")
    assert environments.data_fingerprint(tmp_path) != before


def test_code_fingerprint_follows_the_source(tmp_path, monkeypatch):
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text("one = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = environments.code_fingerprint("a_package")
    assert environments.code_fingerprint("a_package.module") != before
    (package / "module.py").write_text("one = 2\n")
    assert environments.code_fingerprint("a_package") != before


def test_code_fingerprint_refuses_what_cannot_be_imported():
    with pytest.raises(ValueError, match="`packages` must name importable modules"):
        environments.code_fingerprint("tfmm_has_no_such_package")


def test_newest_version_is_the_highest_complete_one(tmp_path):
    assert environments.newest_version(tmp_path) is None
    for name, complete in (("9", True), ("10", True), ("11", False), ("temporary", True)):
        (tmp_path / name).mkdir()
        if complete:
            (tmp_path / name / "saved_model.pb").touch()
    assert environments.newest_version(tmp_path) == pathlib.Path(tmp_path / "10")
