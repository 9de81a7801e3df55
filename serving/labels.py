"""Moves the labels of a model's versions, in the config file that its servers read again and again."""

from __future__ import annotations

import os
import pathlib
import time
import typing

import grpc
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from serving import channel

_POLL_S = 0.2
_States = get_model_status_pb2.ModelVersionStatus


class LabelError(RuntimeError):
    """A version that does not load, or servers that do not follow in time; the labels are as they were."""


class _Server:
    """One server, asked for the versions of a model."""

    def __init__(self, target: str, model_name: str, access: channel.Access):
        self.target, self._model_name, self._metadata = target, model_name, access.metadata()
        self._channel = access.open(target)

    def __enter__(self) -> _Server:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def states(self) -> dict[int, tuple[int, str]]:
        """Returns the state of each version, and why it failed."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model_name
        stub = model_service_pb2_grpc.ModelServiceStub(self._channel)
        response = stub.GetModelStatus(request, timeout=10, metadata=self._metadata)
        return {one.version: (one.state, one.status.error_message) for one in response.model_version_status}

    def labelled(self, label: str) -> int | None:
        """Returns the version that a label names; None where it names none."""
        request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.name, request.model_spec.version_label = self._model_name, label
        stub = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)
        try:
            response = stub.GetModelMetadata(request, timeout=10, metadata=self._metadata)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND):
                return None
            raise
        return response.model_spec.version.value


class ConfigFile:
    """A ModelServerConfig as text proto; comments at its head stay when it is written."""

    def __init__(self, path: str | pathlib.Path):
        self._path = pathlib.Path(path)
        self.text = self._path.read_text("utf-8")
        try:
            self._config = text_format.Parse(self.text, model_server_config_pb2.ModelServerConfig())
        except text_format.ParseError as error:
            raise ValueError(f"{path} must be a ModelServerConfig as text proto. {error}") from error

    def model(self, name: str) -> typing.Any:
        """Returns a model's entry.

        Raises:
            ValueError: there is none.
        """
        models = {entry.name: entry for entry in self._config.model_config_list.config}
        if name not in models:
            raise ValueError(f"The model must be one of {sorted(models)} in {self._path}. Received: {name!r}.")
        return models[name]

    def write(self) -> None:
        """Writes the file so that a server reads all of it or what was before."""
        lines = self.text.splitlines(keepends=True)
        head = next((n for n, line in enumerate(lines) if line.strip() and not line.startswith("#")), len(lines))
        self.write_text("".join(lines[:head]) + text_format.MessageToString(self._config))

    def write_text(self, text: str) -> None:
        temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        temporary.write_text(text, "utf-8")
        temporary.chmod(self._path.stat().st_mode)
        temporary.replace(self._path)


def move(
    config_file: str | pathlib.Path,
    model_name: str,
    labels: typing.Mapping[str, int | None],
    targets: typing.Sequence[str],
    timeout_s: float = 300.0,
    access: channel.Access = channel.NO_ACCESS,
) -> dict[str, int]:
    """Moves labels once all servers have the versions in service; then they serve the labelled versions, and no others.

    Args:
        config_file: the servers' `--model_config_file`, which they read again and again.
        model_name: the model's.
        labels: version by label; None takes a label away.
        targets: host:port of the servers' gRPC.
        timeout_s: until the servers have loaded the versions, and again until they know the labels.
        access: what they ask of their callers.
    Returns:
        The labels that are in force.
    Raises:
        ValueError: the file is none, the model is not in it, no label would be left, or no server is named.
        LabelError: a version does not load, such as one whose warm-up fails, or a server does not follow in time; then
            the file is as it was.
    """
    file = ConfigFile(config_file)
    entry = file.model(model_name)
    wanted = {name: version for name, version in {**entry.version_labels, **labels}.items() if version is not None}
    if not wanted or not targets:
        raise ValueError(f"`labels` and `targets` must leave one at least. Received: {wanted}, {list(targets)}.")
    servers = [_Server(target, model_name, access) for target in targets]
    try:
        served = {v for server in servers for v, (state, _) in server.states().items() if state == _States.AVAILABLE}
        _serve(entry, served | {*wanted.values()})  # labels may name versions only that are in service
        file.write()
        _wait(servers, lambda server: _has(server, wanted.values()), timeout_s, f"serve versions {wanted}")
        entry.version_labels.clear()
        entry.version_labels.update(wanted)
        _serve(entry, wanted.values())
        file.write()
        _wait(servers, lambda server: {label: server.labelled(label) for label in wanted} == wanted, timeout_s,
              f"know the labels {wanted}")  # fmt: skip
    except (LabelError, grpc.RpcError, KeyboardInterrupt) as error:
        file.write_text(file.text)
        if isinstance(error, grpc.RpcError):
            raise LabelError(f"A server does not answer: {error.code().name}: {error.details()}.") from error
        raise
    finally:
        for server in servers:
            server.__exit__()
    return wanted


def _serve(entry: typing.Any, versions: typing.Iterable[int]) -> None:
    entry.model_version_policy.specific.versions[:] = sorted(set(versions))


def _has(server: _Server, versions: typing.Collection[int]) -> bool:
    """Returns whether versions are in service.

    Raises:
        LabelError: one of them failed.
    """
    states = server.states()
    for version in versions:
        state, message = states.get(version, (0, ""))
        if state == _States.END and message:
            raise LabelError(f"Version {version} does not load at {server.target}: {message} The labels stay.")
    return all(states.get(version, (0, ""))[0] == _States.AVAILABLE for version in versions)


def _told(server: _Server) -> str:
    """Returns the versions that a server knows, each with its state."""
    states = sorted(server.states().items())
    return ", ".join(f"{version} {_States.State.Name(state)}" for version, (state, _) in states) or "no version"


def _wait(
    servers: typing.Iterable[_Server], condition: typing.Callable[[_Server], bool], timeout_s: float, what: str
) -> None:
    deadline = time.monotonic() + timeout_s
    for server in servers:
        while not condition(server):
            if time.monotonic() > deadline:
                raise LabelError(
                    f"{server.target} must {what} within {timeout_s:g} s. Received: {_told(server)}. One that is "
                    "loading needs a longer --timeout. Of one that is missing: does the server read the file again "
                    "(--model_config_file_poll_wait_seconds), and does the folder have it? The labels stay."
                )
            time.sleep(_POLL_S)
