"""New item events from a Kafka topic."""

from __future__ import annotations

import logging
import os
import time
import typing
import urllib.parse
import weakref

from serving.streaming import event_log
from tfmm import extras, registered

extras.verify("stream", "confluent_kafka")
import confluent_kafka  # noqa: E402
import confluent_kafka.admin  # noqa: E402

GROUP = "tfmm"
_WAIT_S = 60.0  # for a broker, when a topic is opened
_COMMIT_EVERY_S = 5.0
_LOST = confluent_kafka.KafkaError._AUTO_OFFSET_RESET
_SETTINGS = {
    "enable.auto.commit": False,
    "auto.offset.reset": "error",  # what retention took is said, not skipped
    "fetch.wait.max.ms": 100,
    "queued.max.messages.kbytes": 16_384,
    "allow.auto.create.topics": False,
}
_PRODUCER = {"acks": "all", "linger.ms": 1, "message.timeout.ms": int(1e3 * _WAIT_S), "enable.idempotence": True}
_log = logging.getLogger(__name__)


class KafkaTopic:
    """A topic, whose partitions are logs of their own; see `event_log.EventSource`.

    The index keeps how far each partition was read, in one transaction with what the events led to, so an event counts
    once, whatever is killed. The positions are also committed to a consumer group, for tools that show its lag; nothing
    is read from there. Partitions are taken by this job alone and not by the group's rebalancing. Partitions that are
    added later are found within seconds. Events of one item need one key, since order holds within a partition; of two
    partitions the newest event time decides.

    Args:
        url: `kafka://host:port[,host:port]/topic`; `group` (default: tfmm) and settings of librdkafka may follow as
            options, such as `security.protocol=SASL_SSL`; `config=FILE` names a file of such settings, a line each, so
            that secrets stay out of the URL.
    Attributes:
        fault: why the last look at the partitions found none, such as a broker that is away.
    Raises:
        ValueError: no topic of that name, an unknown setting.
        confluent_kafka.KafkaException: no broker answered for a minute.
    """

    def __init__(self, url: str | os.PathLike[str]):
        self._url = os.fspath(url)
        parts, self._shown = urllib.parse.urlsplit(self._url), registered.without_password(url)
        self.topic = parts.path.strip("/")
        if not parts.netloc or not self.topic or "/" in self.topic:
            raise ValueError(f"The URL of a topic must read kafka://host:port/topic. Received: {self._shown}.")
        options = dict(urllib.parse.parse_qsl(parts.query))
        self.group = options.pop("group", GROUP)
        settings = _read_settings(options.pop("config", None)) | options
        self.settings: dict[str, typing.Any] = {
            "bootstrap.servers": parts.netloc,
            "reconnect.backoff.max.ms": 1000,
            **settings,
        }
        try:
            self._admin = confluent_kafka.admin.AdminClient(self.settings, logger=_log)
        except confluent_kafka.KafkaException as error:
            raise ValueError(f"Options of {self._shown} must be librdkafka's. {error.args[0].str()}.") from error
        self._producer: typing.Any = None
        self.fault: Exception | None = None
        self.name = f"kafka:{self._cluster()}/{self.topic}@{self._topic_id()}"

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return KafkaTopic, (self._url,)

    def __enter__(self) -> KafkaTopic:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._producer = None

    def _cluster(self) -> str:
        found = self._admin.list_topics(timeout=_WAIT_S)
        if self.topic not in found.topics:
            raise ValueError(
                f"The topic of {self._shown} must exist. Received: {self.topic!r}, not one of {sorted(found.topics)}. "
                "Make it with as many partitions as the job shall have readers."
            )
        return str(found.cluster_id)

    def _topic_id(self) -> str:
        """Returns what tells a topic from another of the same name, made after it was deleted."""
        wanted = confluent_kafka.TopicCollection([self.topic])
        (described,) = self._admin.describe_topics(wanted, request_timeout=_WAIT_S).values()
        return str(described.result().topic_id)

    def parts(self) -> list[KafkaPartition]:
        """Returns the partitions that there are now; none where no broker answers, and `fault` says so."""
        try:
            found = self._admin.list_topics(self.topic, timeout=5.0).topics[self.topic]
            if found.error is not None:  # as while a broker starts
                raise confluent_kafka.KafkaException(found.error)
        except confluent_kafka.KafkaException as error:
            self.fault = error
            _log.warning("%s: %s", self.name, error.args[0].str())
            return []
        self.fault = None
        return [KafkaPartition(self.settings, self.group, self.topic, self.name, n) for n in sorted(found.partitions)]

    def append(self, payloads: typing.Iterable[bytes]) -> int:
        """Appends events; returns their number, once the brokers have them.

        Raises:
            confluent_kafka.KafkaException: one was not taken.
        """
        self._producer = self._producer or confluent_kafka.Producer({**_PRODUCER, **self.settings}, logger=_log)
        failures: list[typing.Any] = []
        payloads = list(payloads)
        for payload in payloads:
            self._produce(payload, lambda error, _: failures.append(error) if error else None)
        self._producer.flush()
        if failures:
            raise confluent_kafka.KafkaException(failures[0])
        return len(payloads)

    def _produce(self, payload: bytes, on_delivery: typing.Callable[[typing.Any, typing.Any], None]) -> None:
        while True:
            try:
                self._producer.produce(self.topic, payload, on_delivery=on_delivery)
            except BufferError:  # full: wait for what is under way
                self._producer.poll(0.1)
                continue
            self._producer.poll(0)
            return


class KafkaPartition:
    """One partition; an event's offset is Kafka's plus one, so that 0 is before the first.

    Args:
        settings: of librdkafka.
        group: gets the positions.
        topic: its name.
        topic_name: what tells it from others, see `KafkaTopic.name`.
        partition: from 0.
    """

    def __init__(
        self, settings: typing.Mapping[str, typing.Any], group: str, topic: str, topic_name: str, partition: int
    ):
        self._arguments = (settings, group, topic, topic_name, partition)
        self._settings, self._group, self._topic, self._partition = settings, group, topic, partition
        self.name, self.number = f"{topic_name}/{partition}", partition
        self._consumer: typing.Any = None
        self._next = -1  # Kafka's offset
        self._committed_at = 0.0

    def __reduce__(self) -> tuple[type, tuple[typing.Any, ...]]:
        return KafkaPartition, self._arguments

    def close(self) -> None:
        if self._consumer is not None:
            self._consumer.close()
            self._consumer = None

    def read(self, after: int, limit: int) -> list[event_log.Event]:
        """As `EventSource.read`; what librdkafka has fetched by now, so the first look may find none.

        Raises:
            confluent_kafka.KafkaException: what will not pass by itself, such as a topic that may not be read.
        """
        if self._consumer is None or self._next != after:
            self._begin(after)
        found = event_log.up_to(self._fetched(), limit)
        self._commit(after)
        return found

    def _fetched(self) -> typing.Iterator[event_log.Event]:
        """Yields what there is by now."""
        while (message := self._consumer.poll(0)) is not None:
            if (error := message.error()) is not None:
                self._handle(error)
                return
            self._next = message.offset() + 1
            yield event_log.Event(self._next, message.value() or b"")

    def _begin(self, after: int) -> None:
        if self._consumer is None:
            own = {**_SETTINGS, **self._settings, "group.id": self._group}
            self._consumer = confluent_kafka.Consumer(own, logger=_log)
            # One that is dropped unclosed while its commit is under way hangs its process (librdkafka 2.16).
            weakref.finalize(self, self._consumer.close)
        self._next = after
        start = after if after else confluent_kafka.OFFSET_BEGINNING
        self._consumer.assign([confluent_kafka.TopicPartition(self._topic, self._partition, start)])

    def end(self) -> int:
        """Returns the offset of the newest event by now, 0 where there is none."""
        if self._consumer is None:
            self._begin(0)
        return self._bounds()[1]

    def _bounds(self) -> tuple[int, int]:
        place = confluent_kafka.TopicPartition(self._topic, self._partition)
        low, high = self._consumer.get_watermark_offsets(place, timeout=_WAIT_S)
        return low, high

    def _handle(self, error: typing.Any) -> None:
        if error.code() == _LOST:
            place = confluent_kafka.TopicPartition(self._topic, self._partition)
            low, _ = self._bounds()
            event_log.tell_of_lost(self.name, f"offsets {self._next + 1} to {low}, deleted before they were read,")
            place.offset = low
            self._consumer.assign([place])
        elif error.code() in _PERMANENT or error.fatal():
            raise confluent_kafka.KafkaException(error)
        else:
            _log.warning("%s: %s", self.name, error.str())

    def _commit(self, taken: int) -> None:
        """Tells the group how far the index is, now and then; it is for tools alone."""
        if taken and time.monotonic() - self._committed_at > _COMMIT_EVERY_S:
            self._committed_at = time.monotonic()
            place = confluent_kafka.TopicPartition(self._topic, self._partition, taken)
            self._consumer.commit(offsets=[place], asynchronous=True)


_PERMANENT = (
    confluent_kafka.KafkaError.TOPIC_AUTHORIZATION_FAILED,
    confluent_kafka.KafkaError.GROUP_AUTHORIZATION_FAILED,
    confluent_kafka.KafkaError._AUTHENTICATION,
)


def _read_settings(path: str | None) -> dict[str, str]:
    if path is None:
        return {}
    with open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file if line.strip() and not line.startswith("#")]
    pairs = [line.partition("=") for line in lines]
    if wrong := [name for name, equals, _ in pairs if not equals]:
        raise ValueError(f"Each line of {path} must read `setting=value`. Received: {wrong[0]!r}.")
    return {name.strip(): value.strip() for name, _, value in pairs}
