"""Sends the item index's changes to every replica and loaded version of a model, over TF Serving's gRPC.

An upsert lives only in the memory of one loaded version of one server. So the replicator asks each version how
far it is (its watermark: at first, that of the snapshot which it was exported with) and sends what came later; a
server that starts anew, or loads another version, is brought up to date in the same way.

    python -m serving.replicator --index run/items.sqlite --target 127.0.0.1:8500 --model-name tfmm
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import pathlib
import signal
import threading
import time
import typing

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from serving import logs, metrics, replica_metrics
from tfmm.index import rows as rows_lib
from tfmm.index import store

_log = logging.getLogger("serving.replicator")
_CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_NO_INDEX = (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION)
FOLLOWING = "following"  # the state of a table, or of a server, that is kept up to date
_HOLD_S = 5.0  # before a refused batch is tried again


class TableStatus(typing.NamedTuple):
    """What a loaded version says about one of its tables."""

    encoder_version: str
    watermark: int
    size: int
    capacity: int


class Replica:
    """One server, as the replicator sees it.

    Args:
        target: host:port of its gRPC.
        model_name: the model's name there.
        timeout_s: per call.
    """

    def __init__(self, target: str, model_name: str, timeout_s: float = 10.0):
        self.target, self._model_name, self._timeout_s = target, model_name, timeout_s
        self._channel = grpc.insecure_channel(target, _CHANNEL_OPTIONS)
        self._models = model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._predictions = prediction_service_pb2_grpc.PredictionServiceStub(self._channel)

    def close(self) -> None:
        self._channel.close()

    def versions(self) -> list[int]:
        """Returns the versions in service."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = self._model_name
        response = self._models.GetModelStatus(request, timeout=self._timeout_s)
        available = get_model_status_pb2.ModelVersionStatus.AVAILABLE
        return sorted(found.version for found in response.model_version_status if found.state == available)

    def tables(self, version: int) -> dict[str, TableStatus]:
        """Returns the state of a version's tables by modality."""
        answer = self._predict(version, "index_status", {})
        columns = [answer[name].tolist() for name in ("modality", "encoder_version", "watermark", "size", "capacity")]
        return {
            modality.decode(): TableStatus(encoder.decode(), *numbers) for modality, encoder, *numbers in zip(*columns)
        }

    def upsert(self, version: int, modality: str, encoder_version: str, rows: rows_lib.IndexRows) -> np.ndarray:
        """Writes rows into a version's table; returns int32 [n] statuses, see `GraphTable.upsert`."""
        return self._predict(
            version,
            "upsert_items",
            {
                "modality": np.array(modality),
                "item_ids": rows.ids,
                "rows": rows.rows,
                "scales": rows.scales,
                "sequences": rows.sequences,
                "encoder_version": np.array(encoder_version),
            },
        )["statuses"]

    def _predict(self, version: int, signature: str, inputs: typing.Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = self._model_name, signature
        request.model_spec.version.value = version
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
        response = self._predictions.Predict(request, timeout=self._timeout_s)
        return {name: tf.make_ndarray(value) for name, value in response.outputs.items()}


@dataclasses.dataclass(frozen=True)
class Lag:
    """How far one table of one loaded version is behind the index."""

    target: str
    version: int  # 0: the server does not answer
    modality: str
    watermark: int
    rows: int  # changes that it does not have yet
    state: str  # following, or what keeps it from following

    @property
    def is_following(self) -> bool:
        return self.state == FOLLOWING


@dataclasses.dataclass
class _Table:
    encoder_version: str
    watermark: int
    state: str = FOLLOWING
    held_until: float = 0.0


class _Follower(threading.Thread):
    """Brings one replica up to date, in a thread of its own: a slow one does not delay the others."""

    def __init__(self, replicator: Replicator, target: str):
        super().__init__(name=f"replicator {target}", daemon=True)
        self._replicator = replicator
        self._replica = Replica(target, replicator.model_name)
        self._index = store.open_store(replicator.index)
        self._versions: dict[int, dict[str, _Table]] = {}
        self._next_refresh = 0.0
        self.state = "not reached yet"

    def run(self) -> None:
        stop = self._replicator.stop_requested
        try:
            while not stop.is_set():
                try:
                    if time.monotonic() >= self._next_refresh:
                        self._refresh()
                    num_full = sum(self._follow(version) for version in list(self._versions))
                    wait_s = 0.0 if num_full else self._replicator.poll_s
                except grpc.RpcError as error:
                    self._set_state(f"{error.code().name}: {error.details()}")
                    self._versions, self._next_refresh = {}, 0.0  # ask again how far it is
                    wait_s = self._replicator.refresh_s / 2
                except Exception as error:  # such as a locked index: say so, go on
                    _log.exception("%s", self._replica.target)
                    self._set_state(repr(error))
                    wait_s = self._replicator.refresh_s
                if wait_s:
                    stop.wait(wait_s)
        finally:
            self._replica.close()
            self._index.close()

    def _set_state(self, state: str) -> None:
        if state != self.state:
            _log.info("%s: %s", self._replica.target, state)
            self.state = state

    def _refresh(self) -> None:
        """Finds versions that came and went, and asks the tables how far they are."""
        available = self._replica.versions()
        versions = {}
        for version in available:
            versions[version] = self._versions.get(version, {})
            try:
                self._learn(versions[version], self._replica.tables(version))
                if version not in self._versions:
                    self._warm_up(version, versions[version])
            except grpc.RpcError as error:
                if error.code() not in _NO_INDEX:
                    raise  # else it is a model without tables, such as the one of IDs alone
        if versions.keys() != self._versions.keys():
            _log.info("%s: versions in service: %s", self._replica.target, available)
        self._versions = versions
        self._next_refresh = time.monotonic() + self._replicator.refresh_s
        self._set_state(FOLLOWING if versions else "no version in service")

    def _warm_up(self, version: int, tables: dict[str, _Table]) -> None:
        """Sends nothing to each table: a version's first upsert is slow, and the next new item is not to wait."""
        for modality, table in tables.items():
            if self._index.has_encoder(modality, table.encoder_version):
                nothing = self._index.changes(modality, table.encoder_version, table.watermark, limit=0)
                self._replica.upsert(version, modality, table.encoder_version, nothing)

    @staticmethod
    def _learn(tables: dict[str, _Table], found: dict[str, TableStatus]) -> None:
        for modality, status in found.items():
            table = tables.get(modality)
            if table is None or table.encoder_version != status.encoder_version:
                tables[modality] = _Table(status.encoder_version, status.watermark)
            else:
                table.watermark = status.watermark

    def _follow(self, version: int) -> bool:
        """Sends one batch per table that is behind; returns True where there may be more."""
        tables = self._versions[version]
        now, size = time.monotonic(), self._replicator.batch_size
        pending = {
            modality: table
            for modality, table in tables.items()
            if now >= table.held_until and self._changes(modality, table, 1)
        }
        if not pending:
            return False
        # A server that was started anew since would take this batch and hide the gap before it.
        self._learn(tables, self._replica.tables(version))
        has_more = False
        for modality in pending:
            table = tables[modality]
            rows = self._changes(modality, table, size)
            if rows is None:
                continue
            try:
                statuses = self._replica.upsert(version, modality, table.encoder_version, rows)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.OUT_OF_RANGE, *_NO_INDEX):
                    raise
                table.held_until = now + _HOLD_S
                table.state = f"{error.code().name}: {error.details()}"[:300]
                _log.error("%s version %d, %s: %s", self._replica.target, version, modality, table.state)
                continue
            table.watermark, table.state = int(rows.sequences[-1]), FOLLOWING
            has_more |= len(rows) == size
            _log.info(
                "%s version %d, %s: up to %d, %d rows",
                self._replica.target,
                version,
                modality,
                table.watermark,
                len(statuses),
            )
        return has_more

    def _changes(self, modality: str, table: _Table, limit: int) -> rows_lib.IndexRows | None:
        if not self._index.has_encoder(modality, table.encoder_version):
            return None
        rows = self._index.changes(modality, table.encoder_version, table.watermark, limit)
        return rows if len(rows) else None

    def lag(self, index: store.IndexStore) -> list[Lag]:
        versions = self._versions
        if not versions:
            return [Lag(self._replica.target, 0, "", 0, 0, self.state)]
        return [
            Lag(
                self._replica.target,
                version,
                modality,
                table.watermark,
                index.lag(modality, table.encoder_version, table.watermark)
                if index.has_encoder(modality, table.encoder_version)
                else 0,
                table.state,
            )
            for version, tables in versions.items()
            for modality, table in list(tables.items())
        ]


class Replicator:
    """Tails an item index and keeps every replica and loaded version of a model up to date.

    Args:
        index: the item index, a path or a URL (`tfmm.index.store.open_store`).
        targets: host:port of the replicas' gRPC; each one by itself, never a load balancer.
        model_name: the model's name there.
        poll_s: seconds between looks at the index.
        refresh_s: seconds between looks at the replicas' versions.
        batch_size: rows per call.
    """

    def __init__(
        self,
        index: str | pathlib.Path,
        targets: typing.Sequence[str],
        model_name: str = "tfmm",
        poll_s: float = 0.005,
        refresh_s: float = 0.5,
        batch_size: int = 256,
    ):
        if not targets:
            raise ValueError("`targets` must name at least one replica as host:port. Received: none.")
        self.index, self.model_name = str(index), model_name
        self.poll_s, self.refresh_s, self.batch_size = poll_s, refresh_s, batch_size
        self.stop_requested = threading.Event()
        self._index = store.open_store(index)
        self._followers = [_Follower(self, target) for target in targets]

    def __enter__(self) -> Replicator:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Starts one thread per replica."""
        for follower in self._followers:
            follower.start()

    def stop(self) -> None:
        """Ends the threads after the call at hand."""
        self.stop_requested.set()
        for follower in self._followers:
            if follower.ident is not None:
                follower.join()
        self._index.close()

    def lag(self) -> list[Lag]:
        """Returns how far each table of each loaded version is behind, now."""
        return [lag for follower in self._followers for lag in follower.lag(self._index)]

    def wait_caught_up(self, timeout_s: float) -> None:
        """Waits until every replica answers and has every change.

        Raises:
            TimeoutError: they do not in time.
        """
        deadline = time.monotonic() + timeout_s
        while lags := [lag for lag in self.lag() if not lag.version or lag.rows]:
            if time.monotonic() > deadline:
                raise TimeoutError(f"Replicas are still behind the item index after {timeout_s} s: {lags}")
            time.sleep(self.poll_s)


def main(arguments: typing.Sequence[str] | None = None) -> None:
    """Runs until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(
        prog="python -m serving.replicator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--index", required=True, help="item index, a path or a URL")
    parser.add_argument("--target", required=True, action="append", help="host:port of a replica's gRPC; repeat it")
    parser.add_argument("--model-name", default="tfmm")
    parser.add_argument("--ready-file", type=pathlib.Path, help="JSON file written once every replica is up to date")
    parser.add_argument("--status-file", type=pathlib.Path, help="JSON file with the lag of every table, each second")
    metrics.add_options(parser)
    logs.add_options(parser)
    options = parser.parse_args(arguments)
    logs.configure(options.log_format, options.log_level)
    replicator = Replicator(options.index, options.target, options.model_name)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: replicator.stop_requested.set())
    is_ready, next_report = options.ready_file is None, 0.0
    registry = metrics.registry(replica_metrics.LagMetrics(replicator.lag))
    with metrics.served(registry, options.metrics_port, options.metrics_host), replicator:
        while not replicator.stop_requested.wait(1.0 if is_ready else 0.02):
            lags = replicator.lag()
            if not is_ready and all(lag.version and lag.rows == 0 for lag in lags):
                is_ready = True
                _write_json(options.ready_file, {"pid": os.getpid()})
            if options.status_file is not None and time.monotonic() >= next_report:
                next_report = time.monotonic() + 1.0
                _write_json(options.status_file, {"tables": [dataclasses.asdict(lag) for lag in lags]})


def _write_json(path: pathlib.Path, values: typing.Mapping[str, typing.Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values) + "\n")
    temporary.replace(path)


if __name__ == "__main__":
    main()
