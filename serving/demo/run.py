"""Drives the demo: up, a line a second, and down in order, however it ends."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import time
import typing

from rich import console as rich_console
from rich import live

from serving import client as client_lib
from serving.demo import figures, machinery
from serving.demo.traffic import Traffic
from serving.demo.trained import Trained, verify
from serving.deploy import started
from serving.streaming.kafka_events import KafkaTopic
from tfmm import folder_lock, redis_client
from tfmm.quickstart import processes

INTERRUPTED = 130  # exit code where it was not up yet
_EVERY_S = 1.0


@dataclasses.dataclass(frozen=True)
class Options:
    """How the demo runs."""

    seconds: float | None = None  # after which it ends; None: at Ctrl-C or SIGTERM
    events_per_s: float = 5.0  # new items
    requests_per_s: float = 10.0
    rules: machinery.Rules = dataclasses.field(default_factory=machinery.Rules)


class Demo:
    """One run of it.

    Args:
        trained: the workdir.
        options: how.
    """

    def __init__(self, trained: Trained, options: Options):
        self._trained, self._options = trained, options
        self._console, self._begun = rich_console.Console(), time.monotonic()
        self._is_up = False

    def main(self) -> int:
        """Runs it for the command line; returns the exit code.

        Raises:
            ValueError: something lacks, and nothing was started.
            BlockingIOError: a demo is at work in the workdir.
        """
        verify(self._trained)
        logs = self._trained.folder / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        logging.basicConfig(filename=logs / "demo.log", level=logging.INFO, force=True)
        os.environ.pop(redis_client.PASSWORD, None)  # of another Redis; this one has none
        try:
            with processes.terminate_as_interrupt(), folder_lock.hold(self._trained.folder):
                try:
                    self._run()
                finally:
                    self._say("all is down")
        except KeyboardInterrupt:
            return 0 if self._is_up else INTERRUPTED
        except (ChildProcessError, TimeoutError, RuntimeError) as error:
            self._console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
            return 1
        return 0

    def _say(self, text: str) -> None:
        at = f"{time.monotonic() - self._begun:5.1f} s"
        self._console.print(f"{at}  {text}", markup=False, highlight=False, soft_wrap=True)

    def _run(self) -> None:
        trained, options = self._trained, self._options
        with contextlib.ExitStack() as stack:
            up = stack.enter_context(machinery.running(trained, options.rules, self._say))
            items = stack.enter_context(KafkaTopic(up.topic(machinery.ITEMS)))
            labels = stack.enter_context(KafkaTopic(up.topic(machinery.LABELS)))
            traffic = Traffic(
                typing.cast(typing.Any, trained.run), trained.tables, up.server, items, labels,
                options.events_per_s, options.requests_per_s,
            )  # fmt: skip
            client = stack.enter_context(client_lib.RankingClient(up.server, model_name=machinery.MODEL_NAME))
            meter = figures.Meter(up, stack.enter_context(traffic), client)
            self._say(
                f"up: gRPC {up.server}, REST {started.HOST}:{up.ports.rest}, Kafka {up.kafka}, Redis {started.HOST}:"
                f"{up.ports.redis}, logs {trained.folder / 'logs'}. Ctrl-C ends it."
            )
            self._is_up = True
            self._show(up, traffic, meter)

    def _show(self, up: machinery.Running, traffic: Traffic, meter: figures.Meter) -> None:
        """Shows the figures each second until the time is over, or a process ends."""
        begun = due = time.monotonic()
        with contextlib.ExitStack() as stack:
            screen = None
            if self._console.is_terminal:
                screen = stack.enter_context(live.Live(console=self._console, auto_refresh=False))
            while self._options.seconds is None or due - begun < self._options.seconds:
                due += _EVERY_S
                time.sleep(max(0.0, due - time.monotonic()))
                up.check()
                if traffic.fault:
                    raise RuntimeError(f"The traffic ended: {traffic.fault}")
                found = meter.read()
                if screen is None:
                    self._say(figures.line(found))
                else:
                    screen.update(figures.table(found), refresh=True)
