"""Missing optional dependencies are answered with the pip line."""

import pytest

from tfmm import extras


def test_module_is_returned():
    assert extras.require("json.decoder", "dev").JSONDecoder


def test_missing_module_names_the_pip_line():
    with pytest.raises(extras.MissingExtraError, match=r'`no_such_thing\.core` is not installed\. '
                                                       r'Run: pip install "tfmm\[stream\]"'):
        extras.require("no_such_thing.core", "stream")


def test_missing_submodule_names_the_pip_line():
    with pytest.raises(extras.MissingExtraError, match=r"`json\.no_such_part` is not installed"):
        extras.require("json.no_such_part", "serving")


def test_fault_inside_an_installed_module_is_passed_on(tmp_path, monkeypatch):
    (tmp_path / "installed_but_broken.py").write_text("import its_own_missing_dependency\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="its_own_missing_dependency") as caught:
        extras.require("installed_but_broken", "pipeline")
    assert not isinstance(caught.value, extras.MissingExtraError)


def test_unknown_extra_is_refused():
    with pytest.raises(ValueError, match="`extra` must be one of"):
        extras.require("json", "everything")
