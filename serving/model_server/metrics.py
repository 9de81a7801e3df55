"""What the server measures: requests by status, latencies, the queue, versions in service, their item index."""

from __future__ import annotations

import logging
import typing

import prometheus_client
from google.protobuf import text_format
from prometheus_client import core

from serving import metrics
from serving.model_server import errors, text_protos
from serving.model_server.execution import Executor
from serving.model_server.manager import AVAILABLE, STATE_NAMES, ModelManager
from serving.model_server.servable import DEFAULT_SIGNATURE, Servable
from tfmm.export.signatures import STATUS

_log = logging.getLogger("serving.model_server")
PREFIX = ":tensorflow:serving:"  # of the metrics that TensorFlow Serving has, under its names
DEFAULT_PATH = "/monitoring/prometheus/metrics"
_MONITORING_FIELDS = {"prometheus_config": ("PrometheusConfig", {"enable": "BOOL", "path": "STRING"})}
_MICROSECONDS = [10 * 1.8**power for power in range(33)]  # its buckets
_SECONDS = [0.001 * 2**power for power in range(15)]  # 1 ms to 16 s
_INFERENCE = ("predict", "classify", "regress", "multiinference")
_PER_MODEL = ["model_name", "version"]
_PER_TABLE = [*_PER_MODEL, "modality", "encoder_version"]


class ServerMetrics:
    """Counts requests, and asks manager and executor for the rest when the metrics are read.

    Labels hold names of models and signatures in service alone, so that no caller makes the metrics grow.

    Args:
        manager: knows the versions.
        executor: knows the queue.
        further: collectors of others in this process.
    """

    def __init__(
        self, manager: ModelManager, executor: Executor, further: typing.Sequence[metrics.Collector] = ()
    ):
        self._manager = manager
        self._count = prometheus_client.Counter(
            f"{PREFIX}request_count", "Requests by status.", ["model_name", "status"], registry=None
        )
        self.registry = metrics.registry(_WithoutSuffix(self._count), _Versions(manager), *further)
        self._latency_us = prometheus_client.Histogram(
            f"{PREFIX}request_latency",
            "Microseconds of requests that were answered OK.",
            ["model_name", "API", "entrypoint"],
            buckets=_MICROSECONDS,
            registry=self.registry,
        )
        self._latency_s = prometheus_client.Histogram(
            "tfmm_request_latency_seconds",
            "Seconds of requests that were answered OK.",
            ["model_name", "signature"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        for name, text, value in (
            ("waiting", "Requests that wait for a thread.", lambda: executor.waiting),
            ("running", "Requests whose model runs.", lambda: executor.running),
        ):
            prometheus_client.Gauge(f"tfmm_requests_{name}", text, registry=self.registry).set_function(value)

    def record(self, api: str, entrypoint: str, spec: typing.Any, code: int, seconds: float) -> None:
        """Counts one request.

        Args:
            api: such as "Predict".
            entrypoint: "GRPC" or "REST".
            spec: its ModelSpec; None where it named no model.
            code: with which it was answered.
            seconds: from its arrival to its answer.
        """
        model = spec.name if spec is not None and spec.name in self._manager.names() else ""
        self._count.labels(model, errors.name_of(code)).inc()
        if code == errors.OK and api.lower() in _INFERENCE:
            self._latency_us.labels(model, api, entrypoint).observe(seconds * 1e6)
            signature = (spec.signature_name if spec is not None else "") or DEFAULT_SIGNATURE
            self._latency_s.labels(model, signature).observe(seconds)


class _WithoutSuffix:
    """Gives a counter's samples without the suffix `_total`, which TensorFlow Serving does not write."""

    def __init__(self, counter: prometheus_client.Counter):
        self._counter = counter

    def collect(self) -> typing.Iterator[core.Metric]:
        for family in self._counter.collect():
            result = core.Metric(family.name, family.documentation, "unknown")
            for sample in family.samples:
                result.add_sample(family.name, sample.labels, sample.value)
            yield result


class _Versions:
    """Gives the state of every version, and what those with an item index say of it."""

    def __init__(self, manager: ModelManager):
        self._manager = manager

    def collect(self) -> typing.Iterator[core.Metric]:
        states = core.GaugeMetricFamily(
            "tfmm_model_version_state", "1 for the state that a version is in.", labels=[*_PER_MODEL, "state"]
        )
        tables = {
            "watermark": core.GaugeMetricFamily(
                "tfmm_index_watermark", "Newest change of the item index that is served.", labels=_PER_TABLE
            ),
            "size": core.GaugeMetricFamily("tfmm_index_items", "Items in the table.", labels=_PER_TABLE),
            "capacity": core.GaugeMetricFamily(
                "tfmm_index_capacity", "Items that the table has room for.", labels=_PER_TABLE
            ),
        }
        labelled = core.GaugeMetricFamily(
            "tfmm_model_label", "The version that a label names.", labels=["model_name", "label"]
        )
        for model, label, version in self._manager.labels():
            labelled.add_metric([model, label], version)
        for model, entry in self._manager.versions():
            labels = [model, str(entry.version)]
            states.add_metric([*labels, STATE_NAMES[entry.state]], 1)
            if entry.state == AVAILABLE:
                self._add_tables(model, entry.version, tables)
        yield from (states, labelled, *tables.values())

    def _add_tables(self, model: str, version: int, tables: dict[str, core.GaugeMetricFamily]) -> None:
        try:
            with self._manager.lend(model, version) as servable:
                status = _index_status(servable)
        except Exception as error:  # it may have gone since; the other metrics are to be read all the same
            _log.warning("%s version %d does not tell its index: %s", model, version, error)
            return
        for row, modality in enumerate(status.get("modality", ())):
            labels = [model, str(version), modality.decode(), status["encoder_version"][row].decode()]
            for name, family in tables.items():
                family.add_metric(labels, float(status[name][row]))


def _index_status(servable: Servable) -> dict[str, typing.Any]:
    definition = servable.signatures.get(STATUS)
    return servable.run(STATUS, {}) if definition is not None and not definition.inputs else {}


def monitored_path(file: str) -> str:
    """Returns the path of the metrics that a `--monitoring_config_file` asks for, "" where it asks for none.

    Raises:
        ServingError: INVALID_ARGUMENT where it is no MonitoringConfig as text proto.
    """
    with open(file, encoding="utf-8") as source:
        try:
            config = text_format.Parse(source.read(), text_protos.new("MonitoringConfig", _MONITORING_FIELDS))
        except text_format.ParseError as error:
            raise errors.ServingError(errors.INVALID_ARGUMENT, f"{file}: {error}") from error
    settings = config.prometheus_config
    if settings.path and not settings.path.startswith("/"):
        raise errors.ServingError(
            errors.INVALID_ARGUMENT, f"{file}: `path` must begin with /. Received: {settings.path}."
        )
    return (settings.path or DEFAULT_PATH) if settings.enable else ""
