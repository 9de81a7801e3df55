"""Sends the item index's changes to every replica and loaded version of a model, over TF Serving's gRPC.

An upsert lives only in the memory of one loaded version of one server. So the replicator asks each version how
far it is (its watermark: at first, that of the snapshot which it was exported with) and sends what came later; a
server that starts anew, or loads another version, is brought up to date in the same way, and told when it is: until
then, one that waits for it (--index_wait_seconds) does not serve that version. A version of an encoder that is later
than the active one waits until the index covers enough items by it, too.

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

from serving import channel, logs, metrics, replica_metrics
from serving.coverage_gate import CoverageGate
from serving.replica import NO_INDEX, Replica, TableStatus
from tfmm.index import coverage, graph_table, store
from tfmm.index import rows as rows_lib

_log = logging.getLogger("serving.replicator")
FOLLOWING = "following"  # the state of a table, or of a server, that is kept up to date
_AHEAD = (
    "ahead: it holds change %d, and the index's newest is %d, so another index wrote to it, or this one is an older "
    "copy. All rows are sent again; restart the server to be rid of what is not of this index"
)
_UNKNOWN = "the index has no rows of encoder %s: is it another index, or is the stream to be started with that encoder?"
_HOLD_S = 5.0  # before a refused batch is tried again


@dataclasses.dataclass(frozen=True)
class Lag:
    """How far one table of one loaded version is behind the index."""

    target: str
    version: int  # 0: the server does not answer
    modality: str
    watermark: int
    rows: int  # changes that it does not have yet
    state: str  # following, or what keeps it from following
    model_name: str = "tfmm"

    @property
    def is_following(self) -> bool:
        return self.state == FOLLOWING


@dataclasses.dataclass
class _Table:
    encoder_version: str
    watermark: int
    held_until: float = 0.0
    refusal: str = ""  # what the server had against the last batch
    ahead: str = ""  # what is said while `ahead_at` is known
    ahead_at: int | None = None  # its watermark when that was beyond the index: from there on its word does not count
    complete_at: int = -1  # the index's newest change when it lacked none; -1: not known
    has_encoder: bool = True  # whether the index had its encoder at the last refresh

    @property
    def state(self) -> str:
        if not self.has_encoder:
            return _UNKNOWN % self.encoder_version
        return self.refusal or self.ahead or FOLLOWING

    def is_due(self, newest: int, now: float) -> bool:
        """Whether it may lack a change: looks at an index cost it something, in Redis above all."""
        return now >= self.held_until and newest != self.complete_at

    def learn(self, watermark: int, newest: int) -> None:
        """Takes what the server says, which has less where it was started anew."""
        if self.ahead_at is not None and watermark >= self.ahead_at:
            return  # still the one that was ahead, though the index may have come as far: what was sent counts
        if watermark <= newest:
            self._move_to(watermark)
            if self.ahead_at is not None:
                self.ahead_at, self.ahead, self.refusal = None, "", ""
        else:
            self._move_to(0)
            self.ahead_at, self.ahead, self.refusal = watermark, _AHEAD % (watermark, newest), ""

    def _move_to(self, watermark: int) -> None:
        if watermark != self.watermark:
            self.watermark, self.complete_at = watermark, -1


class _Follower(threading.Thread):
    """Brings one replica up to date, in a thread of its own: a slow one does not delay the others."""

    def __init__(self, replicator: Replicator, target: str):
        super().__init__(name=f"replicator {target}", daemon=True)
        self._replicator = replicator
        self._replica = Replica(target, replicator.model_name, access=replicator.access)
        self._index = store.open_store(replicator.index)
        self._gate = CoverageGate(self._index, replicator.index, replicator.min_coverage)
        self._versions: dict[int, dict[str, _Table]] = {}
        self._encoders: set[tuple[str, str]] = set()  # the index's at the last refresh: one may be retired, or come
        self._waiting: dict[int, int] = {}  # versions not served yet, with the change that they need
        self._next_refresh = 0.0
        self.state = "not reached yet"

    def run(self) -> None:
        stop = self._replicator.stop_requested
        try:
            while not stop.is_set():
                try:
                    if time.monotonic() >= self._next_refresh:
                        self._refresh()
                    newest = self._index.newest_sequence()
                    num_full = sum(self._follow(version, newest) for version in list(self._versions))
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
            self._gate.close()
            self._replica.close()
            self._index.close()

    def _set_state(self, state: str) -> None:
        if state != self.state:
            _log.info("%s: %s", self._replica.target, state)
            self.state = state

    def _refresh(self) -> None:
        """Finds versions that came and went, and asks the tables how far they are."""
        available = self._replica.versions()
        self._encoders = {(entry.modality, entry.encoder_version) for entry in self._index.encoders()}
        versions: dict[int, dict[str, _Table]] = {}
        waiting: dict[int, int] = {}
        for version, is_served in available.items():
            tables = self._versions.get(version, {})
            try:
                self._learn(version, tables, self._replica.tables(version))
                if version not in self._versions:
                    self._warm_up(version, tables)
            except grpc.RpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND and not is_served:
                    continue  # it is still loading
                if error.code() not in NO_INDEX:
                    raise  # else it is a model without tables, such as the one of IDs alone
            else:
                if not is_served and version in self._waiting:
                    waiting[version] = self._waiting[version]
                elif not is_served and self._gate.is_open((m, table.encoder_version) for m, table in tables.items()):
                    waiting[version] = self._index.newest_sequence()  # later changes do not keep it out of service
            versions[version] = tables
        self._waiting = waiting
        if versions.keys() != self._versions.keys():
            _log.info("%s: versions that are loaded: %s", self._replica.target, list(versions))
        self._versions = versions
        self._next_refresh = time.monotonic() + self._replicator.refresh_s
        self._set_state(FOLLOWING if versions else "no version in service")

    def _warm_up(self, version: int, tables: dict[str, _Table]) -> None:
        """Sends nothing to each table: a version's first upsert is slow, and the next new item is not to wait."""
        for modality, table in tables.items():
            if table.has_encoder:
                nothing = self._index.changes(modality, table.encoder_version, table.watermark, limit=0)
                self._replica.upsert(version, modality, table.encoder_version, nothing)

    def _learn(self, version: int, tables: dict[str, _Table], found: dict[str, TableStatus]) -> None:
        newest = self._index.newest_sequence()
        for modality, status in found.items():
            table = tables.get(modality)
            if table is None or table.encoder_version != status.encoder_version:
                table = tables[modality] = _Table(status.encoder_version, 0)
            before = table.state
            table.has_encoder = (modality, status.encoder_version) in self._encoders
            table.learn(status.watermark, newest)
            if table.state not in (before, FOLLOWING):
                level = logging.ERROR if table.has_encoder else logging.WARNING
                _log.log(level, "%s version %d, %s: %s", self._replica.target, version, modality, table.state)

    def _follow(self, version: int, newest: int) -> bool:
        """Sends one batch per table that is behind the newest change; returns True where there may be more."""
        tables = self._versions[version]
        now, size = time.monotonic(), self._replicator.batch_size
        if version not in self._waiting and not any(table.is_due(newest, now) for table in tables.values()):
            return False
        # A server that was started anew since would take this batch and hide the gap before it.
        found = self._replica.tables(version)
        self._learn(version, tables, found)
        pending = self._pending(tables, newest, now)
        firsts = [int(rows.sequences[0]) for rows in pending.values()]
        if version in self._waiting and all(first > self._waiting[version] for first in firsts):
            self._replica.say_caught_up(version, found)
            del self._waiting[version]
        has_more = False
        for modality, rows in pending.items():
            table = tables[modality]
            try:
                statuses = self._replica.upsert(version, modality, table.encoder_version, rows)
            except grpc.RpcError as error:
                if error.code() not in (grpc.StatusCode.OUT_OF_RANGE, *NO_INDEX):
                    raise
                table.held_until = now + _HOLD_S
                table.refusal = f"{error.code().name}: {error.details()}"[:300]
                _log.error("%s version %d, %s: %s", self._replica.target, version, modality, table.refusal)
                continue
            table.watermark = int(rows.sequences[-1])
            table.complete_at, table.refusal = newest if len(rows) < size else -1, ""
            has_more |= len(rows) == size
            _log.info(
                "%s version %d, %s: up to %d, %d rows, %d of them older than the server's",
                self._replica.target,
                version,
                modality,
                table.watermark,
                len(statuses),
                (statuses == graph_table.STALE).sum(),
            )
        return has_more

    def _pending(self, tables: dict[str, _Table], newest: int, now: float) -> dict[str, rows_lib.IndexRows]:
        """Returns the next changes to send, by modality that has some; one that was refused waits for its time."""
        found = {}
        for modality, table in tables.items():
            if not table.is_due(newest, now):
                continue
            rows = self._changes(modality, table)
            if rows is None:
                table.complete_at = newest
            else:
                found[modality] = rows
        return found

    def _changes(self, modality: str, table: _Table) -> rows_lib.IndexRows | None:
        if not self._index.has_encoder(modality, table.encoder_version):  # now: it may have come since the refresh
            return None
        size = self._replicator.batch_size
        rows = self._index.changes(modality, table.encoder_version, table.watermark, size)
        return rows if len(rows) else None

    def lag(self, index: store.IndexStore) -> list[Lag]:
        versions = self._versions
        if not versions:
            return [Lag(self._replica.target, 0, "", 0, 0, self.state, self._replicator.model_name)]
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
                self._replicator.model_name,
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
        access: what the replicas ask of their callers.
        min_coverage: of the active encoder's items, the share that a later one must have before a version that was
            made with it is served, where the server waits for its index; see `CoverageGate`.
    """

    def __init__(
        self,
        index: str | pathlib.Path,
        targets: typing.Sequence[str],
        model_name: str = "tfmm",
        poll_s: float = 0.005,
        refresh_s: float = 0.5,
        batch_size: int = 256,
        access: channel.Access = channel.NO_ACCESS,
        min_coverage: float = coverage.ENOUGH,
    ):
        if not targets:
            raise ValueError("`targets` must name at least one replica as host:port. Received: none.")
        self.index, self.model_name, self.access = str(index), model_name, access
        self.poll_s, self.refresh_s, self.batch_size = poll_s, refresh_s, batch_size
        self.min_coverage = min_coverage
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


def parser() -> argparse.ArgumentParser:
    """Returns the command line."""
    result = argparse.ArgumentParser(
        prog="python -m serving.replicator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--index", required=True, help="item index, a path or a URL")
    result.add_argument("--target", required=True, action="append", help="host:port of a replica's gRPC; repeat it")
    result.add_argument("--model-name", default="tfmm")
    result.add_argument(
        "--min-coverage", type=float, default=coverage.ENOUGH,
        help="of the active encoder's items, the share that a later one must have before its versions are served",
    )  # fmt: skip
    result.add_argument("--ready-file", type=pathlib.Path, help="JSON file written once every replica is up to date")
    result.add_argument("--status-file", type=pathlib.Path, help="JSON file with the lag of every table, each second")
    channel.add_options(result)
    metrics.add_options(result)
    logs.add_options(result)
    return result


def main(arguments: typing.Sequence[str] | None = None) -> None:
    """Runs until SIGTERM or SIGINT."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    logs.configure(options.log_format, options.log_level)
    try:
        access = channel.from_options(options)
        settings = {"access": access, "min_coverage": options.min_coverage}
        replicator = Replicator(options.index, options.target, options.model_name, **settings)
    except (ValueError, OSError) as error:
        command_line.error(str(error))
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
