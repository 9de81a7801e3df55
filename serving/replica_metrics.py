"""How far replicas are behind the item index, as Prometheus metrics."""

from __future__ import annotations

import typing

from prometheus_client import core

_TABLE = ["target", "model_name", "version", "modality"]


class LagMetrics:
    """Gives how far each table of each loaded version is behind, when the metrics are read.

    Args:
        lags: returns them, as `Replicator.lag` does.
    """

    def __init__(self, lags: typing.Callable[[], typing.Iterable[typing.Any]]):
        self._lags = lags

    def collect(self) -> typing.Iterator[core.Metric]:
        reached = core.GaugeMetricFamily(
            "tfmm_replica_reached", "1 where a version is in service.", labels=_TABLE[:2]
        )
        following = core.GaugeMetricFamily("tfmm_replica_following", "1 where a table is written to.", labels=_TABLE)
        watermark = core.GaugeMetricFamily("tfmm_replica_watermark", "Newest change that a table has.", labels=_TABLE)
        rows = core.GaugeMetricFamily("tfmm_replica_lag_rows", "Changes that a table does not have.", labels=_TABLE)
        targets: dict[tuple[str, str], bool] = {}
        for lag in self._lags():
            targets[lag.target, lag.model_name] = bool(lag.version)
            if lag.version:
                labels = [lag.target, lag.model_name, str(lag.version), lag.modality]
                following.add_metric(labels, lag.is_following)
                watermark.add_metric(labels, lag.watermark)
                rows.add_metric(labels, lag.rows)
        for target, is_reached in targets.items():
            reached.add_metric(target, is_reached)
        yield from (reached, following, watermark, rows)
