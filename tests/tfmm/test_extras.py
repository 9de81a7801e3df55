"""Missing optional dependencies are answered with the pip line."""

import subprocess
import sys

import pytest

from tfmm import extras


def test_module_is_returned():
    assert extras.require("json.decoder", "dev").JSONDecoder


def test_missing_module_names_the_pip_line():
    with pytest.raises(
        extras.MissingExtraError,
        match=r"`no_such_thing\.core` is not installed\. "
        r'Run: pip install "tfmm\[stream\]"',
    ):
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


def test_verify_imports_nothing():
    extras.verify("dev", "antigravity")  # importing it would open a browser
    assert "antigravity" not in sys.modules


def test_verify_names_the_pip_line():
    with pytest.raises(extras.MissingExtraError, match=r'`no_such_thing` .* pip install "tfmm\[pipeline\]"'):
        extras.verify("pipeline", "json", "no_such_thing")


def test_failed_import_is_explained():
    error = ModuleNotFoundError("No module named 'grpc.aio'", name="grpc.aio")
    assert extras.explain(error) == '`grpc` is not installed. Run: pip install "tfmm[serving]"'


def test_unknown_module_is_not_explained():
    assert extras.explain(ModuleNotFoundError("No module named 'mine'", name="mine")) is None
    assert extras.explain(ImportError("cannot import name 'x' from 'grpc'", name="grpc")) is None


@pytest.mark.parametrize(
    "package, module, extra",
    [
        ("tfx_pipeline", "tfx", "pipeline"),
        ("serving.model_server", "grpc", "serving"),
        ("serving.streaming", "apache_beam", "stream"),
        ("tfmm.index.beam", "apache_beam", "stream"),
        ("tfmm.data.beam", "apache_beam", "stream"),
    ],
)
def test_package_without_its_extra_names_the_pip_line(package, module, extra, root):
    code = f"import sys; sys.modules[{module!r}] = None; import {package}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, timeout=300)
    assert done.returncode == 1
    assert f'`{module}` is not installed. Run: pip install "tfmm[{extra}]"' in done.stderr
