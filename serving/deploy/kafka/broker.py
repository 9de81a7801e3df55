"""A Kafka broker on this machine, without ZooKeeper: `up` and `down`.

It listens on 127.0.0.1 alone, and keeps its topics in its folder. Java and Maven must be there; the jars come from
Maven's repository the first time.

    python serving/deploy/kafka/broker.py up
    python serving/deploy/kafka/broker.py topic items --partitions 4
    tfmm stream --events "kafka://$(cat .cache/kafka/address)/items" --index run/items.sqlite --encoders run/encoders
    python serving/deploy/kafka/broker.py down
"""

from __future__ import annotations

import argparse
import base64
import logging
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing
import uuid

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[3]))  # a command puts only this folder there

from serving.deploy import started

HERE = pathlib.Path(__file__).resolve().parent
FOLDER = HERE.parents[2] / ".cache" / "kafka"
HOST = started.HOST
NAME = "broker"
UP_WITHIN_S, DOWN_WITHIN_S = 300.0, 20.0
HEAP_MB = 512
_log = logging.getLogger(__name__)


class Broker:
    """One broker, as it is written down in its folder.

    Args:
        folder: gets `lib` (jars), `topics`, `server.properties`, `broker.log`, the process in `process.json`, and
            `address`, host:port.
    """

    def __init__(self, folder: str | os.PathLike[str] = FOLDER):
        self.folder = pathlib.Path(folder).resolve()
        self._process, self._address = started.Processes(self.folder / "process.json"), self.folder / "address"
        self._settings, self._log = self.folder / "server.properties", self.folder / "broker.log"
        self._jars = self.folder / "lib"

    @property
    def address(self) -> str:
        return self._address.read_text().strip()

    @property
    def is_up(self) -> bool:
        """Whether something listens at its address."""
        return started.answers(int(self.address.rpartition(":")[2]))

    def command(self, jars: pathlib.Path | None = None) -> list[str]:
        """Makes ready what is not, and returns the command that is the broker, with the topics that it had.

        Args:
            jars: a folder that has them; None: `lib` of this one, where Maven puts them once.
        Raises:
            RuntimeError: it cannot be started here.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._jars = jars or self._jars
        fetch_jars(self._jars)
        if not self._settings.exists():
            self._format()
        elif self.is_up:  # by somebody else's doing, since it was down
            self._choose_ports()
        return self._java("kafka.Kafka", str(self._settings))

    def up(self, jars: pathlib.Path | None = None) -> None:
        """Starts the broker; returns once it answers.

        Args:
            jars: as `command` takes them.
        Raises:
            RuntimeError: it is up already, cannot be started here, or did not come up.
        """
        if self._process.running:
            raise RuntimeError(f"A broker is up at {self.address}. Take it down first: make kafka-down")
        self._process.start(NAME, self.command(jars), self._log, self.folder)
        end = time.monotonic() + UP_WITHIN_S
        while not self.is_up:
            if not self._process.running or time.monotonic() > end:
                self.down()
                last = "\n".join(self._log.read_text(errors="replace").splitlines()[-5:])
                raise RuntimeError(f"The broker did not come up. {self._log} says why:\n{last}")
            time.sleep(0.1)

    def kill(self) -> None:
        """Kills it at once, as a machine does that fails; `up` starts it again."""
        self._process.signal(NAME, signal.SIGKILL)
        while self._process.running:
            time.sleep(0.02)

    def down(self) -> None:
        """Ends the broker, by its process' id; the topics stay."""
        self._process.end(DOWN_WITHIN_S)

    def _java(self, main: str, *words: str) -> list[str]:
        return ["java", f"-Xmx{HEAP_MB}m", "-cp", f"{self._jars}/*", main, *words]

    def _choose_ports(self) -> None:
        """Writes down settings with free ports."""
        port, control = started.free_ports(2)
        self._address.write_text(f"{HOST}:{port}\n")
        settings = {
            "process.roles": "broker,controller", "node.id": 1, "controller.quorum.voters": f"1@{HOST}:{control}",
            "listeners": f"PLAINTEXT://{HOST}:{port},CONTROLLER://{HOST}:{control}",
            "advertised.listeners": f"PLAINTEXT://{HOST}:{port}", "controller.listener.names": "CONTROLLER",
            "log.dirs": self.folder / "topics", "offsets.topic.replication.factor": 1,
            "transaction.state.log.replication.factor": 1, "transaction.state.log.min.isr": 1,
            "log.flush.interval.messages": 1, "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
        }  # fmt: skip
        self._settings.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))

    def _format(self) -> None:
        """Makes the broker's store."""
        self._choose_ports()
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
        tool = self._java("kafka.tools.StorageTool", "format", f"--cluster-id={cluster}", "-c", str(self._settings))
        done = subprocess.run(tool, capture_output=True, text=True, check=False)
        if done.returncode:
            self._settings.unlink()
            raise RuntimeError(f"The broker's store could not be made: {(done.stdout + done.stderr).strip()[-500:]}")


def fetch_jars(folder: pathlib.Path) -> None:
    """Has Maven put what `pom.xml` names into a folder, once.

    Raises:
        RuntimeError: Java or Maven is missing, or Maven failed.
    """
    started.require_tools("Kafka", "java", "mvn")
    with started.alone(folder):
        if not (folder / "complete").exists():
            started.fetch_jars(HERE / "pom.xml", folder)
            (folder / "complete").touch()


def topics(address: str) -> set[str]:
    """Returns the names of the topics that there are."""
    from confluent_kafka.admin import AdminClient

    return set(AdminClient({"bootstrap.servers": address}, logger=_log).list_topics(timeout=30).topics)


def make_topic(address: str, name: str, partitions: int) -> None:
    """Makes a topic.

    Raises:
        RuntimeError: there is one of that name, or no broker answers.
    """
    from confluent_kafka import KafkaException
    from confluent_kafka.admin import AdminClient, NewTopic

    admin = AdminClient({"bootstrap.servers": address}, logger=_log)
    try:
        admin.create_topics([NewTopic(name, partitions, 1)], operation_timeout=30)[name].result()
        await_partitions(admin, name, partitions)
    except KafkaException as error:
        raise RuntimeError(f"The topic {name} could not be made: {error.args[0].str()}") from error


def await_partitions(admin: typing.Any, name: str, count: int) -> None:
    """Waits until a broker tells of all partitions of a topic: some time after it has answered that they are made.

    Until then a topic may be said not to exist, and an event that is sent to a new partition is given up at once.

    Args:
        admin: `confluent_kafka.admin.AdminClient` of the broker.
        name: of the topic.
        count: of its partitions.
    Raises:
        RuntimeError: it does not.
        confluent_kafka.KafkaException: no broker answers.
    """
    end = time.monotonic() + UP_WITHIN_S
    while True:
        found = admin.list_topics(timeout=60).topics.get(name)
        if found is not None and sum(one.leader >= 0 for one in found.partitions.values()) == count:
            return
        if time.monotonic() > end:
            raise RuntimeError(f"The broker does not tell of all {count} partitions of the topic {name}.")
        time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description="A Kafka broker on this machine.")
    parser.add_argument("what", choices=["up", "down", "topic"])
    parser.add_argument("name", nargs="?", help="of a topic that is made")
    parser.add_argument("--partitions", type=int, default=1)
    parser.add_argument("--folder", default=str(FOLDER), help="default: .cache/kafka of the checkout")
    options = parser.parse_args()
    broker = Broker(options.folder)
    try:
        if options.what == "topic":
            make_topic(broker.address, options.name or parser.error("a topic needs a name"), options.partitions)
        else:
            broker.up() if options.what == "up" else broker.down()
    except RuntimeError as error:
        sys.exit(str(error))
    if options.what == "up":
        print(f"Kafka at {broker.address}; its log is {broker.folder / 'broker.log'}")


if __name__ == "__main__":
    main()
