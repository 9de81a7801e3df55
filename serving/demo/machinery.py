"""The demo's processes: started in the order in which they need each other, ended in the reverse one."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
import shutil
import typing

from serving.demo.trained import Trained
from serving.deploy import started
from serving.deploy.kafka import broker
from serving.deploy.redis import server as redis_server
from tfmm import artifacts
from tfmm.index import copying, store
from tfmm.quickstart import processes

MODEL_NAME = "tfmm"
ITEMS, LETTERS, SERVED, LABELS = TOPICS = ("items", "items-dead", "served", "labels")
PREFIX = "items"  # of the index in Redis
STOP_S = 30.0  # for a process to end by itself


@dataclasses.dataclass(frozen=True)
class Rules:
    """How the near-line trainer works."""

    window_s: float = 5.0  # clicks come sooner
    slice_rows: int = 2000


@dataclasses.dataclass(frozen=True)
class Ports:
    """What listens on 127.0.0.1; a later demo takes those that are free, since the trainer's notes name them."""

    redis: int
    grpc: int
    rest: int
    stream_metrics: int
    server_metrics: int
    trainer_metrics: int


class Running:
    """The processes that are up, and where they are reached.

    Attributes:
        children: the processes, in the order of their start.
        ports: where they listen.
        kafka: host:port of the broker.
        index: its URL.
        trainer_dir: the near-line trainer's workdir.
    """

    def __init__(self, folder: pathlib.Path, stack: contextlib.ExitStack):
        self._folder, self._stack = folder, stack
        self.children: list[processes.Child] = []
        self.ports, self.kafka = _ports(folder / "ports.json"), ""
        self.index = f"redis://{started.HOST}:{self.ports.redis}/0?prefix={PREFIX}"
        self.trainer_dir = folder / "nearline"

    @property
    def server(self) -> str:
        """host:port of the model server's gRPC."""
        return f"{started.HOST}:{self.ports.grpc}"

    def topic(self, name: str) -> str:
        return f"kafka://{self.kafka}/{name}"

    def check(self) -> None:
        """Raises ChildProcessError for a process that is no more, with the end of its log."""
        for child in self.children:
            child.require_running()

    def start(self, name: str, *arguments: object, ready: str | None = None, **how: typing.Any) -> processes.Child:
        """Starts a process that ends before those that were started before it.

        Args:
            name: as messages call it.
            *arguments: of it.
            ready: name of the file in the folder that it writes when it is ready.
            **how: as `processes.Child` takes it.
        """
        ready_file = None if ready is None else self._folder / ready
        log = self._folder / "logs" / f"{name.lower().removeprefix('the ').replace(' ', '_')}.log"
        child = processes.Child(name, [str(one) for one in arguments], log, ready_file=ready_file, **how)
        self._stack.callback(child.stop, STOP_S)
        self.children.append(child)
        return child


@contextlib.contextmanager
def running(trained: Trained, rules: Rules | None, say: typing.Callable[[str], object]) -> typing.Iterator[Running]:
    """Starts everything over a workdir, and ends it with the block.

    Args:
        trained: verified.
        rules: of the near-line trainer; None: there is none, and no log for it.
        say: is told each step.
    Raises:
        ChildProcessError: a process ended; the message has the end of its log.
        RuntimeError: the broker's jars or store, or a topic, could not be made.
        TimeoutError: a process was not ready in time.
    """
    with contextlib.ExitStack() as stack:
        up = Running(trained.folder, stack)
        say("Kafka and Redis")
        _start_stores(up, trained)
        say("stream and server" if rules is None else "stream, server and near-line trainer")
        stream = up.start(
            "The stream", "serving.streaming", "--events", up.topic(ITEMS), "--index", up.index, "--encoders",
            trained.encoders, "--dead-letters", up.topic(LETTERS), "--ready-file", trained.folder / "stream.json",
            f"--metrics-port={up.ports.stream_metrics}", ready="stream.json",
        )  # fmt: skip
        versions = _served_versions(trained)
        server = up.start(
            "The model server", "tfmm.cli", "serve", f"--model_name={MODEL_NAME}", f"--model_base_path={versions}",
            "--index", up.index, f"--port={up.ports.grpc}", f"--rest_api_port={up.ports.rest}",
            f"--metrics_port={up.ports.server_metrics}", f"--ready_file={trained.folder / 'server.json'}",
            *([] if rules is None else [f"--served_log={up.topic(SERVED)}"]), ready="server.json",
        )  # fmt: skip
        if rules is not None:
            trainer = up.start(
                "The near-line trainer", "tfmm.cli", "nearline", "--log", up.topic(SERVED), "--log", up.topic(LABELS),
                "--models", trained.model, "--index", up.index, "--workdir", up.trainer_dir, "--output", versions,
                "--model-name", MODEL_NAME, f"--server={up.server}", f"--window-seconds={rules.window_s}",
                f"--slice-rows={rules.slice_rows}", f"--metrics-port={up.ports.trainer_metrics}",
            )  # fmt: skip
            trainer.wait_until(lambda: started.answers(up.ports.trainer_metrics))
        stream.wait_ready()
        server.wait_ready()
        yield up


def _start_stores(up: Running, trained: Trained) -> None:
    """Starts broker and Redis, with their topics and the catalog's rows."""
    folder, kafka = trained.folder, broker.Broker(trained.folder / "kafka")
    (folder / "redis").mkdir(parents=True, exist_ok=True)
    program, *flags = redis_server.command(up.ports.redis, folder / "redis")
    redis = up.start("Redis", *flags, program=[program])
    java, *words = kafka.command(broker.FOLDER / "lib")
    the_broker = up.start("The Kafka broker", *words, program=[java])
    redis.wait_until(lambda: started.answers(up.ports.redis))
    with store.open_store(trained.index, create=False) as source, store.open_store(up.index) as target:
        copying.copy(source, target)
    the_broker.wait_until(lambda: kafka.is_up)
    up.kafka = kafka.address
    for name in sorted(set(TOPICS) - broker.topics(kafka.address)):
        broker.make_topic(kafka.address, name, partitions=1)


def _ports(path: pathlib.Path) -> Ports:
    """Returns the ports of the demo before where nothing listens on them, else others."""
    names = [field.name for field in dataclasses.fields(Ports)]
    found = json.loads(path.read_text()) if path.is_file() else {}
    free = iter(started.free_ports(len(names)))
    for name in names:
        if not found.get(name) or started.answers(found[name]):
            found[name] = next(free)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found))
    return Ports(**{name: found[name] for name in names})


def _served_versions(trained: Trained) -> pathlib.Path:
    """Returns the demo's own folder of versions, which has the workdir's version; the trainer pushes there."""
    folder, version = trained.folder / "serving" / MODEL_NAME, trained.version
    if version is not None and not (folder / version.name).exists():
        with artifacts.under_construction(folder / version.name) as building:
            shutil.copytree(version, building)
            building.replace(folder / version.name)
    return folder
