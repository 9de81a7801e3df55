"""Versions come and go under load, and the server's memory stays."""

import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import get_model_status_pb2, model_service_pb2_grpc

from serving import client as client_lib
from tfmm import saved_model

WEIGHTS_MB = 80  # far more than 5 % of the server's memory


class Large(tf.Module):
    """A model whose graph and weights are large enough to be seen when they stay: hundreds of operations too."""

    def __init__(self):
        super().__init__()
        self.weights = tf.Variable(tf.random.normal([WEIGHTS_MB * 250_000], seed=1))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def score(self, x):
        for position in range(600):
            x = tf.tanh(x + tf.gather(self.weights, [position]))
        return {"y": x}


def memory_mb(process):
    pages = int(pathlib.Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def has_gone(target, version):
    """Whether a version was closed, after its last request."""
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name, request.model_spec.version.value = "m", version
    with grpc.insecure_channel(target) as channel:
        answer = model_service_pb2_grpc.ModelServiceStub(channel).GetModelStatus(request, timeout=60)
    return answer.model_version_status[0].state == get_model_status_pb2.ModelVersionStatus.END


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("swaps", [4, pytest.param(12, marks=pytest.mark.slow)])
def test_memory_comes_back_after_each_of_many_swaps_and_no_request_fails(root, tmp_path, swaps):
    module, base = Large(), tmp_path / "m"
    saved_model.save(module, {"serving_default": module.score}, base / "1")
    ready = tmp_path / "ready.json"
    process = subprocess.Popen(
        [sys.executable, "-m", "serving.model_server", "--model_name=m", f"--model_base_path={base}", "--port=0",
         f"--ready_file={ready}", "--file_system_poll_wait_seconds=0.2"],
        cwd=root, env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    stop, failed, answers = threading.Event(), [], []
    try:
        while not ready.exists():
            assert process.poll() is None
            time.sleep(0.05)
        target = f"127.0.0.1:{json.loads(ready.read_text())['grpc_port']}"

        def load():
            with client_lib.RankingClient(target, model_name="m", timeout_s=60) as client:
                while not stop.is_set():
                    try:
                        answers.append(client.predict({"x": np.ones(8, np.float32)})["y"][0])
                    except client_lib.PredictError as error:
                        failed.append(error)

        thread = threading.Thread(target=load)
        thread.start()
        memory = []
        with client_lib.RankingClient(target, model_name="m", timeout_s=60) as client:
            for version in range(2, swaps + 2):
                shutil.copytree(base / "1", tmp_path / "building")
                (tmp_path / "building").replace(base / str(version))
                deadline = time.monotonic() + 240
                while client.versions() != [version] or not has_gone(target, version - 1):
                    assert time.monotonic() < deadline, version
                    time.sleep(0.05)
                time.sleep(1.0)  # it gives back what it freed
                memory.append(memory_mb(process))
        stop.set()
        thread.join(120)
    finally:
        stop.set()
        process.terminate()
        process.wait(120)
    assert answers and not failed
    first, last = statistics.median(memory[:3]), statistics.median(memory[-3:])  # at times one is read half empty
    assert 0.05 * first < WEIGHTS_MB, memory  # else a version that stays would not be seen
    assert last <= 1.05 * first, memory
