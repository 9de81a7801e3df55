"""What TFDV finds wrong with a span's examples, as a table: against the declaration, and against other rows.

The schema is the declaration's (`components.FeatureSchema`), never one that the span itself gave.
"""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import tensorflow_data_validation as tfdv
from tensorflow_metadata.proto.v0 import anomalies_pb2, schema_pb2, statistics_pb2

from tfmm import drift
from tfmm.drift import DriftConfig
from tfmm.stages import folders

FILE = "anomalies.json"
ROWS = "(rows)"  # what stands for a column where no single one is meant
BEFORE, WITHIN = "the span before", "its training rows"  # what a split is compared with
Path = str | pathlib.Path


@dataclasses.dataclass(frozen=True)
class Anomaly:
    """One column of the examples that is not as it should be."""

    column: str
    expected: str
    found: str
    stops: bool  # the run; else it is said
    is_change: bool = False  # since other rows; else it is against the declaration

    def __str__(self) -> str:
        return f"{self.column}: expected {self.expected}; found {self.found}"


def of_schema(anomalies_dir: Path, schema_dir: Path) -> list[Anomaly]:
    """Returns what ExampleValidator found: each stops the run.

    Args:
        anomalies_dir: of its artifact, a folder per split.
        schema_dir: what it compared with.
    """
    declared = {feature.name: feature for feature in _schema(schema_dir).feature}
    found: dict[tuple[str, str], list[str]] = {}
    for split in folders.SPLITS:
        path = pathlib.Path(anomalies_dir) / f"Split-{split}" / "SchemaDiff.pb"
        anomalies = anomalies_pb2.Anomalies.FromString(path.read_bytes())
        if anomalies.data_missing:
            found.setdefault((ROWS, "none"), []).append(split)
        if anomalies.dataset_anomaly_info.reason:
            found.setdefault((ROWS, anomalies.dataset_anomaly_info.description), []).append(split)
        for column, info in anomalies.anomaly_info.items():
            found.setdefault((column, info.description), []).append(split)
    return [
        Anomaly(column, _expected(column, declared), f"in {' and '.join(splits)}: {text}", True)
        for (column, text), splits in found.items()
    ]


def changes(
    statistics_dir: Path, previous_dir: Path | None, schema_dir: Path, columns: typing.Collection[str]
) -> dict[str, dict[str, float]]:
    """Returns the Jensen-Shannon divergence of each column, by what it is between: of its values, or of lacking one.

    Args:
        statistics_dir: of StatisticsGen's artifact, a folder per split.
        previous_dir: the same of the span before; None: there is none.
        schema_dir: the declaration's schema.
        columns: those compared; one that two sides do not share is left out.
    """
    schema = _schema(schema_dir)
    for feature in schema.feature:
        if feature.name in columns:
            feature.drift_comparator.jensen_shannon_divergence.threshold = 1.0
    train, held_out = (_statistics(statistics_dir, split) for split in folders.SPLITS)
    pairs = {WITHIN: (held_out, train)}
    if previous_dir is not None:
        pairs[BEFORE] = train, _statistics(previous_dir, folders.SPLITS[0])
    return {name: _divergences(schema, *pair) for name, pair in pairs.items()}


def of_changes(found: typing.Mapping[str, typing.Mapping[str, float]], config: DriftConfig) -> list[Anomaly]:
    """Returns the columns that changed by more than the settings let pass.

    >>> (one,) = of_changes({BEFORE: {"price": 0.9, "label": 0.01}}, DriftConfig())
    >>> print(one)
    price: expected values as of the span before, divergence below 0.5 (`drift.stop`); found 0.90
    """
    return [
        Anomaly(
            column,
            f"values as of {side}, divergence below "
            + (f"{config.stop:g} (`drift.stop`)" if value >= config.stop else f"{config.warn:g} (`drift.warn`)"),
            f"{value:.2f}",
            value >= config.stop,
            True,
        )
        for side, values in found.items()
        for column, value in values.items()
        if value >= config.warn
    ]


def table(anomalies: typing.Sequence[Anomaly]) -> str:
    """Returns anomalies as lines: column, expected, found.

    >>> print(table([Anomaly("price", "float", "bytes", True), Anomaly("label", "int", "none", True)]))
    column | expected | found
    price  | float    | bytes
    label  | int      | none
    """
    rows = [("column", "expected", "found"), *((one.column, one.expected, one.found) for one in anomalies)]
    widths = [max(len(row[place]) for row in rows) for place in range(2)]
    return "\n".join(f"{row[0]:{widths[0]}} | {row[1]:{widths[1]}} | {row[2]}" for row in rows)


def in_words(stopping: typing.Sequence[Anomaly]) -> str:
    """Returns why anomalies stop the run, with their table and the way out.

    >>> print(in_words([Anomaly("label", "int in every row", "in train: none", True)]))
    The examples must be as declared. Received, other than that:
    column | expected         | found
    label  | int in every row | in train: none
    Mend the tables, or declare what they have.
    """
    rules, ways = [], []
    if not all(one.is_change for one in stopping):
        rules.append("as declared")
        ways.append("Mend the tables, or declare what they have.")
    if any(one.is_change for one in stopping):
        rules.append("about as in the span before and among themselves")
        ways.append("Where a change of values is meant, raise `drift.stop`; else mend the tables.")
    return (
        f"The examples must be {', and '.join(rules)}. Received, other than that:\n{table(stopping)}\n{' '.join(ways)}"
    )


def _divergences(
    schema: schema_pb2.Schema,
    statistics: statistics_pb2.DatasetFeatureStatisticsList,
    other: statistics_pb2.DatasetFeatureStatisticsList,
) -> dict[str, float]:
    found = tfdv.validate_statistics(statistics, schema, previous_statistics=other).drift_skew_info
    values = {".".join(one.path.step): one.drift_measurements[0].value for one in found if one.drift_measurements}
    lacking, lacked = _lacking(statistics), _lacking(other)
    compared = [f for f in schema.feature if f.HasField("drift_comparator") and f.name in lacking and f.name in lacked]
    for feature in compared:
        shares = lacking[feature.name], lacked[feature.name]
        known = values.get(feature.name, 0.0) if max(shares) < 1.0 else 0.0  # of no values TFDV has any divergence
        values[feature.name] = known if feature.shape.dim else max(known, drift.of_shares(*shares))
    return values


def _lacking(statistics: statistics_pb2.DatasetFeatureStatisticsList) -> dict[str, float]:
    """Returns the share of rows without a number, by column: TFDV leaves those out of its histograms."""
    (dataset,) = statistics.datasets
    lacking = {}
    for feature in dataset.features:
        not_a_number = max((histogram.num_nan for histogram in feature.num_stats.histograms), default=0)
        absent = dataset.num_examples - feature.num_stats.common_stats.num_non_missing + not_a_number
        lacking[".".join(feature.path.step)] = min(absent / max(dataset.num_examples, 1), 1.0)
    return lacking


def _schema(folder: Path) -> schema_pb2.Schema:
    return tfdv.load_schema_text(str(pathlib.Path(folder) / "schema.pbtxt"))


def _statistics(folder: Path, split: str) -> statistics_pb2.DatasetFeatureStatisticsList:
    return tfdv.load_stats_binary(str(pathlib.Path(folder) / f"Split-{split}" / "FeatureStats.pb"))


def _expected(column: str, declared: typing.Mapping[str, schema_pb2.Feature]) -> str:
    if column == ROWS:
        return "at least one"
    if column not in declared:
        return "no such column"
    feature = declared[column]
    sizes = [dim.size for dim in feature.shape.dim]
    return f"{schema_pb2.FeatureType.Name(feature.type).lower()}{sizes if sizes else ''} in every row"
