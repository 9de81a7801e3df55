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

from serving.model_server import errors, memory, warmup
from serving.model_server.config import ModelConfig
from serving.model_server.limits import Limits
from serving.model_server.servable import Servable
from tfmm.export.signatures import STATUS, UPSERT

START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50  # ModelVersionStatus.State
WAITS = "It waits for the item index: until a replicator says that it has every change, or --index_wait_seconds end."
STATE_NAMES = {START: "START", LOADING: "LOADING", AVAILABLE: "AVAILABLE", UNLOADING: "UNLOADING", END: "END"}
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
    waits_until: float | None = None  # monotonic seconds; loaded, and not in service before it has the item index


class ModelManager:
    """Keeps the wanted versions of every configured model loaded.

    A version is served once it has loaded and its warm-up requests have run; the versions that it replaces
    are then closed after their last request. Where no version folder is left, the version in service stays.
    With `index_wait_s`, a version with an item index is served once `mark_caught_up` says that it has every change.

    Args:
        configs: the models.
        poll_wait_s: seconds between looks at their folders; 0 looks once.
        max_load_retries: how often a version that fails to load is tried again.
        load_retry_interval_s: seconds between those tries.
        warm_up: whether a version's warm-up requests run before it serves.
        warm_up_iterations: how often each of them runs.
        labels_may_lead: whether `reload` takes new labels for versions that are not available yet.
        session_threads: inter-op and intra-op threads of every version; 0 for one per core.
        limits: of requests.
        index_wait_s: how long a loaded version waits for its item index, to be served without then; 0 for not at all.
        index_models: the models whose versions wait; None for all.
        is_logged: whether rankings are logged.
    """

    def __init__(
        self,
        configs: typing.Iterable[ModelConfig],
        *,
        poll_wait_s: float = 1.0,
        max_load_retries: int = 5,
        load_retry_interval_s: float = 60.0,
        warm_up: bool = True,
        warm_up_iterations: int = 1,
        labels_may_lead: bool = False,
        session_threads: tuple[int, int] = (0, 0),
        limits: Limits = Limits(),  # noqa: B008 (frozen)
        index_wait_s: float = 0.0,
        index_models: typing.Collection[str] | None = None,
        is_logged: bool = False,
    ):
        self._poll_wait_s = poll_wait_s
        self._max_load_retries = max_load_retries
        self._load_retry_interval_s = load_retry_interval_s
        self._warm_up_iterations = warm_up_iterations if warm_up else 0
        self._labels_may_lead = labels_may_lead
        self._session_threads = session_threads
        self._limits = limits
        self._index_wait_s = index_wait_s
        self._index_models = index_models
        self._is_logged = is_logged
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
            self._stopping.wait(self._poll_wait_s or None)

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
        folders = _versions_in(config)
        wanted = config.wanted(folders)
        with self._changed:
            model = self._models.setdefault(config.name, {})
        for number in wanted:
            version = model.get(number)
            if version is None or (version.state == END and version.code == errors.OK):
                with self._changed:
                    version = model[number] = Version(number)
            if version.servable is None and self._is_due(version) and not self._stopping.is_set():
                self._load(config, version, folders[number])
            if (until := version.waits_until) is not None and time.monotonic() >= until:
                _log.warning("%s version %d waited long enough for its item index", config.name, number)
                self.mark_caught_up(config.name, number)
        for version in [v for v in model.values() if v.waits_until is not None and v.version not in wanted]:
            self._unload(version)
        if not any(model[number].state == AVAILABLE for number in wanted):
            return  # what is in service stays until something can take its place
        for version in list(model.values()):
            if version.version not in wanted:
                self._unload(version)

    def _is_due(self, version: Version) -> bool:
        return version.attempts <= self._max_load_retries and time.monotonic() >= version.retry_at

    def _load(self, config: ModelConfig, version: Version, path: str) -> None:
        self._set(version, LOADING)
        started = time.monotonic()
        servable = None
        try:
            servable = Servable(config.name, version.version, path, self._session_threads, self._limits)
            times = self._warm_up_iterations
            records = warmup.warm(servable, times, is_logged=self._is_logged) if times else 0
        except Exception as error:  # whatever a folder holds, the server goes on with what it has
            if servable is not None:
                servable.close()
            failure = errors.from_exception(error)
            version.attempts += 1
            version.retry_at = time.monotonic() + self._load_retry_interval_s
            _log.error("%s version %d did not load: %s", config.name, version.version, failure.message)
            self._set(version, END, failure.code, failure.message)
            return
        is_followed = self._index_models is None or config.name in self._index_models
        waits = self._index_wait_s and is_followed and {UPSERT, STATUS} <= servable.signatures.keys()
        with self._changed:
            version.servable = servable
            version.waits_until = time.monotonic() + self._index_wait_s if waits else None
        self._set(version, LOADING if waits else AVAILABLE, message=WAITS if waits else "")
        _log.info(
            "%s version %d is loaded after %.1f s and %d warm-up requests. %s",
            config.name,
            version.version,
            time.monotonic() - started,
            records,
            WAITS if waits else "It is available.",
        )

    def _unload(self, version: Version) -> None:
        servable = version.servable
        if servable is None:
            return
        with self._changed:
            version.waits_until = None  # from here on nothing puts it in service
            self._set(version, UNLOADING)
        servable.close()
        with self._changed:
            version.servable = None
        del servable
        self._set(version, END)
        if not self._stopping.is_set():
            _log.debug("gave memory back in %.3f s", memory.release())

    def _set(self, version: Version, state: int, code: int = errors.OK, message: str = "") -> None:
        with self._changed:
            version.state, version.code, version.message = state, code, message
            self._changed.notify_all()

    def mark_caught_up(self, name: str, version: int) -> None:
        """Puts a version in service that waits for the item index; else nothing happens."""
        with self._changed:
            entry = self._models.get(name, {}).get(version)
            if entry is not None and entry.waits_until is not None:
                entry.waits_until = None
                self._set(entry, AVAILABLE)
                _log.info("%s version %d is available: it has every change of the item index", name, version)

    @contextlib.contextmanager
    def lend(
        self, name: str, version: int | None = None, label: str | None = None, *, also_waiting: bool = False
    ) -> typing.Iterator[Servable]:
        """Lends a loaded version, which stays loaded until the block ends.

        Args:
            name: the model.
            version: its number; None for the newest one available.
            label: or a label of the config.
            also_waiting: whether one that waits for its item index is lent where its number is given.
        Raises:
            ServingError: NOT_FOUND where it is not available, UNAVAILABLE where it waits for its item index,
                INVALID_ARGUMENT for an unknown label.
        """
        servable = self._enter(name, version, label, also_waiting)
        try:
            yield servable
        finally:
            servable.leave()

    def _enter(self, name: str, version: int | None, label: str | None, also_waiting: bool) -> Servable:
        if not name:
            raise errors.ServingError(errors.INVALID_ARGUMENT, "ModelSpec has no name.")
        with self._changed:
            version = self._labelled(name, label) if label else version
            available = {
                v.version: v.servable for v in self._models.get(name, {}).values() if v.state == AVAILABLE
            }
            waiting = {
                v.version: v.servable for v in self._models.get(name, {}).values() if v.waits_until is not None
            }
            chosen = available.get(max(available, default=0) if version is None else version)
            if chosen is None and version in waiting and also_waiting:
                chosen = waiting[version]
            elif chosen is None and waiting and (version is None or version in waiting):
                number = max(waiting) if version is None else version
                raise errors.ServingError(errors.UNAVAILABLE, f"Version {number} of {name} is not in service. {WAITS}")
            if chosen is None or not chosen.enter():
                wanted = f"Latest({name})" if version is None else f"Specific({name}, {version})"
                raise errors.ServingError(errors.NOT_FOUND, f"Servable not found for request: {wanted}")
            return chosen

    def _labelled(self, name: str, label: str) -> int:
        labels = dict(self._configs[name].labels) if name in self._configs else {}
        if label not in labels:
            raise errors.ServingError(errors.INVALID_ARGUMENT, f"Unrecognized servable version label: {label}")
        return labels[label]

    def status(self, name: str, version: int | None = None, label: str | None = None) -> list[Version]:
        """Returns the versions of a model, newest first, those gone as well.

        Raises:
            ServingError: NOT_FOUND for an unknown model or version, INVALID_ARGUMENT for an unknown label.
        """
        with self._changed:
            version = self._labelled(name, label) if label else version
            model = self._models.get(name) if name in self._configs else None
            if not model:
                raise errors.ServingError(errors.NOT_FOUND, f"Could not find any versions of model {name}")
            if version is not None and version not in model:
                raise errors.ServingError(
                    errors.NOT_FOUND, f"Could not find version {version} of model {name}"
                )
            chosen = sorted(model.values(), key=lambda v: -v.version) if version is None else [model[version]]
            return [dataclasses.replace(v) for v in chosen]

    def names(self) -> typing.Collection[str]:
        """Returns the names of the configured models."""
        return self._configs.keys()

    def versions(self) -> list[tuple[str, Version]]:
        """Returns every version of every model with the model's name."""
        with self._changed:
            return [(name, dataclasses.replace(v)) for name, model in self._models.items() for v in model.values()]

    def labels(self) -> list[tuple[str, str, int]]:
        """Returns (model, label, version) of every label of the config."""
        with self._changed:
            return [(name, *one) for name, config in self._configs.items() for one in config.labels]

    def is_ready(self) -> bool:
        """Whether every configured model has a version in service."""
        with self._changed:
            return all(
                any(v.state == AVAILABLE for v in self._models.get(name, {}).values())
                for name in self._configs
            )

    def has_tried(self) -> bool:
        """Whether of every configured model a version is loaded, or could not be."""
        with self._changed:
            return all(
                any(v.servable is not None or v.attempts for v in self._models.get(name, {}).values())
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
        """Replaces the set of models, and returns when every one of them is loaded.

        Raises:
            ServingError: FAILED_PRECONDITION where a label names a version that is not available (the old set
                stays), UNKNOWN where a model did not become available.
        """
        wanted = {config.name: config for config in configs}
        with self._changed:
            for config in wanted.values():
                self._verify_labels(config)
            self._configs = wanted
        self.poll()
        for name in wanted:
            if not any(v.servable for v in self._models.get(name, {}).values()):
                reasons = [v.message for v in self._models.get(name, {}).values() if v.message]
                raise errors.ServingError(
                    errors.UNKNOWN, f"Model {name} did not become available. {' '.join(reasons)}".strip()
                )

    def _verify_labels(self, config: ModelConfig) -> None:
        loaded = {v.version for v in self._models.get(config.name, {}).values() if v.state == AVAILABLE}
        known = dict(self._configs[config.name].labels) if config.name in self._configs else {}
        for label, version in config.labels:
            may_lead = self._labels_may_lead and known.get(label, version) == version
            if version not in loaded and not may_lead:
                raise errors.ServingError(
                    errors.FAILED_PRECONDITION,
                    f"Label {label} of model {config.name} must name an available version, of {sorted(loaded)}. "
                    f"Received: {version}.",
                )


def _versions_in(config: ModelConfig) -> dict[int, str]:
    """Returns the sub-folders that hold a SavedModel by their number; says it where there is none."""
    try:
        names = sorted(name.rstrip("/") for name in tf.io.gfile.listdir(config.base_path))
    except tf.errors.OpError as error:
        _log.warning("%s: base path %s cannot be read: %s", config.name, config.base_path, error.message)
        return {}
    found: dict[int, str] = {}
    for name in names:
        path = os.path.join(config.base_path, name)
        if not (name.isascii() and name.isdigit() and int(name) < 1 << 63 and _holds_model(path)):
            continue
        if int(name) in found:
            _log.warning("%s: version %d is there twice; %s counts", config.name, int(name), path)
        found[int(name)] = path
    if not found:
        _log.warning("%s: base path %s has no numbered folder with a SavedModel", config.name, config.base_path)
    for version in set(config.versions or ()) - set(found):
        _log.warning("%s: version %d is to be served, and not in %s", config.name, version, config.base_path)
    return found


def _holds_model(path: str) -> bool:
    return any(
        tf.io.gfile.exists(os.path.join(path, name)) for name in ("saved_model.pb", "saved_model.pbtxt")
    )
