"""Canary and rollback by labels, at a server that reads its config file again and again."""

import threading
import time

import click.testing
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from serving import client, labels
from serving.model_server import config
from tfmm import cli

HEAD = "# who may change this: the team\n"


@pytest.fixture
def served(tmp_path, write_models, serving_at):
    """A server with versions 1 and 2 in its folder, and the newest in service; (config file, its addresses)."""
    for number in (1, 2):
        write_models["half_plus_two"](tmp_path / "m" / str(number), offset=float(number))
    path = tmp_path / "models.config"
    entry = f'config {{ name: "m" base_path: "{tmp_path / "m"}" model_platform: "tensorflow" }}'
    path.write_text(f"{HEAD}model_config_list {{ {entry} }}")
    models = tuple(config.read_file(str(path)))
    with serving_at(tmp_path / "s", models=models, model_config_file=str(path), config_poll_wait_s=0.1,
                    load_retry_interval_s=0.5) as addresses:  # fmt: skip
        yield path, addresses


def run(path, *words, code=0):
    result = click.testing.CliRunner().invoke(cli.main, ["label", str(path), *words, "--model-name", "m"])
    assert result.exit_code == code, result.output
    return result.output


def offsets(caller, *versions):
    """Which version answers, by the number or label that is asked for."""
    return [float(caller.predict({"x": np.float32([0])}, version=version)["y"][0]) for version in versions]


def test_canary_becomes_stable_and_goes_back_with_no_failed_request(served):
    path, addresses = served
    server, faults, done = ["--server", addresses["grpc"]], [], threading.Event()
    with client.RankingClient(addresses["grpc"], addresses["rest"], "m", timeout_s=60) as caller:
        assert offsets(caller, None, 2) == [2.0, 2.0]
        with pytest.raises(client.PredictError, match="Unrecognized servable version label: stable"):
            offsets(caller, "stable")
        assert run(path, "stable=1", *server) == "m: stable is version 1\n"
        assert offsets(caller, "stable") == [1.0]
        deadline = time.monotonic() + 60
        while offsets(caller, None) != [1.0]:  # 2 was not labelled, and goes
            assert time.monotonic() < deadline
            time.sleep(0.02)

        def ask():
            while not done.is_set():
                try:
                    assert offsets(caller, "stable")[0] in (1.0, 2.0)
                except Exception as error:
                    faults.append(error)

        thread = threading.Thread(target=ask)
        thread.start()
        run(path, "canary=2", *server)
        assert offsets(caller, "stable", "canary") == [1.0, 2.0]
        assert caller.predict_rest({"x": [0.0]}, version="canary")["output"].tolist() == [2.0]
        run(path, "stable=2", "canary=", *server)
        assert offsets(caller, "stable") == [2.0]
        assert run(path, "stable=1", *server) == "m: stable is version 1\n"  # the way back
        assert offsets(caller, "stable") == [1.0]
        done.set()
        thread.join()
        assert not faults
        with pytest.raises(client.PredictError, match="Unrecognized servable version label: canary"):
            offsets(caller, "canary")
    assert path.read_text().startswith(HEAD)
    (model,) = config.read_file(str(path))
    assert (model.labels, model.versions) == ((("stable", 1),), (1,))


def test_version_that_fails_its_warm_up_gets_no_label_and_the_old_one_stays(served, tmp_path, write_models):
    path, addresses = served
    run(path, "stable=2", "--server", addresses["grpc"])
    write_models["half_plus_two"](tmp_path / "m" / "3", offset=3.0)
    (tmp_path / "m" / "3" / "assets.extra").mkdir()
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.inputs["other"].CopyFrom(tf.make_tensor_proto([1.0]))
    with tf.io.TFRecordWriter(str(tmp_path / "m" / "3" / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(log.SerializeToString())
    before = path.read_text()
    told = run(path, "stable=3", "--server", addresses["grpc"], code=1)
    assert "Version 3 does not load" in told and "The labels stay." in told and path.read_text() == before
    with client.RankingClient(addresses["grpc"], model_name="m", timeout_s=60) as caller:
        assert offsets(caller, "stable", None) == [2.0, 2.0]


def test_what_no_server_can_do_is_refused_and_the_file_stays(served):
    path, addresses = served
    before, server = path.read_text(), ["--server", addresses["grpc"]]
    told = run(path, "stable=9", *server, "--timeout", "0.5", code=1)
    assert "must serve versions {'stable': 9} within 0.5 s. Received: 2 AVAILABLE. One that is loading needs" in told
    assert path.read_text() == before
    assert "A label must stand as LABEL=VERSION" in run(path, "stable", *server, code=1)
    assert "must leave one at least" in run(path, "stable=", *server, code=1)
    with pytest.raises(ValueError, match=r"must be one of \['m'\]"):
        labels.move(path, "other", {"stable": 1}, [addresses["grpc"]])
    with pytest.raises(labels.LabelError, match="A server does not answer: UNAVAILABLE"):
        labels.move(path, "m", {"stable": 1}, ["127.0.0.1:1"])
    assert path.read_text() == before
