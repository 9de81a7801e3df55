"""Which models a server holds: flags and ModelServerConfig files become typed configs."""

from __future__ import annotations

import dataclasses
import os
import typing

from google.protobuf import text_format
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server import errors


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """One model: where its numeric version folders are, and which of them are served."""

    name: str
    base_path: str
    latest: int = 1  # the newest versions served; 0 for all
    versions: tuple[int, ...] | None = None  # exactly these, whatever `latest` says
    labels: tuple[tuple[str, int], ...] = ()  # names for versions

    def wanted(self, found: typing.Iterable[int]) -> list[int]:
        """Returns the versions to serve out of those found, ascending.

        >>> ModelConfig("m", "/m", latest=2).wanted([1, 3, 2])
        [2, 3]
        """
        ordered = sorted(found)
        if self.versions is not None:
            return [v for v in ordered if v in self.versions]
        return ordered[-self.latest :] if self.latest else ordered


def from_proto(proto: model_server_config_pb2.ModelServerConfig) -> list[ModelConfig]:
    """Reads a ModelServerConfig with a model_config_list.

    Raises:
        ServingError: INVALID_ARGUMENT where a rule is broken.
    """
    if proto.WhichOneof("config") != "model_config_list":
        raise errors.ServingError(errors.INVALID_ARGUMENT, "ModelServerConfig must hold a model_config_list.")
    configs = [_model(entry) for entry in proto.model_config_list.config]
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise errors.ServingError(errors.INVALID_ARGUMENT, f"Model names must be unique. Received: {names}.")
    return configs


def _model(entry: model_server_config_pb2.ModelConfig) -> ModelConfig:
    if not entry.name or not entry.base_path:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"A model needs `name` and `base_path`. Received: {entry.name!r}, {entry.base_path!r}.",
        )
    if not (os.path.isabs(entry.base_path) or "://" in entry.base_path):
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"`base_path` of model {entry.name} must be absolute. Received: {entry.base_path}.",
        )
    if entry.model_platform not in ("", "tensorflow") or entry.model_type == model_server_config_pb2.OTHER:
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"`model_platform` must be tensorflow. Received: {entry.model_platform or 'another model_type'!r}.",
        )
    if entry.HasField("logging_config"):
        raise errors.ServingError(
            errors.INVALID_ARGUMENT,
            f"`logging_config` of model {entry.name} must be left out: --served_log and --inspection_log are the logs.",
        )
    policy = entry.model_version_policy
    choice = policy.WhichOneof("policy_choice")
    latest, versions = 1, None
    if choice == "latest":
        latest = max(1, policy.latest.num_versions)
    elif choice == "all":
        latest = 0
    elif choice == "specific":
        versions = tuple(policy.specific.versions)
    return ModelConfig(
        entry.name, entry.base_path, latest, versions, tuple(sorted(entry.version_labels.items()))
    )


def read_file(path: str) -> list[ModelConfig]:
    """Reads a `--model_config_file`: a ModelServerConfig as text proto.

    Raises:
        ServingError: INVALID_ARGUMENT where the text is none.
        OSError: it cannot be read.
    """
    with open(path, encoding="utf-8") as file:
        try:
            return from_proto(text_format.Parse(file.read(), model_server_config_pb2.ModelServerConfig()))
        except (text_format.ParseError, UnicodeDecodeError) as error:
            raise errors.ServingError(errors.INVALID_ARGUMENT, f"{path}: {error}") from error


def from_flags(flags: typing.Any) -> list[ModelConfig]:
    """Returns the models that parsed flags name; raises as `read_file`."""
    if flags.model_config_file:
        return read_file(flags.model_config_file)
    return [ModelConfig(flags.model_name, flags.model_base_path)]
