"""What the wheel holds and declares, and that it runs alone in an empty environment."""

import configparser
import email
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest
import sybil.parsers.markdown

import tfmm
from tfmm import extras

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("tfmm", "tfx_pipeline", "serving")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", str(source)],
        check=True,
        capture_output=True,
        timeout=300,
    )
    (path,) = (source / "dist").glob("*.whl")
    return path


@pytest.fixture(scope="module")
def names(wheel):
    return zipfile.ZipFile(wheel).namelist()


@pytest.fixture(scope="module")
def metadata(wheel, names):
    (name,) = (n for n in names if n.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(name))


def test_wheel_holds_every_file_of_the_three_packages_and_nothing_else(names):
    shipped = {name for name in names if ".dist-info/" not in name}
    assert shipped == {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and not {"__pycache__", "client_package"} & {*path.parts}  # the client ships alone
    }


def test_version_is_the_packages(wheel, metadata):
    assert metadata["Version"] == tfmm.__version__
    assert wheel.name == f"tfmm-{tfmm.__version__}-py3-none-any.whl"


def test_pip_install_brings_little(metadata):
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert sorted(re.match(r"[\w-]+", line).group() for line in required) == [
        "click",
        "keras",
        "numpy",
        "pyarrow",
        "rich",
        "tensorflow",
        "tomli",
    ]
    assert any(re.match(r"tomli.*python_version", line) for line in required), "newer Pythons read TOML themselves"


def test_extras_are_those_that_the_library_names(metadata):
    assert sorted(metadata.get_all("Provides-Extra")) == sorted(extras.EXTRAS)
    assert set(extras.EXTRA_OF_MODULE.values()) <= set(extras.EXTRAS)


def test_wheel_leaves_the_users_tfx_alone(wheel, names):
    (name,) = (n for n in names if n.endswith(".dist-info/entry_points.txt"))
    parser = configparser.ConfigParser()
    parser.read_string(zipfile.ZipFile(wheel).read(name).decode())
    assert dict(parser["console_scripts"]) == {"tfmm": "tfmm.cli:main", "tfmm-tfx": "tfx_pipeline.cli:main"}


def test_license_is_shipped(names, metadata):
    assert any(name.endswith("/LICENSE") for name in names)
    assert metadata["License-Expression"] == "Apache-2.0" or metadata["License"] == "Apache-2.0"


def test_locks_hold_every_package_that_the_project_names_and_no_address():
    named = {
        "tensorflow",
        "tensorflow-recommenders",
        "keras-cv",
        "tensorflow-serving-api",
        "apache-beam",
        "tfx",
        "numpy",
        "pytest",
        "pip",
        "dill",
        "setuptools",
        "confluent-kafka",
    }
    for lock in ("py310", "py312"):
        text = (ROOT / "requirements" / f"{lock}.lock").read_text()
        pinned = dict(line.split("==") for line in text.splitlines())
        assert named <= set(pinned)
        assert int(pinned["setuptools"].split(".")[0]) < 81
        assert "://" not in text


def test_set_up_puts_the_wrapper_in_the_place_of_tfx():
    tfx = ROOT / ".venv" / "bin" / "tfx"
    if not (ROOT / ".venv" / ".set-up").is_file():
        pytest.skip("this environment was not made by `make setup`")
    done = subprocess.run([tfx, "run", "create", "--help"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "--pipeline " in done.stdout


def find_uv():
    """uv from PATH, or the one that `make setup` put into .uv."""
    for candidate in ("uv", str(ROOT / ".uv" / "bin" / "uv")):
        try:
            subprocess.run([candidate, "--version"], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return candidate
    return pytest.skip("uv is not on this machine")


@pytest.mark.slow
def test_wheel_alone_runs_the_layers_example(wheel, tmp_path):
    uv, environment = find_uv(), tmp_path / "environment"
    python = environment / "bin" / "python"
    subprocess.run(
        [uv, "venv", "--python", sys.executable, str(environment)], check=True, capture_output=True
    )
    subprocess.run([uv, "pip", "install", "--python", str(python), str(wheel)], check=True, timeout=600)
    document = sybil.Sybil(parsers=[sybil.parsers.markdown.PythonCodeBlockParser()]).parse(ROOT / "README.md")
    example = next(e.parsed for e in document.examples() if "SimTierLayer" in str(e.parsed))
    done = subprocess.run(
        [python, "-c", str(example)], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr

    answers = subprocess.run(
        [
            python,
            "-m",
            "tfmm.cli",
            "embed",
            "--data",
            ".",
            "--encoders",
            ".",
            "--index",
            "i",
            "--snapshot",
            "s",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert answers.returncode == 1
    assert 'Run: pip install "tfmm[stream]"' in answers.stderr
