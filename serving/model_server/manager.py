"""Watches version folders, loads and warms new versions before old ones go, and lends them to requests."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import threading
import time
import typing

import tensorflow as tf

from serving.model_server import errors, predict
from serving.model_server.config import ModelConfig
from serving.model_server.servable import Servable

START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50  # ModelVersionStatus.State
_log = logging.getLogger("serving.model_server")


@dataclasses.dataclass
class Version:
    """One version of a model and what became of it."""

    version: int
    state: int = START
    code: int = errors.OK
    message: str = ""
    servable: Servable | None = None
    attempts: int = 0
    retry_at: float = 0.0  # monotonic seconds


class ModelManager:
    """Keeps the wanted versions of every configured model loaded.

    A version is served once it has loaded and its warm-up requests have run; the versions that it replaces
    are then closed after their last request. Where no version folder is left, the version in service stays.
    """

    def __init__(
        self,
        configs: typing.Iterable[ModelConfig],
        *,
        poll_wait_s: float = 1.0,
        max_load_retries: int = 5,
        load_retry_interval_s: float = 60.0,
        warm_up: bool = True,
    ):
        self._poll_wait_s = poll_wait_s
        self._max_load_retries = max_load_retries
        self._load_retry_interval_s = load_retry_interval_s
        self._warm_up = warm_up
        self._changed = threading.Condition()  # guards all that follows
        self._configs = {config.name: config for config in configs}
        self._models: dict[str, dict[int, Version]] = {}
        self._polling = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="model-manager", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stops watching and closes every version after its last request."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        for model in self._models.values():
            for version in model.values():
                self._unload(version)

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.poll()
            self._stopping.wait(self._poll_wait_s)

    def poll(self) -> None:
        """Brings what is loaded in line with the configs and the folders, once."""
        with self._polling:
            for config in list(self._configs.values()):
                self._poll_model(config)
            for name in set(self._models) - set(self._configs):
                for version in list(self._models[name].values()):
                    self._unload(version)
                with self._changed:
                    del self._models[name]
                    self._changed.notify_all()

    def _poll_model(self, config: ModelConfig) -> None:
        wanted = config.wanted(_versions_in(config.base_path))
        with self._changed:
            model = self._models.setdefault(config.name, {})
        for number in wanted:
            version = model.get(number)
            if version is None or (version.state == END and version.code == errors.OK):
                with self._changed:
                    version = model[number] = Version(number)
            if version.state != AVAILABLE and self._is_due(version) and not self._stopping.is_set():
                self._load(config, version)
        if not any(model[number].state == AVAILABLE for number in wanted):
            return  # what is in service stays until something can take its place
        for version in list(model.values()):
            if version.version not in wanted:
                self._unload(version)

    def _is_due(self, version: Version) -> bool:
        return version.attempts <= self._max_load_retries and time.monotonic() >= version.retry_at

    def _load(self, config: ModelConfig, version: Version) -> None:
        path = os.path.join(config.base_path, str(version.version))
        self._set(version, LOADING)
        started = time.monotonic()
        servable = None
        try:
            servable = Servable(config.name, version.version, path)
            records = predict.warm(servable) if self._warm_up else 0
        except Exception as error:  # whatever a folder holds, the server goes on with what it has
            if servable is not None:
                servable.close()
            failure = errors.from_exception(error)
            version.attempts += 1
            version.retry_at = time.monotonic() + self._load_retry_interval_s
            _log.error("%s version %d did not load: %s", config.name, version.version, failure.message)
            self._set(version, END, failure.code, failure.message)
            return
        with self._changed:
            version.servable = servable
        self._set(version, AVAILABLE)
        _log.info(
            "%s version %d is available after %.1f s and %d warm-up requests",
            config.name,
            version.version,
            time.monotonic() - started,
            records,
        )

    def _unload(self, version: Version) -> None:
        servable = version.servable
        if servable is None:
            return
        self._set(version, UNLOADING)
        servable.close()
        with self._changed:
            version.servable = None
        self._set(version, END)

    def _set(self, version: Version, state: int, code: int = errors.OK, message: str = "") -> None:
        with self._changed:
            version.state, version.code, version.message = state, code, message
            self._changed.notify_all()

    @contextlib.contextmanager
    def lend(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> typing.Iterator[Servable]:
        """Lends a loaded version, which stays loaded until the block ends.

        Args:
            name: the model.
            version: its number; None for the newest one available.
            label: or a label of the config.
        Raises:
            ServingError: NOT_FOUND where it is not available, INVALID_ARGUMENT for an unknown label.
        """
        servable = self._enter(name, version, label)
        try:
            yield servable
        finally:
            servable.leave()

    def _enter(self, name: str, version: int | None, label: str | None) -> Servable:
        if not name:
            raise errors.ServingError(errors.INVALID_ARGUMENT, "Missing ModelSpec")
        with self._changed:
            if label:
                labels = dict(self._configs[name].labels) if name in self._configs else {}
                if label not in labels:
                    raise errors.ServingError(
                        errors.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}"
                    )
                version = labels[label]
            available = {
                v.version: v.servable for v in self._models.get(name, {}).values() if v.state == AVAILABLE
            }
            chosen = available.get(max(available, default=0) if version is None else version)
            if chosen is None or not chosen.enter():
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise errors.ServingError(errors.NOT_FOUND, f"Servable not found for request: {wanted}")
            return chosen

    def status(self, name: str, version: int | None = None, label: str | None = None) -> list[Version]:
        """Returns the versions of a model, newest first, those gone as well.

        Raises:
            ServingError: NOT_FOUND for an unknown model or version.
        """
        with self._changed:
            if label and name in self._configs:
                version = dict(self._configs[name].labels).get(label, -1)
            model = self._models.get(name) if name in self._configs else None
            if not model:
                raise errors.ServingError(errors.NOT_FOUND, f"Could not find any versions of model {name}")
            if version is not None and version not in model:
                raise errors.ServingError(
                    errors.NOT_FOUND, f"Could not find version {version} of model {name}"
                )
            chosen = sorted(model.values(), key=lambda v: -v.version) if version is None else [model[version]]
            return [dataclasses.replace(v) for v in chosen]

    def is_ready(self) -> bool:
        """Whether every configured model has a version in service."""
        with self._changed:
            return all(
                any(v.state == AVAILABLE for v in self._models.get(name, {}).values())
                for name in self._configs
            )

    def wait_ready(self, timeout_s: float | None = None) -> bool:
        """Waits until `is_ready`, or until the manager stops."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.is_ready():
            if self._stopping.is_set() or (deadline is not None and time.monotonic() > deadline):
                return False
            with self._changed:
                self._changed.wait(0.2)
        return True

    def reload(self, configs: typing.Iterable[ModelConfig]) -> None:
        """Replaces the set of models, and returns when every one of them is in service.

        Raises:
            ServingError: FAILED_PRECONDITION where a label names a version that is not available (the old set
                stays), or a model could not be loaded.
        """
        wanted = {config.name: config for config in configs}
        with self._changed:
            for name, config in wanted.items():
                loaded = {v.version for v in self._models.get(name, {}).values() if v.state == AVAILABLE}
                if name in self._configs and not {number for _, number in config.labels} <= loaded:
                    raise errors.ServingError(
                        errors.FAILED_PRECONDITION,
                        f"Labels of model {name} must name available versions {sorted(loaded)}. "
                        f"Received: {dict(config.labels)}.",
                    )
            self._configs = wanted
        self.poll()
        for name in wanted:
            if not any(v.state == AVAILABLE for v in self._models.get(name, {}).values()):
                reasons = [v.message for v in self._models.get(name, {}).values() if v.message]
                raise errors.ServingError(
                    errors.FAILED_PRECONDITION,
                    f"Model {name} has no version in service. {' '.join(reasons)}".strip(),
                )


def _versions_in(base_path: str) -> list[int]:
    """Returns the numbers of the sub-folders that hold a SavedModel."""
    try:
        names = tf.io.gfile.listdir(base_path)
    except tf.errors.OpError:
        return []
    numbers = [name.rstrip("/") for name in names if name.rstrip("/").isdigit()]
    return [int(n) for n in numbers if str(int(n)) == n and _holds_model(os.path.join(base_path, n))]


def _holds_model(path: str) -> bool:
    return any(
        tf.io.gfile.exists(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")
    )
