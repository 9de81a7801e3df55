"""One arm of the A/B: a click model in service, its shoppers, its log, and its near-line trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import threading
import time
import typing

import grpc
import numpy as np

from serving import logging_client
from serving.demo import figures
from serving.deploy import started
from serving.nearline import candidates
from serving.page import counters
from serving.replica import Replica
from serving.simulation.world import Visit, World
from serving.streaming import event_log
from tfmm.config import RunConfig
from tfmm.data import served
from tfmm.data.instants import DAY_US
from tfmm.export import saved_model
from tfmm.features import FeatureSet
from tfmm.index import store
from tfmm.marketplace import auction
from tfmm.quickstart import processes
from tfmm.stages.folders import SERVING

# Of wall time: an impression is told within the window, and its records are written so late at most.
WINDOW_S, LATENESS_S = 3.0, 10.0
_LOST = ("late_labels", "dead_letters")  # records that bring no row, by the trainer's metrics
_FOREVER = 1_000_000  # seconds, or minutes: rows alone end blocks and slices
_STOP_S = 30.0  # for a process to end by itself
_STEP_S = 1800.0  # for what is waited for, at most
_POLL_S = 0.05
_LOOK_S = 0.5  # between looks at a verdict and the trainer's metrics


@dataclasses.dataclass(frozen=True)
class Rules:
    """How much is shown, and when the near-line trainer's model is judged; see `settings.Settings.rules`."""

    num_slots: int
    slice_rows: int  # impressions of a period
    judged_rows: int  # the newest of them


class Shown(typing.NamedTuple):
    """An impression."""

    visit: int
    time_us: int  # simulated
    user_id: int
    item_id: int
    slot: int  # from 1
    is_new: bool  # the item is younger than 24 h
    version: int  # period whose end brought the model in service; 0: as it was trained before
    score: float
    bid: float
    price: float  # of a click
    clicked: bool


class Processes(typing.NamedTuple):
    """The simulation's processes, and what its threads wait for."""

    stack: contextlib.ExitStack  # ends them
    children: list[processes.Child]
    folder: pathlib.Path
    is_over: threading.Event  # threads end when it is set

    def check(self) -> None:
        """Raises ChildProcessError for a process that has ended, and RuntimeError where all of it is over."""
        for child in self.children:
            child.require_running()
        if self.is_over.is_set():
            raise RuntimeError("The simulation was ended.")

    def start(self, name: str, *arguments: object) -> None:
        """Starts a module that ends before those that were started before it."""
        log = self.folder / "logs" / f"{name.replace(' ', '_')}.log"
        child = processes.Child(name, [str(one) for one in arguments], log)
        self.stack.callback(child.stop, _STOP_S)
        self.children.append(child)

    def wait(self, what: str, is_done: typing.Callable[[], bool], poll_s: float = _POLL_S) -> None:
        """Waits for something; raises as `check` does, and TimeoutError where it is late."""
        deadline = time.monotonic() + _STEP_S
        while not is_done():
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} took more than {_STEP_S:.0f} s. See {self.folder / 'logs'}.")
            time.sleep(poll_s)


class Arm:
    """A model in service and all that follows from it; the world is the same for every arm.

    Args:
        name: of the model, which is its name in service.
        model_dir: the click model, as `click_model.train_click_model` wrote it.
        index_url: the item index.
        run: of the model.
        world: users, items and visits.
        rules: of slots and slices.
        running: gets the server and the trainer.
        ports: for gRPC, REST, and the trainer's metrics.

    Attributes:
        shown: all impressions.
        verdicts: of the near-line trainer's candidates, one a period.
    """

    def __init__(
        self,
        name: str,
        model_dir: pathlib.Path,
        index_url: str,
        run: RunConfig,
        world: World,
        rules: Rules,
        running: Processes,
        ports: typing.Sequence[int],
    ):
        self.name, self._features, self._rules = name, run.feature_set, rules
        self._world, self._running = world, running
        self._users = {user: dict(values) for user, values in world.users.items()}
        self._folder = running.folder / name
        self._has_tables = bool(saved_model.read_manifest(model_dir / SERVING)["index"])
        self.shown: list[Shown] = []
        self.verdicts: list[dict[str, typing.Any]] = []
        self._version = 0
        grpc_port, rest_port, self._trainer_port = ports
        self._target = f"{started.HOST}:{grpc_port}"
        versions, served_log = self._folder / "versions", f"sqlite:///{self._folder / 'served.sqlite'}"
        labels, self._ready_file = self._folder / "labels.sqlite", self._folder / "server.json"
        shutil.copytree(model_dir / SERVING, versions / "1")
        running.start(
            f"{name} server", "tfmm.cli", "serve", f"--model_name={name}", f"--model_base_path={versions}",
            f"--port={grpc_port}", f"--rest_api_port={rest_port}", f"--ready_file={self._ready_file}",
            f"--served_log={served_log}", *(["--index", index_url] if self._has_tables else []),
        )  # fmt: skip
        running.start(
            f"{name} trainer", "tfmm.cli", "nearline", "--log", served_log, "--log", f"sqlite:///{labels}", "--models",
            model_dir, "--index", index_url, "--workdir", self._folder / "nearline", "--output", versions,
            f"--server={self._target}", f"--model-name={name}", f"--window-seconds={WINDOW_S}",
            f"--lateness-seconds={LATENESS_S}", f"--slice-rows={rules.slice_rows}",
            f"--judged-rows={rules.judged_rows}", f"--slice-minutes={_FOREVER}", f"--block-seconds={_FOREVER}",
            f"--metrics-port={self._trainer_port}",
        )  # fmt: skip
        self._labels = running.stack.enter_context(event_log.SQLiteEventLog(labels))
        self._client = logging_client.LoggingClient(self._target, model_name=name, log=None)
        running.stack.callback(self._client.close)
        self._replica = Replica(self._target, name)
        running.stack.callback(self._replica.close)

    @property
    def is_ready(self) -> bool:
        """Whether server and trainer are at work."""
        return self._ready_file.exists() and started.answers(self._trainer_port)

    def _serves(self, version: int) -> bool:
        try:
            return self._replica.versions().get(version, False)
        except grpc.RpcError:  # the server is busy
            return False

    def has_index(self, index: store.IndexStore) -> bool:
        """Returns whether the version in service has all that the index has; of ids alone, always."""
        if not self._has_tables:
            return True
        try:
            newest = max(version for version, is_served in self._replica.versions().items() if is_served)
            tables = self._replica.tables(newest)
        except (ValueError, grpc.RpcError):  # between two versions
            return False
        return all(one.watermark >= index.last_sequence(name, one.encoder_version) for name, one in tables.items())

    def serve(self, visits: typing.Sequence[Visit]) -> None:
        """Ranks for each visit, shows what wins the auction, and tells the log what was shown and clicked."""
        for visit in visits:
            self._running.check()
            self._serve(visit)

    def _serve(self, visit: Visit) -> None:
        items = [self._world.items[item] for item in visit.pool]
        columns = {name: [item.values[name] for item in items] for name in items[0].values}
        user, request_id = self._users[visit.user_id], f"{visit.number}"
        now = time.time()  # before the request's own, so that it is within the window however long the answer takes
        scores = self._client.rank(user, columns, request_id=request_id)
        bids = np.array([item.bid for item in items])
        places, prices = auction.second_price(scores, bids, self._rules.num_slots)
        if len(places) < self._rules.num_slots:
            raise RuntimeError(
                f"A visit must fill {self._rules.num_slots} slots. Received: {len(places)} items that take part. Let "
                "more compete: --candidates."
            )
        said = []
        for slot, (place, price) in enumerate(zip(places.tolist(), prices.tolist()), 1):
            item, item_id, clicked = items[place], visit.pool[place], visit.clicks[place]
            is_new = visit.time_us - item.created_at_us < DAY_US
            self.shown.append(Shown(
                visit.number, visit.time_us, visit.user_id, item_id, slot, is_new, self._version, float(scores[place]),
                item.bid, price, clicked,
            ))  # fmt: skip
            field = self._features.label.column if clicked else served.SHOWN
            said.append(json.dumps({"request_id": request_id, "item_id": item_id, "time": now, field: True}).encode())
            if clicked:
                remember(user, self._features, item.values)
        self._labels.append(said)

    def end_period(self, number: int) -> dict[str, typing.Any]:
        """Waits until the trainer has trained over the period and its candidate is judged, and in service if it passed.

        Args:
            number: of the period, from 1.
        Returns:
            The verdict.
        Raises:
            RuntimeError: an impression is lost to the trainer, so that no verdict would ever come.
        """
        folder = self._folder / "nearline"

        def is_judged() -> bool:
            require_none_lost(self.name, self._trainer_port, folder)
            found = candidates.last_verdict(folder)
            return found is not None and found[0] >= number

        self._running.wait(f"The verdict of period {number} of {self.name}", is_judged, _LOOK_S)
        verdict = typing.cast(tuple[int, dict[str, typing.Any]], candidates.last_verdict(folder))[1]
        if verdict["passed"]:
            version = int(pathlib.Path(verdict["version"]).name)
            self._running.wait(f"Loading {verdict['version']}", lambda: self._serves(version))
            self._version = number
        self.verdicts.append(verdict)
        return verdict


def require_none_lost(name: str, port: int, folder: pathlib.Path) -> None:
    """Raises a RuntimeError where a near-line trainer has no row of some impression: its slice is never full then.

    Args:
        name: of the arm.
        port: of the trainer's metrics.
        folder: its workdir.
    """
    records = counters.read(figures.page(port)).get("tfmm_nearline_records", {})
    kinds = {dict(labels)["kind"]: int(count) for labels, count in records.items()}
    if lost := [f"{kinds[kind]} {kind}" for kind in _LOST if kinds.get(kind)]:
        raise RuntimeError(
            f"The trainer of {name} must take every impression within {WINDOW_S + LATENESS_S:.0f} s. Received: "
            f"{', '.join(lost)}. Run it again with less beside it on this machine; reasons of dead letters stand in "
            f"{folder / 'dead_letters'}."
        )


def remember(user: dict[str, typing.Any], features: FeatureSet, item: typing.Mapping[str, typing.Any]) -> None:
    """Adds a click to the histories of a user's side of requests, as the newest.

    Args:
        user: by column; changed.
        features: with sequences of items' features alone.
        item: values by feature.
    """
    for column in features.served:
        sequence = column.sequence
        if sequence is not None and (not sequence.actions or "click" in sequence.actions):
            user[column.name] = [*user[column.name], item[column.feature.name]][-sequence.length :]
