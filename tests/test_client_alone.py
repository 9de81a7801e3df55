"""The client's own distribution: what its wheel holds, and that it works where there is no TensorFlow."""

import email
import json
import pathlib
import re
import shutil
import subprocess
import sys
import zipfile

import pytest

import tfmm

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "serving" / "client_package"
IMPORTED = """
import sys
import tfmm_client
print(tfmm_client.__file__, sorted({"tensorflow", "tensorflow_serving", "keras", "tfmm", "serving"} & set(sys.modules)))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy of the sources."""
    source = tmp_path_factory.mktemp("source")
    leave, place = shutil.ignore_patterns("__pycache__", "build", "*.egg-info"), source / PACKAGE.relative_to(ROOT)
    shutil.copytree(PACKAGE, place, ignore=leave, symlinks=True)
    for name in ("LICENSE", "tfmm/__init__.py"):
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(source / "dist")]
    subprocess.run([*command, str(place)], check=True, capture_output=True, timeout=300)
    (path,) = (source / "dist").glob("*.whl")
    return path


def test_wheel_holds_the_client_and_asks_for_no_tensorflow(wheel):
    opened = zipfile.ZipFile(wheel)
    shipped = {name for name in opened.namelist() if ".dist-info/" not in name}
    ours = (path for path in (PACKAGE / "tfmm_client").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert shipped == {str(path.relative_to(PACKAGE)) for path in ours}
    assert wheel.name == f"tfmm_client-{tfmm.__version__}-py3-none-any.whl"
    (name,) = (name for name in opened.namelist() if name.endswith(".dist-info/METADATA"))
    required = email.message_from_bytes(opened.read(name)).get_all("Requires-Dist")
    assert sorted(re.match(r"[\w-]+", line).group() for line in required) == ["grpcio", "httpx", "numpy", "protobuf"]
    assert any(name.endswith("/LICENSE") for name in opened.namelist())


def test_import_brings_no_tensorflow():
    done = subprocess.run([sys.executable, "-c", IMPORTED], cwd=PACKAGE, capture_output=True, text=True, check=True)
    assert done.stdout == f"{PACKAGE / 'tfmm_client' / '__init__.py'} []\n"


@pytest.mark.slow
def test_wheel_alone_installs_and_imports(wheel, tmp_path):
    """By pip, in an environment that has nothing else."""
    python = tmp_path / "alone" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "alone")], check=True, timeout=300)
    subprocess.run([python, "-m", "pip", "install", "--quiet", str(wheel)], check=True, timeout=600)
    done = subprocess.run([python, "-I", "-c", IMPORTED], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(str(tmp_path / "alone")) and done.stdout.endswith(" []\n")
    listed = subprocess.run([python, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout.lower()
    assert "tfmm-client" in listed and "tensorflow" not in listed and "keras" not in listed


@pytest.mark.slow
def test_import_alone_takes_less_than_a_second():
    """Of the processor: a machine with other work takes longer by the clock."""
    command = [sys.executable, "benchmarks/client_alone.py", "--without-record"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["processor_seconds"]["q3"] < 1.0
    assert not [name for name in found["packages"] if name.startswith(("tensorflow", "keras"))]
