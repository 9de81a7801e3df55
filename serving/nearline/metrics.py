"""What Prometheus sees of the near-line trainer."""

from __future__ import annotations

import typing

import prometheus_client

from serving import metrics
from serving.nearline.joining import Join

_SECONDS = (0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 28800, 86400)


class Metrics:
    """Counters, gauges and delays of one trainer; `registry` is to be served."""

    def __init__(self) -> None:
        self.registry = metrics.registry()
        self._records = prometheus_client.Gauge(
            "tfmm_nearline_records", "Requests and labels by what became of them, since the training began.", ["kind"],
            registry=self.registry,
        )  # fmt: skip
        self._waiting = prometheus_client.Gauge(
            "tfmm_nearline_waiting_requests", "Requests that wait for labels.", registry=self.registry
        )
        self._shown = prometheus_client.Gauge(
            "tfmm_nearline_waiting_impressions", "Items of those that were shown.", registry=self.registry
        )
        self._watermark = prometheus_client.Gauge(
            "tfmm_nearline_watermark_seconds", "Time that all logs have passed, since 1970.", registry=self.registry
        )
        self._position = prometheus_client.Gauge(
            "tfmm_nearline_position", "Offset of the newest record that was taken.", ["part"], registry=self.registry
        )
        self.rows = prometheus_client.Counter(
            "tfmm_nearline_rows", "Rows that were trained over, by this process.", registry=self.registry
        )
        self.training_s = prometheus_client.Counter(
            "tfmm_nearline_training_seconds", "Time in blocks of training.", registry=self.registry
        )
        self.new_ids = prometheus_client.Counter(
            "tfmm_nearline_new_ids", "Ids that joined a vocabulary.", registry=self.registry
        )
        self.candidates = prometheus_client.Counter(
            "tfmm_nearline_candidates", "Candidates by what became of them.", ["outcome"], registry=self.registry
        )
        self._slice = prometheus_client.Gauge(
            "tfmm_nearline_slice", "Number of the newest slice whose candidate was judged; 0: none since the start.",
            registry=self.registry,
        )  # fmt: skip
        self._slice_passed = prometheus_client.Gauge(
            "tfmm_nearline_slice_passed", "1 where that candidate was pushed.", registry=self.registry
        )
        self._slice_rows = prometheus_client.Gauge(
            "tfmm_nearline_slice_rows", "Rows that it was judged on.", registry=self.registry
        )
        self._slice_judged = prometheus_client.Gauge(
            "tfmm_nearline_slice_judged_seconds", "When it was judged, since 1970.", registry=self.registry
        )
        self._slice_metric = prometheus_client.Gauge(
            "tfmm_nearline_slice_metric", "Its metrics on these rows, and those of the model in service.",
            ["model", "metric"], registry=self.registry,
        )  # fmt: skip
        self.trained_delay = prometheus_client.Histogram(
            "tfmm_nearline_trained_delay_seconds", "From an impression to its place in the weights.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.served_delay = prometheus_client.Histogram(
            "tfmm_nearline_served_delay_seconds", "From an impression to a pushed model that knows it.",
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip

    def judged(self, number: int, result: typing.Mapping[str, typing.Any]) -> None:
        """Takes what `judge.judge` said of a candidate; of one that it could not judge, that it is refused."""
        self.candidates.labels("pushed" if result["passed"] else "refused").inc()
        self._slice.set(number)
        self._slice_passed.set(result["passed"])
        self._slice_rows.set(result.get("rows", 0))
        self._slice_judged.set(result.get("judged_at", 0.0))
        self._slice_metric.clear()
        for model, found in result.get("metrics", {}).items():
            for metric, value in found.items():
                self._slice_metric.labels(model, metric).set(value)

    def show(self, join: Join, positions: typing.Mapping[str, int]) -> None:
        """Takes what a join has counted, and how far logs were read."""
        for kind, count in join.counts.items():
            self._records.labels(kind).set(count)
        self._waiting.set(join.num_waiting)
        self._shown.set(join.num_shown)
        self._watermark.set(join.watermark_us / 1e6)
        for part, position in positions.items():
            self._position.labels(part.rpartition("/")[0] if part.startswith("folder://") else part).set(position)
