"""Versions come, warm up, take over and go, with no failed request in between."""

import shutil
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving.model_server import manager as manager_module
from serving.model_server.config import ModelConfig
from serving.model_server.errors import ServingError
from serving.model_server.manager import AVAILABLE, END, ModelManager


def predict(manager, x=(2.0,), version=None):
    with manager.lend("m", version) as servable:
        return servable.run("", {"x": np.float32(x)})["y"].tolist(), servable.version


@pytest.fixture
def manage(tmp_path):
    managers = []

    def start(**options):
        config = ModelConfig("m", str(tmp_path), latest=options.pop("latest", 1))
        managers.append(ModelManager([config], **options))
        return managers[-1]

    yield start
    for manager in managers:
        manager.stop()


def write_warmup(version_dir, key, value):
    (version_dir / "assets.extra").mkdir()
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs[key].CopyFrom(tf.make_tensor_proto(value))
    with tf.io.TFRecordWriter(str(version_dir / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())


def test_newest_version_takes_over_and_the_old_one_goes(tmp_path, manage, write_models):
    manager = manage()
    manager.poll()
    assert not manager.is_ready()
    with pytest.raises(ServingError, match=r"Latest\(m\)"):
        predict(manager)
    write_models["half_plus_two"](tmp_path / "1")
    manager.poll()
    assert manager.is_ready() and predict(manager) == ([3.0], 1)
    write_models["half_plus_two"](tmp_path / "2", offset=5.0)
    manager.poll()
    assert predict(manager) == ([6.0], 2)
    assert [(v.version, v.state) for v in manager.status("m")] == [(2, AVAILABLE), (1, END)]
    with pytest.raises(ServingError, match=r"Specific\(m, 1\)"):
        predict(manager, version=1)


def test_removing_the_newest_version_goes_back_to_the_older(tmp_path, manage, write_models):
    manager = manage()
    write_models["half_plus_two"](tmp_path / "1")
    write_models["half_plus_two"](tmp_path / "2", offset=5.0)
    manager.poll()
    shutil.rmtree(tmp_path / "2")
    manager.poll()
    assert predict(manager) == ([3.0], 1)
    shutil.rmtree(tmp_path / "1")
    manager.poll()
    assert predict(manager) == ([3.0], 1)  # the last one in service stays


def test_several_versions_are_addressable(tmp_path, manage, write_models):
    for version in (1, 2, 3):
        write_models["half_plus_two"](tmp_path / str(version), offset=float(version))
    manager = manage(latest=2)
    manager.poll()
    assert [predict(manager, version=v)[0] for v in (2, 3)] == [[3.0], [4.0]]
    assert predict(manager)[1] == 3
    with pytest.raises(ServingError, match="version 1"):
        manager.status("m", 1)


def test_broken_version_leaves_the_old_one_in_service_and_is_tried_again(tmp_path, manage, write_models):
    write_models["half_plus_two"](tmp_path / "1")
    manager = manage(load_retry_interval_s=0.0, max_load_retries=3)
    manager.poll()
    (tmp_path / "2").mkdir()
    manager.poll()
    assert len(manager.status("m")) == 1  # an empty folder is no version yet
    (tmp_path / "2" / "saved_model.pb").write_bytes(b"no model")
    manager.poll()
    broken = manager.status("m", 2)[0]
    assert broken.state == END and broken.code != 0 and broken.message
    assert predict(manager) == ([3.0], 1)
    shutil.rmtree(tmp_path / "2")
    write_models["half_plus_two"](tmp_path / "2", offset=5.0)
    manager.poll()
    assert predict(manager) == ([6.0], 2)


def test_warm_up_runs_before_service_and_its_failure_refuses_the_version(tmp_path, manage, write_models):
    write_models["counter"](tmp_path / "1")
    write_warmup(tmp_path / "1", "keys", np.array([b"warm"]))
    manager = manage(max_load_retries=0)
    manager.poll()
    with manager.lend("m") as servable:
        assert servable.run("", {"keys": np.array([b"warm"])})["counts"].tolist() == [2]
    write_models["counter"](tmp_path / "2")
    write_warmup(tmp_path / "2", "other", np.array([b"warm"]))
    manager.poll()
    assert manager.status("m", 2)[0].code == tf.errors.INVALID_ARGUMENT
    with manager.lend("m") as servable:
        assert servable.version == 1


@pytest.mark.parametrize("is_behind_a_record", [False, True], ids=["alone", "behind a record"])
@pytest.mark.parametrize("content", [b"garbage", b"x" * 40], ids=["shorter than a head", "no record"])
def test_damaged_warm_up_refuses_the_version_and_is_named(tmp_path, manage, write_models, content, is_behind_a_record):
    write_models["counter"](tmp_path / "1")
    write_warmup(tmp_path / "1", "keys", np.array([b"warm"]))
    path = tmp_path / "1" / "assets.extra" / "tf_serving_warmup_requests"
    path.write_bytes((path.read_bytes() if is_behind_a_record else b"") + content)
    manager = manage(max_load_retries=0)
    manager.poll()
    (status,) = manager.status("m", 1)
    assert status.code == tf.errors.DATA_LOSS and "Warm-up by " in status.message
    assert "tf_serving_warmup_requests failed: " in status.message


def test_version_is_closed_only_after_its_last_request(tmp_path, manage, write_models):
    write_models["half_plus_two"](tmp_path / "1")
    manager = manage()
    manager.poll()
    with manager.lend("m") as servable:
        write_models["half_plus_two"](tmp_path / "2", offset=5.0)
        poll = threading.Thread(target=manager.poll)
        poll.start()
        deadline = time.monotonic() + 120
        while manager.status("m", 1)[0].state != manager_module.UNLOADING and time.monotonic() < deadline:
            time.sleep(0.01)
        assert predict(manager) == ([6.0], 2)
        assert servable.run("", {"x": np.float32([2.0])})["y"].tolist() == [3.0]
        assert poll.is_alive()
    poll.join(120)
    assert manager.status("m", 1)[0].state == END


def test_swap_under_load_fails_no_request(tmp_path, manage, write_models):
    write_models["half_plus_two"](tmp_path / "1")
    manager = manage(poll_wait_s=0.02)
    manager.start()
    assert manager.wait_ready(120)
    seen, failures, done = set(), [], threading.Event()

    def load():
        while not done.is_set():
            try:
                seen.add(predict(manager)[1])
            except ServingError as error:
                failures.append(error)

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    for version in (1, 2, 3):
        if version > 1:
            write_models["half_plus_two"](tmp_path / "building" / str(version))
            shutil.move(tmp_path / "building" / str(version), tmp_path / str(version))
        while version not in seen and not failures:
            time.sleep(0.01)
    done.set()
    for thread in threads:
        thread.join(120)
    assert not failures and seen >= {1, 2, 3}
