import pytest

from tfmm import source


def test_fingerprint_follows_the_source(tmp_path, monkeypatch):
    package = tmp_path / "a_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "module.py").write_text("one = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = source.fingerprint("a_package")
    assert source.fingerprint("a_package.module") != before
    (package / "module.py").write_text("one = 2\n")
    assert source.fingerprint("a_package") != before


def test_fingerprint_refuses_what_cannot_be_imported():
    with pytest.raises(ValueError, match="`packages` must name importable modules"):
        source.fingerprint("tfmm_has_no_such_package")


def test_modules_that_a_module_imports_are_computed_in_functions_too():
    found = source.imported_modules("tfmm.make.train")
    assert {"tfmm.make.train", "tfmm.make.model", "tfmm.make.__init__", "tfmm.layers.din", "tfmm.config"} <= set(found)
    assert not {name for name in found if name.startswith(("tfmm.ctr", "tfmm.export", "tfmm.pretrain"))}
    assert "tfmm.export.saved_model" in source.imported_modules("tfmm.cli")  # inside a function
    assert set(found) < set(source.imported_modules("tfmm.make", "tfmm.ctr"))
