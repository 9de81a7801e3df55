"""What lacks for the demo is said at once, before anything starts."""

import dataclasses
import shutil

import pytest
from click.testing import CliRunner

from serving.demo import trained as trained_lib
from serving.demo.trained import Trained
from tfmm import artifacts, cli
from tfmm.config import RunConfig
from tfmm.export.saved_model import EXTRA
from tfmm.export.signatures import LOGGED
from tfmm.stages import folders


@pytest.fixture
def trained(tmp_path):
    """Folders as a quickstart leaves them, as far as they are looked at."""
    model, version = tmp_path / "models" / "multimodal", tmp_path / "serving" / "tfmm" / "17"
    for folder in (model / folders.STATE, model / folders.SERVING, version, tmp_path / "tables", tmp_path / "encoders"):
        folder.mkdir(parents=True)
    artifacts.write_manifest(version / EXTRA, "saved_model", signatures=sorted(LOGGED.values()))
    shutil.copytree(version, model / folders.SERVING, dirs_exist_ok=True)
    (tmp_path / "items.sqlite").touch()
    return Trained(
        tmp_path, RunConfig(), tmp_path / "tables", tmp_path / "items.sqlite", tmp_path / "encoders", model,
        tmp_path / "models" / "id", version,
    )  # fmt: skip


def test_a_trained_workdir_is_taken(trained):
    trained_lib.verify(trained)


def test_what_lacks_of_workdir_and_machine_is_said_together(trained, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    trained.index.unlink()
    workdir = r"to its end\. Received: no \S*items\.sqlite\. `tfmm quickstart --workdir"
    programs = r"Not on PATH: java, mvn\. apt-get install .*Not on PATH: redis-server\. apt-get install redis-server"
    with pytest.raises(ValueError, match=f"(?s){workdir}.*{programs}"):
        trained_lib.verify(trained)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": None}, "must hold a version in service. Received: none. `tfmm quickstart"),
        ({"run": None}, "must hold a version in service"),
        ({"tables": "nowhere"}, "must be trained on the marketplace"),
    ],
)
def test_a_workdir_that_lacks_something_is_refused(trained, change, said):
    if "tables" in change:
        change = {"tables": trained.workdir / change["tables"]}
    with pytest.raises(ValueError, match=said):
        trained_lib.verify(dataclasses.replace(trained, **change))


def test_a_model_that_is_not_in_service_is_refused(trained):
    (trained.version / "saved_model.pb").write_bytes(b"another")
    with pytest.raises(ValueError, match="Received: one that the gate refused, and 17 in service"):
        trained_lib.verify(trained)


def test_a_version_of_an_earlier_tfmm_is_refused(trained):
    for folder in (trained.version, trained.model / folders.SERVING):
        artifacts.write_manifest(folder / EXTRA, "saved_model", signatures=["rank"])
    with pytest.raises(ValueError, match="Received: no rank_ids_logged, rank_logged, as an earlier tfmm exported it"):
        trained_lib.verify(trained)


def test_the_command_says_it_and_writes_nothing(tmp_path):
    result = CliRunner().invoke(cli.main, ["demo", str(tmp_path)])
    assert result.exit_code == 1 and "must hold a version in service. Received: none" in result.output
    assert list(tmp_path.iterdir()) == []
