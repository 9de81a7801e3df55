"""Ready means warmed and caught up: ports answer after the load, a version serves once it has the item index."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import httpx
import numpy as np
import pytest
import yaml
from google.protobuf import wrappers_pb2

from serving import replicator
from serving.deploy import started
from serving.model_server.config import ModelConfig
from serving.model_server.manager import AVAILABLE, END, LOADING, UNLOADING, ModelManager
from serving.replica import Replica
from tfmm.index import encode, graph_table, item_index, snapshot

DIM = 4
READY_S = 240  # until a server is there, on a machine that others use


@pytest.fixture
def export(write_table):
    """Writes a version whose table starts from the index as it stands."""

    def write_version(index, folder, capacity=4096):
        table = snapshot.take_snapshot(index, {"image": "v1"})["image"]
        write_table(graph_table.GraphTable("image", table, DIM, capacity, "v1"), folder)

    return write_version


def write(index, ids, time_us=1):
    rows, scales = encode.quantize(np.random.default_rng(time_us).normal(size=[len(ids), DIM]))
    index.write("image", "v1", ids, rows, scales, [time_us] * len(ids))


@pytest.fixture
def index(tmp_path):
    with item_index.ItemIndex(tmp_path / "items.sqlite") as index:
        write(index, [1, 2, 3])
        yield index


def is_serving(target):
    """What grpc.health.v1 says; None where nobody answers."""
    with grpc.insecure_channel(target) as channel:
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            wrappers_pb2.StringValue.SerializeToString,
            wrappers_pb2.Int32Value.FromString,
        )
        try:
            return check(wrappers_pb2.StringValue(), timeout=60).value == 1
        except grpc.RpcError as error:
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            return None


def accepts(port):
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def wait_for(condition, timeout_s=READY_S):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def served(target, ids):
    replica = Replica(target, "tfmm", timeout_s=60.0)
    try:
        return replica._predict(1, "serving_default", {"item_ids": np.array(ids)})["mask"].tolist()
    finally:
        replica.close()


@contextlib.contextmanager
def server_process(root, base, port, rest_port, *flags):
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.model_server", "--model_name=tfmm", f"--model_base_path={base}",
         f"--port={port}", f"--rest_api_port={rest_port}", *flags],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_version_waits_for_its_index_and_is_served_then(index, tmp_path, export):
    export(index, tmp_path / "model" / "1")
    manager = ModelManager([ModelConfig("tfmm", str(tmp_path / "model"))], index_wait_s=1000.0)
    try:
        manager.poll()
        (version,) = manager.status("tfmm")
        assert version.state == LOADING and "--index_wait_seconds" in version.message
        assert manager.has_tried() and not manager.is_ready()
        with manager.lend("tfmm", 1, also_waiting=True) as servable:  # as the replicator may
            assert servable.version == 1
        for number in (1, None):
            with pytest.raises(Exception, match="waits for the item index"), manager.lend("tfmm", number):
                pass
        manager.poll()  # does not load it a second time
        manager.mark_caught_up("tfmm", 1)
        manager.mark_caught_up("tfmm", 7)  # of no version: nothing happens
        assert manager.is_ready() and manager.status("tfmm")[0].state == AVAILABLE
        export(index, tmp_path / "model" / "2")
        manager.poll()
        assert [(v.version, v.state) for v in manager.status("tfmm")] == [(2, LOADING), (1, AVAILABLE)]
        export(index, tmp_path / "model" / "3")
        manager.poll()  # 2 goes before it was ever served, and 1 serves on
        assert [(v.version, v.state) for v in manager.status("tfmm")][::2] == [(3, LOADING), (1, AVAILABLE)]
        manager.mark_caught_up("tfmm", 3)
        manager.poll()
        with manager.lend("tfmm") as servable:
            assert servable.version == 3
        assert [v.version for v in manager.status("tfmm") if v.servable] == [3]
    finally:
        manager.stop()


def test_version_that_goes_is_not_put_in_service_while_its_last_request_runs(index, tmp_path, export):
    export(index, tmp_path / "model" / "1")
    manager = ModelManager([ModelConfig("tfmm", str(tmp_path / "model"))], index_wait_s=1000.0)
    try:
        manager.poll()
        export(index, tmp_path / "model" / "2")
        with manager.lend("tfmm", 1, also_waiting=True):
            polls = threading.Thread(target=manager.poll)
            polls.start()
            wait_for(lambda: manager.status("tfmm", 1)[0].state == UNLOADING)
            manager.mark_caught_up("tfmm", 1)  # the replicator's word comes too late
            assert manager.status("tfmm", 1)[0].state == UNLOADING
        polls.join(60)
        assert [(v.version, v.state) for v in manager.status("tfmm")] == [(2, LOADING), (1, END)]
    finally:
        manager.stop()


def test_wait_has_an_end_where_one_is_set_and_models_without_an_index_do_not_wait(
    index, tmp_path, half_plus_two_dir, caplog, export
):
    export(index, tmp_path / "model" / "1")
    configs = [ModelConfig("tfmm", str(tmp_path / "model")), ModelConfig("half", str(half_plus_two_dir))]
    manager = ModelManager(configs, index_wait_s=1.0)
    try:
        manager.poll()
        assert manager.status("half")[0].state == AVAILABLE and not manager.is_ready()
        time.sleep(1.0)
        manager.poll()
        assert manager.is_ready() and "waited long enough" in caplog.text
    finally:
        manager.stop()


def test_replicator_puts_a_waiting_server_in_service_when_it_has_every_change(index, tmp_path, serving_at, export):
    export(index, tmp_path / "model" / "1")
    write(index, range(10, 600), time_us=2)
    (port,), seen = started.free_ports(1), []

    def watch():
        while not seen:
            state = is_serving(f"127.0.0.1:{port}")
            if state:
                seen.append(served(f"127.0.0.1:{port}", [1, 10, 599]))
            time.sleep(0.01)

    with replicator.Replicator(index.url, [f"127.0.0.1:{port}"], refresh_s=0.05, batch_size=50):
        watcher = threading.Thread(target=watch)
        watcher.start()
        with serving_at(tmp_path / "model", name="tfmm", port=port, index_wait_s=-1.0) as addresses:
            wait_for(lambda: seen)
            watcher.join(60)
            assert seen == [[True] * 3]
            write(index, [1000], time_us=3)
            export(index, tmp_path / "staged")
            write(index, [1001], time_us=4)  # which the version needs, and has not
            (tmp_path / "staged").rename(tmp_path / "model" / "2")
            replica = Replica(addresses["grpc"], "tfmm", timeout_s=60.0)
            wait_for(lambda: replica.versions() == {2: True})
            answer = replica._predict(2, "serving_default", {"item_ids": np.array([10, 1000, 1001])})
            assert answer["mask"].all()
            replica.close()


def test_full_table_keeps_no_server_out_of_service(index, tmp_path, serving_at, export):
    export(index, tmp_path / "model" / "1", capacity=3)
    write(index, [4], time_us=2)
    (port,) = started.free_ports(1)
    with replicator.Replicator(index.url, [f"127.0.0.1:{port}"], refresh_s=0.05) as job:
        with serving_at(tmp_path / "model", name="tfmm", port=port, index_wait_s=-1.0) as addresses:
            assert is_serving(addresses["grpc"])
            assert "OUT_OF_RANGE" in wait_for(lambda: [lag.state for lag in job.lag() if lag.rows])[0]


def test_requests_of_a_waiting_server_are_unavailable(index, tmp_path, serving_at, export):
    export(index, tmp_path / "model" / "1")
    ready = threading.Event()
    (port,) = started.free_ports(1)

    def serve():
        with serving_at(tmp_path / "model", name="tfmm", port=port, index_wait_s=-1.0):
            ready.wait(500)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        target = f"127.0.0.1:{port}"
        assert wait_for(lambda: is_serving(target) is not None)
        assert not is_serving(target)
        with pytest.raises(grpc.RpcError, match=r"UNAVAILABLE[\s\S]*waits for the item index"):
            served(target, [1])
        replica = Replica(target, "tfmm")
        assert replica.versions() == {1: False}
        found = replica.tables(1)
        other = {name: status._replace(watermark=status.watermark + 1) for name, status in found.items()}
        replica.say_caught_up(1, other)  # of a process that is no more
        assert replica.versions() == {1: False}
        replica.say_caught_up(1, found)
        assert replica.versions() == {1: True}
        replica.close()
        wait_for(lambda: is_serving(target))
        assert served(target, [1]) == [True]
    finally:
        ready.set()
        thread.join(60)


@pytest.mark.slow
def test_what_the_deployments_probe_asks_is_refused_until_a_version_serves(root, index, tmp_path, export):
    export(index, tmp_path / "model" / "1")
    workloads = yaml.safe_load_all((root / "serving" / "deploy" / "kubernetes.yaml").read_text())
    pods = [workload["spec"]["template"]["spec"] for workload in workloads if workload["kind"] == "StatefulSet"]
    probes = [container.get("readinessProbe") for pod in pods for container in pod["containers"]]
    (path,) = [probe["httpGet"]["path"] for probe in probes if probe]
    port, rest_port = started.free_ports(2)
    url = f"http://127.0.0.1:{rest_port}"
    with server_process(root, tmp_path / "model", port, rest_port, "--index_wait_seconds=-1"):
        wait_for(lambda: accepts(rest_port))
        status = httpx.get(f"{url}/v1/models/tfmm", timeout=60)
        assert status.status_code == 200 and status.json()["model_version_status"][0]["state"] == "LOADING"
        assert httpx.get(url + path, timeout=60).status_code == 503
        replica = Replica(f"127.0.0.1:{port}", "tfmm")
        replica.say_caught_up(1, replica.tables(1))
        replica.close()
        assert httpx.get(url + path, timeout=60).status_code == 200


def test_ports_refuse_until_the_first_version_is_loaded(root, tmp_path, half_plus_two_dir):
    (port, rest_port, metrics_port), base = started.free_ports(3), tmp_path / "tfmm"
    base.mkdir()
    with server_process(root, base, port, rest_port, f"--metrics-port={metrics_port}") as process:
        wait_for(lambda: process.poll() is not None or accepts(metrics_port))  # it has bound the others by then
        assert process.poll() is None
        for number in (port, rest_port):
            with pytest.raises(ConnectionRefusedError, match="refused"):
                socket.create_connection(("127.0.0.1", number)).close()
        os.symlink(half_plus_two_dir / "123", base / "1")
        assert wait_for(lambda: is_serving(f"127.0.0.1:{port}"))
        assert httpx.get(f"http://127.0.0.1:{rest_port}/v1/models/tfmm", timeout=60).status_code == 200


@pytest.mark.slow
def test_tfmm_serve_with_an_index_is_ready_with_every_change_on_any_port(root, index, tmp_path, export):
    export(index, tmp_path / "model" / "1")
    write(index, range(10, 300), time_us=2)
    (tmp_path / "token").write_text("a-token-of-16-or-more")
    ready_file = tmp_path / "ready.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "tfmm.cli", "serve", f"--model_base_path={tmp_path / 'model'}", "--port=0",
         "--rest_api_port=-1", f"--index={index.url}", f"--ready_file={ready_file}",
         f"--token_file={tmp_path / 'token'}"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_for(lambda: ready_file.exists() or process.poll() is not None)
        target = f"127.0.0.1:{json.loads(ready_file.read_text())['grpc_port']}"
        assert served(target, [1, 10, 299]) == [True] * 3
        process.send_signal(signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()


def test_tfmm_serve_with_an_index_follows_it_for_every_model(root, index, tmp_path, export):
    for name in ("a", "b"):
        export(index, tmp_path / name / "1")
    write(index, range(10, 300), time_us=2)
    models = [f'config {{ name: "{name}" base_path: "{tmp_path / name}" model_platform: "tensorflow" }}'
              for name in ("a", "b")]  # fmt: skip
    ready_file, (pipe, end) = tmp_path / "ready.json", os.pipe()  # as `<(envsubst < models.config)` gives
    os.write(end, f"model_config_list {{ {' '.join(models)} }}".encode())
    os.close(end)
    process = subprocess.Popen(
        [sys.executable, "-m", "tfmm.cli", "serve", f"--model_config_file=/dev/fd/{pipe}", "--port=0",
         "--rest_api_port=-1", f"--index={index.url}", f"--ready_file={ready_file}"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=subprocess.DEVNULL,
        pass_fds=[pipe],
    )  # fmt: skip
    os.close(pipe)
    try:
        wait_for(lambda: ready_file.exists() or process.poll() is not None)
        target = f"127.0.0.1:{json.loads(ready_file.read_text())['grpc_port']}"
        for name in ("a", "b"):
            replica = Replica(target, name)
            assert replica.versions() == {1: True}
            answer = replica._predict(1, "serving_default", {"item_ids": np.array([1, 10, 299])})
            assert answer["mask"].all()
            replica.close()
    finally:
        process.terminate()
        assert process.wait(120) == 0


def test_writes_without_end_keep_no_server_out_of_service(index, tmp_path, serving_at, export):
    export(index, tmp_path / "model" / "1", capacity=1 << 20)
    (port,), stop = started.free_ports(1), threading.Event()

    def write_on():
        first = 1_000
        with item_index.ItemIndex(index.path) as own:
            while not stop.wait(0.005):
                write(own, range(first, first + 50), time_us=first)
                first += 50

    writer = threading.Thread(target=write_on)
    writer.start()
    try:
        with replicator.Replicator(index.url, [f"127.0.0.1:{port}"], refresh_s=0.05, batch_size=10) as job:
            with serving_at(tmp_path / "model", name="tfmm", port=port, index_wait_s=-1.0) as addresses:
                assert wait_for(lambda: is_serving(addresses["grpc"]))
                wait_for(lambda: any(lag.rows for lag in job.lag()))
    finally:
        stop.set()
        writer.join(60)


@pytest.mark.slow
def test_second_server_on_a_port_ends_at_once(root, tmp_path, half_plus_two_dir):
    (port,) = started.free_ports(1)
    with server_process(root, half_plus_two_dir, port, -1):
        wait_for(lambda: is_serving(f"127.0.0.1:{port}"))
        with server_process(root, half_plus_two_dir, port, -1) as second:
            assert second.wait(READY_S) != 0


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_killed_server_is_not_ready_before_it_has_the_index_again(root, index, tmp_path, export, kills):
    export(index, tmp_path / "model" / "1")
    write(index, range(10, 2000), time_us=2)
    port, rest_port = started.free_ports(2)
    target = f"127.0.0.1:{port}"
    with replicator.Replicator(index.url, [target], refresh_s=0.05, batch_size=50):
        for round_number in range(kills + 1):
            with server_process(root, tmp_path / "model", port, rest_port, "--index_wait_seconds=-1") as process:
                wait_for(lambda: is_serving(target))
                assert all(served(target, [1, 3, 10, 1999, *range(3000, 3000 + round_number)]))
                rest = httpx.get(f"http://127.0.0.1:{rest_port}/v1/models/tfmm", timeout=60).json()
                assert rest["model_version_status"][0]["state"] == "AVAILABLE"
                process.kill()
                process.wait()
                write(index, [3000 + round_number], time_us=3 + round_number)  # while nobody serves


def test_server_whose_wait_is_over_serves_as_it_is(index, tmp_path, serving_at, export):
    export(index, tmp_path / "model" / "1")
    with serving_at(tmp_path / "model", name="tfmm", index_wait_s=0.2) as addresses:
        assert is_serving(addresses["grpc"])
