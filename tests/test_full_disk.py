"""A disk that is really full: one line, nothing half-written is read, and the same goes on when there is room."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from tfmm import artifacts, cli, full_disk
from tfmm.config import DataConfig, MarketplaceConfig
from tfmm.data import join, shards
from tfmm.features import FeatureSet
from tfmm.marketplace import generator

pytest.importorskip("apache_beam", reason="Beam is not installed")

CONFIG = DataConfig(max_behaviors=20)
FEATURES = FeatureSet().resolved(max_behaviors=20, min_count=1)
MARKETPLACE = MarketplaceConfig(
    num_items=200, new_items_per_day=10, num_users=250, impressions_per_user_day=5, num_searches=50, image_size=16
)


APART, NAMESPACE = ("unshare", "-rm"), "TFMM_TEST_NAMESPACE"


class Disk:
    def __init__(self, folder):
        self.folder = folder

    def mount(self, size, *options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(self.folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def disk(tmp_path):
    """A disk of 100 kB that can grow."""
    one = Disk(tmp_path / "disk")
    one.folder.mkdir()
    if (done := one.mount("100k")).returncode:
        pytest.skip(f"a small disk may not be mounted on this machine: {done.stderr.strip()}")
    yield one
    subprocess.run(["umount", "-l", str(one.folder)], check=True)


def test_these_run_in_a_namespace_where_this_machine_lets_only_there_mount(tmp_path, root):
    if Disk(tmp_path).mount("100k").returncode == 0:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
        return  # they run as they are
    if os.environ.get(NAMESPACE) or subprocess.run([*APART, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small disk may not be mounted on this machine, in a namespace neither")
    done = subprocess.run(
        [*APART, sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", __file__], cwd=root,
        capture_output=True, text=True, check=False, env={**os.environ, NAMESPACE: "1", "PYTEST_XDIST_WORKER": ""},
    )  # fmt: skip
    assert done.returncode == 0 and "SKIPPED" not in done.stdout, done.stdout[-3000:] + done.stderr[-1000:]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator.generate(MARKETPLACE, folder)
    return folder


def test_join_on_a_full_disk_names_the_file_and_goes_on_when_there_is_room(data_dir, disk, tmp_path):
    wanted = join.write_examples(data_dir, CONFIG, FEATURES, tmp_path / "wanted")
    output = disk.folder / "examples"
    with pytest.raises(OSError, match="No space left on device") as caught:
        join.write_examples(data_dir, CONFIG, FEATURES, output)
    assert full_disk.told(caught.value).startswith(f"No room is left on the disk ({output}/")
    with pytest.raises((FileNotFoundError, ValueError), match=r"must lie in one folder|is missing: the stage"):
        shards.Shards(sorted(str(path) for path in output.glob("train-*")))
    assert not (output / artifacts.MANIFEST).exists()
    assert disk.mount("50m", "remount").returncode == 0
    assert join.write_examples(data_dir, CONFIG, FEATURES, output)["digests"] == wanted["digests"]


def test_command_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(disk):
    words = ["data", "marketplace", str(disk.folder / "tables"), "--preset", "small"]
    words += ["--set", "marketplace.num_users=250", "--set", "marketplace.image_size=16"]
    failed = CliRunner().invoke(cli.main, words)
    assert failed.exit_code == 1
    assert failed.output.count("\n") == 1 and failed.output.startswith("Error: No room is left on the disk")
    assert disk.mount("50m", "remount").returncode == 0
    assert CliRunner().invoke(cli.main, words).exit_code == 0
    assert CliRunner().invoke(cli.main, ["data", "check", str(disk.folder / "tables")]).exit_code == 0


GENERATE = """
import sys

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from tfmm.config import DataConfig
from tfmm.data import beam as beam_lib
from tfmm.features import FeatureSet
from tfx_pipeline import watched

features = FeatureSet().resolved(max_behaviors=20, min_count=1)
try:
    with beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner"])) as root:
        beam_lib.write(root, sys.argv[1], DataConfig(max_behaviors=20), features, sys.argv[2], prefix="{split}")
except Exception as error:
    print(watched.in_words("ExampleGenerator", error))
"""


def test_beam_on_a_full_disk_is_one_line_and_goes_on_when_there_is_room(data_dir, disk, root):
    def generate():  # a process of its own: Beam leaves the file open that it could not finish
        return subprocess.run(
            [sys.executable, "-c", GENERATE, str(data_dir), str(disk.folder)],
            capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(root)},
        ).stdout  # fmt: skip

    said = generate()
    assert said.startswith("Generate examples (Beam) (ExampleGenerator) failed. No room is left on the disk")
    assert said.count("\n") == 1
    assert not list(disk.folder.glob("train-*-of-*"))
    assert disk.mount("50m", "remount").returncode == 0
    assert generate() == ""
    assert list(disk.folder.glob("train-*-of-*"))
