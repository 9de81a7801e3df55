"""Whether a model server loads a version and answers each of its signatures, before the version is pushed.

Where `tensorflow_model_server` is on the PATH, it is asked; else the C++ loader that it uses, in this process.
"""

from __future__ import annotations

import pathlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import typing

import numpy as np
import tensorflow as tf

from tfmm import extras
from tfmm.export import trial

SERVER = "tensorflow_model_server"
READY_S, ANSWER_S = 300.0, 120.0  # until a version is loaded and warmed, and for an answer, which may compile
LINES, LONGEST = 5, 300  # of a server's log, in a message
_MODEL = "tfmm"
# Runs a command in the place of this process, and has the system end it when the one that started it ends (prctl's
# PR_SET_PDEATHSIG). A process of its own does it, since this one has threads that a fork of it would not survive.
_BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"


def server_path() -> str:
    """Returns where the server is; "": nowhere."""
    return shutil.which(SERVER) or ""


def fault(version_dir: str | pathlib.Path, server: str, log_path: pathlib.Path) -> str | None:
    """Returns what is wrong with a version, in a line, with the last of what the server said below; None: nothing.

    Args:
        version_dir: the SavedModel.
        server: of `server_path`.
        log_path: gets what the server says.
    """
    return _fault_in_server(version_dir, server, log_path) if server else trial.fault_in_session(version_dir)


def _fault_in_server(version_dir: str | pathlib.Path, server: str, log_path: pathlib.Path) -> str | None:
    grpc: typing.Any = extras.require("grpc", "serving")
    predict: typing.Any = extras.require("tensorflow_serving.apis.predict_pb2", "serving")
    service: typing.Any = extras.require("tensorflow_serving.apis.prediction_service_pb2_grpc", "serving")
    port = _free_port()
    with tempfile.TemporaryDirectory() as base, log_path.open("ab") as log:
        (pathlib.Path(base) / "1").symlink_to(pathlib.Path(version_dir).resolve())
        command = [server, f"--model_name={_MODEL}", f"--model_base_path={base}", f"--port={port}"]
        command += ["--rest_api_port=0", "--xla_cpu_compilation_enabled=true"]
        command = [sys.executable, "-c", _BOUND, *command]
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
                stub = service.PredictionServiceStub(channel)

                def answer(signature: str, inputs: trial.Inputs) -> dict[str, np.ndarray]:
                    request = predict.PredictRequest()
                    request.model_spec.name, request.model_spec.signature_name = _MODEL, signature
                    for name, value in inputs.items():
                        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
                    try:
                        outputs = stub.Predict(request, timeout=ANSWER_S).outputs
                    except grpc.RpcError as error:
                        raise ChildProcessError(f"{error.code().name}: {error.details()}") from error
                    return {name: tf.make_ndarray(value) for name, value in outputs.items()}

                objection = _wait(process, stub, grpc)
                wrong = f"it cannot be loaded: {objection}" if objection else trial.fault(version_dir, answer)
                return wrong and f"{wrong}.{_last_lines(log_path)}"
        finally:
            process.kill()
            process.wait()


def _last_lines(log_path: pathlib.Path) -> str:
    """Returns the end of what a server said; its log goes with the node's output where the node fails."""
    said = log_path.read_text(errors="replace").splitlines()[-LINES:]
    return "".join(["\nThe server's last lines:" if said else "", *(f"\n    {line[:LONGEST]}" for line in said)])


def _wait(process: subprocess.Popen, stub: typing.Any, grpc: typing.Any) -> str | None:
    """Waits until a version is served; returns why it will not be, or None."""
    metadata: typing.Any = extras.require("tensorflow_serving.apis.get_model_metadata_pb2", "serving")
    request = metadata.GetModelMetadataRequest()
    request.model_spec.name = _MODEL
    request.metadata_field.append("signature_def")
    deadline, said = time.monotonic() + READY_S, "no answer"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return f"the server ended with code {process.returncode}"
        try:
            stub.GetModelMetadata(request, timeout=5.0)
            return None
        except grpc.RpcError as error:
            said = f"{error.code().name}: {error.details()}"
        time.sleep(0.1)
    return f"not ready within {READY_S:.0f} s, {said}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
