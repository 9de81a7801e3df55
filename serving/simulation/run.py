"""Drives the simulated A/B: processes up, the days hour by hour, what was found, and down again, however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import pathlib
import shutil
import threading
import time
import typing
from concurrent import futures

import pyarrow.parquet as pq
from rich import console as rich_console

from serving import client as client_lib
from serving.demo import figures
from serving.demo.trained import Trained
from serving.deploy import started
from serving.simulation import outcome
from serving.simulation.arms import Arm, Processes
from serving.simulation.settings import Settings
from serving.simulation.world import HOURS, World
from serving.streaming import event_log, events
from tfmm import config as config_lib
from tfmm import folder_lock
from tfmm.config import RunConfig
from tfmm.index import copying, store
from tfmm.quickstart import processes
from tfmm.stages.folders import ID, MULTIMODAL

FOLDER, RESULT = "simulation", "simulation.json"
INTERRUPTED = 130  # exit code
_PORTS = 3  # of an arm


class Simulation:
    """One run of it, in the folder `simulation` of a workdir, which it empties first.

    Args:
        trained: the workdir, verified.
        run: of its models.
        settings: how much.
        json_path: gets what was found, too; None: the folder alone does.
    """

    def __init__(self, trained: Trained, run: RunConfig, settings: Settings, json_path: pathlib.Path | None = None):
        self._trained, self._run, self._settings, self._json_path = trained, run, settings, json_path
        self._models = {ID: trained.id_model, MULTIMODAL: trained.model}
        self._rules = settings.rules(run.ctr.batch_size)
        self._folder = trained.workdir / FOLDER
        self._console, self._begun = rich_console.Console(), time.monotonic()

    def main(self) -> int:
        """Runs it for the command line; returns the exit code.

        Raises:
            BlockingIOError: a simulation is at work in the workdir.
        """
        try:
            with processes.terminate_as_interrupt(), folder_lock.hold(self._folder):
                found = self._simulate()
        except KeyboardInterrupt:
            return INTERRUPTED
        except (ChildProcessError, TimeoutError, RuntimeError, client_lib.PredictError) as error:
            self._console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
        self._console.print(outcome.table(found["results"]))
        for line in (*outcome.METRICS.values(), found["in_words"]):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        return 0

    def _say(self, text: str) -> None:
        at = f"{time.monotonic() - self._begun:5.0f} s"
        self._console.print(f"{at}  {text}", markup=False, highlight=False, soft_wrap=True)

    def _simulate(self) -> dict[str, typing.Any]:
        """Starts the processes, lives through the days, and returns what was found."""
        _empty(self._folder)
        logs = self._folder / "logs"
        logs.mkdir()
        logging.basicConfig(filename=logs / "simulation.log", level=logging.INFO, force=True)
        self._say(outcome.LABEL)
        world = World(self._run, self._trained.tables, self._settings.seed, self._settings.candidates)
        with contextlib.ExitStack() as stack:
            running = Processes(stack, [], self._folder, threading.Event())
            index = stack.enter_context(store.open_store(self._folder / "items.sqlite"))
            with store.open_store(self._trained.index, create=False) as source:
                copying.copy(source, index)
            log = stack.enter_context(event_log.SQLiteEventLog(self._folder / "events.sqlite"))
            ready_file = self._folder / "stream.json"
            running.start(
                "stream", "serving.streaming", "--events", log.path, "--index", index.url, "--encoders",
                self._trained.encoders, "--ready-file", ready_file,
            )  # fmt: skip
            ports = started.free_ports(_PORTS * len(self._models))
            arms = [
                Arm(name, model, index.url, self._run, world, self._rules, running, ports[_PORTS * n :][:_PORTS])
                for n, (name, model) in enumerate(self._models.items())
            ]
            running.wait("The start", lambda: ready_file.exists() and all(arm.is_ready for arm in arms))
            self._say("up: the stream, and of each arm a server and a near-line trainer")
            result = self._live(world, arms, ItemArrival(self._run, world, log, index, arms, running), running)
        if self._json_path is not None:
            _write_json(result, self._json_path)
        return result

    def _live(
        self, world: World, arms: typing.Sequence[Arm], arrival: ItemArrival, running: Processes
    ) -> dict[str, typing.Any]:
        """Lives through the days: each hour new items, then visits; at the end of each period new models.

        Returns:
            What was found, which is written after each period, so that a run that fails leaves what came before.
        """
        result: dict[str, typing.Any] = {}
        num_visits, num_hours = self._rules.slice_rows // self._rules.num_slots, self._settings.push_hours
        with futures.ThreadPoolExecutor(len(arms)) as pool:
            try:
                for period in range(self._settings.num_periods):
                    for hour in range(num_hours):
                        now = period * num_hours + hour
                        arrival.bring(now)
                        count = num_visits * (hour + 1) // num_hours - num_visits * hour // num_hours
                        visits = world.visit(now, count)
                        list(pool.map(Arm.serve, arms, itertools.repeat(visits)))
                    verdicts = list(pool.map(Arm.end_period, arms, itertools.repeat(period + 1)))
                    self._say_period(period, arms, verdicts)
                    result = self._write(world, arms)
            finally:
                running.is_over.set()  # before the pool waits for its threads
        return result

    def _say_period(
        self, period: int, arms: typing.Sequence[Arm], verdicts: typing.Sequence[typing.Mapping[str, typing.Any]]
    ) -> None:
        hours, said = (period + 1) * self._settings.push_hours, []
        for arm, verdict in zip(arms, verdicts):
            clicks = sum(one.clicked for one in arm.shown[-self._rules.slice_rows :])
            said.append(f"{arm.name}: CTR {clicks / self._rules.slice_rows:.2%}, {figures.in_words(verdict)}")
        self._say(f"day {(hours - 1) // HOURS + 1}, {(hours - 1) % HOURS + 1} h | {' | '.join(said)}")

    def _write(self, world: World, arms: typing.Sequence[Arm]) -> dict[str, typing.Any]:
        """Writes impressions and results of the periods so far, and returns the results."""
        impressions = {arm.name: outcome.table_of(arm.shown) for arm in arms}
        for name, found in impressions.items():
            pq.write_table(found, self._folder / f"{name}.parquet")
        results = outcome.measure(impressions, list(world.users))
        result = {
            "simulation": True,
            "label": outcome.LABEL,
            "in_words": outcome.in_words(results),
            "results": results,
            "settings": dataclasses.asdict(self._settings),
            "periods": len(arms[0].verdicts),
            "visits": len({one.visit for one in arms[0].shown}),
            "marketplace": config_lib.to_dict(self._run.marketplace),
            "candidates": {
                arm.name: [{"passed": one["passed"], "reasons": one["reasons"]} for one in arm.verdicts] for arm in arms
            },
            "seconds": round(time.monotonic() - self._begun, 1),
        }
        _write_json(result, self._folder / RESULT)
        return result


class ItemArrival:
    """Sends new items as events, and waits until the stream has embedded them and every server has their rows.

    Args:
        run: of the models.
        world: whose items arrive.
        log: of events, which the stream reads.
        index: that it writes.
        arms: of which each has a server.
        running: the processes.
    """

    def __init__(
        self, run: RunConfig, world: World, log: event_log.SQLiteEventLog, index: store.IndexStore,
        arms: typing.Sequence[Arm], running: Processes,
    ):  # fmt: skip
        self._run, self._world, self._log, self._index = run, world, log, index
        self._arms, self._running = arms, running

    def bring(self, hour: int) -> None:
        """Brings the items of an hour.

        Raises:
            RuntimeError: the stream refused one.
        """
        arrived = [self._world.items[item_id] for item_id in self._world.arrive(hour)]
        payloads = [events.event_of_row(self._run, item.row, item.values) for item in arrived]
        if not payloads:
            return
        last = self._log.append(payloads)
        self._running.wait("The stream", lambda: self._index.position(self._log.name) >= last)
        if letters := self._index.dead_letters(self._log.name):
            raise RuntimeError(f"The stream must take every new item. Received: {letters[0].reason}")
        self._running.wait("The servers' index", lambda: all(arm.has_index(self._index) for arm in self._arms))


def _write_json(result: typing.Mapping[str, typing.Any], path: pathlib.Path) -> None:
    path.write_text(json.dumps(result, indent=2) + "\n")


def _empty(folder: pathlib.Path) -> None:
    """Removes what an earlier simulation left, but for the lock."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != folder_lock.FILE:
            path.unlink()
