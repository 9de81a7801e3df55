"""What lies outside of artifacts, the index and the folder of versions, belongs to what the cache looks at."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("tfx", reason="TFX is not installed")

from tfmm import artifacts, config, presets
from tfmm.assignments import override
from tfmm.index import snapshot, store
from tfx_pipeline import environments, metadata, outside

# A marketplace of seconds, whose models are worth nothing: the gate has no say here.
TINY = [
    "marketplace.num_items=120", "marketplace.num_users=100", "marketplace.num_days=3", "marketplace.num_searches=400",
    "marketplace.new_items_per_day=5", "image.epochs=1", "text.epochs=1", "make.epochs=1", "ctr.segments=2",
    "export.index_capacity=512", "export.jit_compile=false", "gate.min_auc=0.0", "gate.min_gauc=0.0",
    "gate.max_logloss=100.0", "gate.min_gain_over_id=-1.0", "gate.max_loss_to_service=1.0", "gate.max_hidden_bias=99.0",
    "gate.max_logloss_rise=99.0", "gate.max_calibration_rise=99.0",
]  # fmt: skip
OTHER = ["ctr.learning_rate=0.001"]
OTHER_ENCODER = ["text.epochs=2"]


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return tmp_path_factory.mktemp("run")


def fill(path, version="v1", items=(7, 8)):
    with store.open_store(str(path)) as index:
        rows = np.full((len(items), 2), 3, np.int8)
        index.write("image", version, list(items), rows, [0.2] * len(items), [1000] * len(items))
        index.activate("image", version)


@pytest.fixture
def index_path(tmp_path):
    """An index of which `snapshot/` is a snapshot."""
    path = tmp_path / "items.sqlite"
    fill(path)
    with store.open_store(str(path)) as index:
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    return path


def test_index_that_grew_still_holds_its_snapshot(index_path, tmp_path):
    fill(index_path, items=(9,))
    assert outside.index_holds(str(index_path), str(tmp_path / "snapshot"))


def test_index_that_is_gone_or_was_made_anew_holds_it_not(index_path, tmp_path):
    index_path.unlink()
    assert not outside.index_holds(str(index_path), str(tmp_path / "snapshot"))
    fill(index_path, items=(9,))  # by a stream, without the catalog
    assert not outside.index_holds(str(index_path), str(tmp_path / "snapshot"))


def test_index_that_was_restored_holds_it_not(index_path, tmp_path):
    old = index_path.read_bytes()
    fill(index_path, items=(9,))
    with store.open_store(str(index_path)) as index:
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    index_path.write_bytes(old)
    assert not outside.index_holds(str(index_path), str(tmp_path / "snapshot"))


def test_index_of_another_encoder_holds_it_not(index_path, tmp_path):
    fill(index_path, "v2")
    assert not outside.index_holds(str(index_path), str(tmp_path / "snapshot"))


def test_index_of_a_url_holds_what_it_was_taken_of_until_it_is_gone(redis_server, tmp_path):
    url = redis_server.url(prefix=str(tmp_path))
    assert not outside.index_holds(url, str(tmp_path / "snapshot"))
    fill(url)
    with store.open_store(url) as index:
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    fill(url, items=(9,))
    assert outside.index_holds(url, str(tmp_path / "snapshot"))
    assert not outside.index_holds(redis_server.url(prefix="another"), str(tmp_path / "snapshot"))


def execution(node, number, stamp, **properties):
    parameters = {"custom_config": json.dumps({outside.STAMP: stamp})}
    output = metadata.Artifact(number, "PushedModel", "pushed_model", "/none", properties)
    return metadata.Execution(number, node, "run", metadata.COMPLETE, 0.0, 1.0, parameters, {}, (output,))


def test_stamp_of_serving_stays_while_what_was_left_stands_and_the_recipe_is_the_same(tmp_path, monkeypatch):
    environment, done = environments.Environment(tmp_path, None, presets.small()), []
    monkeypatch.setattr(metadata, "executions", lambda path: list(done))

    def stamp(recipe):
        return outside.Stamps(environment).of_serving(recipe)

    def push(recipe, version, number):
        done.append(execution(outside.PUSHER, number, stamp(recipe), pushed_version=version))
        place = environment.serving_dir / version
        place.mkdir(parents=True)
        (place / "saved_model.pb").touch()

    first = stamp("a")
    push("a", "100", 15)
    assert stamp("a") == first
    other = stamp("b")
    push("b", "200", 30)
    assert stamp("b") == other and stamp("a") not in (first, other)
    shutil.rmtree(environment.serving_dir)
    assert stamp("b") != other

    refused = stamp("c")
    done.append(execution(outside.PUSHER, 45, refused))  # which pushed nothing
    assert stamp("c") == refused and stamp("b") not in (other, refused)


def run(workdir, root, *assignments, **more):
    """Runs the DAG; returns the version in service, and the nodes that did work."""
    settings = workdir / "settings.json"
    settings.write_text(json.dumps(config.to_dict(override(presets.small(), [*TINY, *assignments]))))
    variables = {"TFMM_RUN": str(settings), "TFMM_WORKDIR": str(workdir), "PYTHONPATH": str(root), **more}
    environment = {**os.environ, **variables, "TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [sys.executable, "-m", "tfx_pipeline.local_runner"]
    done = subprocess.run(command, cwd=root, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    version = environments.newest_version(workdir / "serving" / "tfmm")
    found = metadata.executions(workdir / "metadata.sqlite")
    return version, {e.node for e in found if e.run == found[-1].run and e.state == metadata.COMPLETE}


def versions(workdir):
    return sorted(path.name for path in (workdir / "serving" / "tfmm").iterdir())


def encoders_in_index(workdir):
    with store.open_store(str(workdir / "index" / "items.sqlite"), create=False) as index:
        return {name: entry.encoder_version for name, entry in index.active_encoders().items()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_settings_that_come_again_are_pushed_again_and_what_was_deleted_is_made_again(workdir, root):
    first, _ = run(workdir, root)
    assert run(workdir, root) == (first, set()), "an unchanged run does nothing"

    second, worked = run(workdir, root, *OTHER)
    assert second != first and {"MultimodalTrainer", "ModelGate", "Pusher"} <= worked
    assert run(workdir, root, *OTHER) == (second, set())

    third, worked = run(workdir, root)  # A again, while B is in service
    assert third not in (first, second) and worked == {"ModelGate", "InfraCheck", "Pusher"}
    assert artifacts.digest(third) == artifacts.digest(first)
    assert run(workdir, root) == (third, set())

    shutil.rmtree(workdir / "serving")
    fourth, worked = run(workdir, root)
    assert worked == {"ModelGate", "InfraCheck", "Pusher"} and versions(workdir) == [fourth.name]
    assert run(workdir, root) == (fourth, set())

    before = encoders_in_index(workdir)
    size = json.loads((workdir / "snapshot" / "manifest.json").read_text())["modalities"]["image"]["size"]
    shutil.rmtree(workdir / "index")
    _, worked = run(workdir, root)
    assert {"CatalogEmbedder", "Pusher"} <= worked and "SCLTrainer" not in worked
    assert encoders_in_index(workdir) == before
    with store.open_store(str(workdir / "index" / "items.sqlite"), create=False) as index:
        assert index.lag("image", before["image"], 0) == size
    assert run(workdir, root)[1] == set()

    run(workdir, root, *OTHER_ENCODER)
    assert encoders_in_index(workdir) != before
    _, worked = run(workdir, root)
    assert encoders_in_index(workdir) == before, "servers follow the encoders of the version in service"
    assert "SCLTrainer" not in worked


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_index_of_a_url_is_filled_and_filled_again_where_it_is_gone(tmp_path, root, make_redis):
    server = make_redis()
    url = server.url(prefix="items")
    version, worked = run(tmp_path, root, TFMM_INDEX=url)
    assert {"CatalogEmbedder", "Pusher"} <= worked and not (tmp_path / "index").exists()
    manifest = json.loads((tmp_path / "snapshot" / "manifest.json").read_text())["modalities"]["image"]

    def rows():
        with store.open_store(url, create=False) as index:
            return len(index.live_ids("image", index.active_encoders()["image"].encoder_version))

    assert rows() == manifest["size"] > 0
    assert run(tmp_path, root, TFMM_INDEX=url) == (version, set())
    with store.open_store(url) as index:
        index._redis.flushdb()
    _, worked = run(tmp_path, root, TFMM_INDEX=url)
    assert "CatalogEmbedder" in worked and "SCLTrainer" not in worked and rows() == manifest["size"]
