"""The Beam job that joins impressions with histories; it wraps the pure functions of `tfmm.data.examples`."""

from __future__ import annotations

import json
import logging
import pathlib
import typing

import numpy as np
import pyarrow as pa

from tfmm import extras
from tfmm.config import DataConfig
from tfmm.data import behaviors as behaviors_lib
from tfmm.data import examples, instants, rules, schema, times
from tfmm.data.parts import Part

try:
    import apache_beam as beam
    from apache_beam import pvalue
    from apache_beam.metrics import Metrics
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    raise extras.MissingExtraError(extras.explain(error) or error, name=error.name) from error

ROWS_PER_SHARD = 50_000  # impressions; a shard's users, their behaviors and the catalog's ids must fit one worker
NAMESPACE = "tfmm.data"
_LOG = logging.getLogger(__name__)
_COLUMNS = {
    "impressions": ["user_id", "item_id", "timestamp", "label", "split"],
    "behaviors": ["user_id", "item_id", "timestamp", "action", "order_line"],
    "items": ["item_id", "category"],
}
_DEAD_LETTER = pa.schema(
    [("table", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())]
)


class BuildExamples(beam.PTransform):
    """Reads a data folder and builds one tf.Example per impression.

    Expands a pipeline root to a dict of PCollections: "train" and "eval" of serialized tf.Examples (bytes,
    columns of `tfmm.features.raw_spec`), "dead_letter" of dicts with `table`, `row` (from 0, over the table's
    files in order of name), `reason` and `content` (JSON). An impression of an item that the catalog lacks is a
    dead letter; a behavior of one, since delisted perhaps, stays in the history, without a category.
    """

    def __init__(self, data_dir: str | pathlib.Path, config: DataConfig):
        super().__init__()
        self._data_dir, self._config = str(data_dir), config

    def expand(self, root: beam.Pipeline | pvalue.PBegin) -> dict[str, beam.PCollection]:
        schema.id_types(self._data_dir)  # refuses ids of mixed types
        splits = schema.read_table(self._data_dir, "impressions", ["split"])["split"]
        seen = times.resolutions(self._data_dir, self._config.time_zone)
        for note in times.notes(seen):
            _LOG.warning(note)
        shown_at, _ = times.read_bounds(self._data_dir, "impressions", seen["impressions"])
        first_eval = (
            None
            if splits.null_count < len(splits)
            else examples.eval_start(shown_at[shown_at != instants.NULL], self._config.eval_fraction)
        )
        num_shards = max(1, round(len(splits) / ROWS_PER_SHARD))
        has_behaviors = schema.has_table(self._data_dir, "behaviors")
        names = ["impressions", *(["behaviors"] if has_behaviors else [])]
        catalog = (
            root
            | "ListItems" >> beam.Create(_row_groups(self._data_dir, ["items"]))
            | "ReadItems" >> beam.Map(_read_catalog)
        )
        read = (
            root
            | "ListLogs" >> beam.Create(_row_groups(self._data_dir, names))
            | "SpreadLogs" >> beam.Reshuffle()
            | "ReadLogs"
            >> beam.ParDo(_ReadLogs(num_shards, has_behaviors, first_eval is None, seen)).with_outputs(
                "dead_letter", main="rows"
            )
        )
        built = (
            read.rows
            | "GroupByShard" >> beam.GroupByKey()
            | "Join"
            >> beam.ParDo(_JoinShard(self._config.max_behaviors, first_eval), pvalue.AsList(catalog)).with_outputs(
                "train", "eval", "dead_letter"
            )
        )
        dead_letters = (read.dead_letter, built.dead_letter) | "AllDeadLetters" >> beam.Flatten()
        return {"train": built.train, "eval": built.eval, "dead_letter": dead_letters}


def write(
    root: beam.Pipeline,
    data_dir: str | pathlib.Path,
    config: DataConfig,
    output_dir: str | pathlib.Path,
    prefix: str = "Split-{split}/data_tfrecord",
) -> None:
    """Adds to a pipeline: BuildExamples, its records as gzip TFRecords, its dead letters as Parquet.

    Args:
        prefix: of the record files under `output_dir`; the default is the layout of a TFX Examples artifact.
    """
    built = root | "BuildExamples" >> BuildExamples(data_dir, config)
    folder = pathlib.Path(output_dir)
    for split in ("train", "eval"):
        path = folder / prefix.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        _ = built[split] | f"Write_{split}" >> beam.io.WriteToTFRecord(
            str(path),
            file_name_suffix=".tfrecord.gz" if prefix == "{split}" else ".gz",
            coder=beam.coders.BytesCoder(),
        )
    folder.mkdir(parents=True, exist_ok=True)
    _ = built["dead_letter"] | "Write_dead_letter" >> beam.io.WriteToParquet(
        str(folder / "dead_letter"), _DEAD_LETTER, file_name_suffix=".parquet"
    )


def run(data_dir: str | pathlib.Path, config: DataConfig, output_dir: str | pathlib.Path) -> dict[str, int]:
    """Runs `write` in this process; returns the counts of train, eval and dead_letter rows."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", "--direct_num_workers=1"]))
    write(pipeline, data_dir, config, output_dir, prefix="{split}")
    result = pipeline.run()
    result.wait_until_finish()
    counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(NAMESPACE))["counters"]
    counts = {"train": 0, "eval": 0, "dead_letter": 0}
    for counter in counters:
        counts[counter.key.metric.name] += counter.committed
    return counts


def _row_groups(data_dir: str, names: typing.Sequence[str]) -> list[tuple[str, Part, int, int]]:
    """Returns (table, file, row group, row of the table with which it starts)."""
    result = []
    for name in names:
        first = 0
        for part in schema.table_parts(data_dir, name):
            for group, num_rows in enumerate(part.row_groups):
                result.append((name, part, group, first))
                first += num_rows
    return result


def _read_catalog(element: tuple[str, Part, int, int]) -> tuple[np.ndarray, np.ndarray]:
    name, part, group, _ = element
    table = schema.read_part(part, name, _COLUMNS[name], group)
    return schema.fingerprints(table["item_id"]), schema.fingerprints(table["category"])


def _dead_letters(
    table: pa.Table, name: str, rows: np.ndarray, bad: np.ndarray, reasons: np.ndarray
) -> typing.Iterator[pvalue.TaggedOutput]:
    places = np.flatnonzero(bad)
    for place, content in zip(places.tolist(), _plain(table.take(pa.array(places)))):
        yield pvalue.TaggedOutput(
            "dead_letter",
            {
                "table": name,
                "row": int(rows[place]),
                "reason": reasons[place],
                "content": json.dumps(content, default=str),
            },
        )


def _plain(table: pa.Table) -> list[dict[str, typing.Any]]:
    """Returns rows as plain values; times as text, since those that are bad may lie beyond all calendars."""
    columns = {
        name: instants.texts(table[name]) if pa.types.is_timestamp(table[name].type) else table[name].to_pylist()
        for name in table.column_names
    }
    return [dict(zip(columns, row)) for row in zip(*columns.values())]


class _ReadLogs(beam.DoFn):
    """(table, file, row group, first row) -> (shard, (table, arrays)); a user's rows share a shard."""

    def __init__(self, num_shards: int, has_behaviors: bool, has_split: bool, seen: dict[str, times.Resolution]):
        self._num_shards, self._has_behaviors, self._has_split = num_shards, has_behaviors, has_split
        self._seen = seen

    def setup(self) -> None:
        self._left_out = Metrics.counter(NAMESPACE, "dead_letter")

    def process(self, element: tuple[str, Part, int, int]) -> typing.Iterator[typing.Any]:
        name, part, group, first = element
        table = schema.read_part(part, name, _COLUMNS[name], group)
        bad, reasons = rules.broken(table, rules.row_rules(name, has_split=self._has_split))
        rows = np.arange(first, first + table.num_rows)
        self._left_out.inc(int(bad.sum()))
        yield from _dead_letters(table, name, rows, bad, reasons)
        earliest, latest = times.bounds(times.read_stored(part, name, group), self._seen[name])
        columns = {
            "user_id": schema.fingerprints(table["user_id"]),
            "item_id": schema.fingerprints(table["item_id"]),
            "timestamp": earliest,
            "latest": latest,
            "row": rows,
        }
        if name == "impressions":
            columns["label"] = table["label"].fill_null(0).to_numpy()
            columns["is_eval"] = np.asarray(pa.compute.equal(table["split"], "eval").fill_null(False).to_numpy(), bool)
        else:
            columns["order_line"] = table["order_line"].fill_null(0).to_numpy()
        shards = behaviors_lib.tie_break(columns["user_id"]) % np.uint64(self._num_shards)
        for shard in np.unique(shards[~bad]).tolist():
            kept = ~bad & (shards == shard)
            own = {key: values[kept] for key, values in columns.items()}
            yield shard, (name, own)
            if name == "impressions" and not self._has_behaviors:
                clicked = own["label"] == 1
                yield (
                    shard,
                    ("behaviors", {key: own[key][clicked] for key in ("user_id", "item_id", "timestamp", "latest")}),
                )


class _JoinShard(beam.DoFn):
    """(shard, all its arrays), with the catalog as side input -> serialized examples, tagged by split."""

    def __init__(self, max_behaviors: int, first_eval: int | None):
        self._max_behaviors, self._first_eval = max_behaviors, first_eval

    def setup(self) -> None:
        self._counters = {name: Metrics.counter(NAMESPACE, name) for name in ("train", "eval", "dead_letter")}

    def process(
        self, element: typing.Any, catalog_parts: list[tuple[np.ndarray, np.ndarray]]
    ) -> typing.Iterator[typing.Any]:
        parts: dict[str, list[examples.Columns]] = {"impressions": [], "behaviors": []}
        for name, columns in element[1]:
            parts[name].append(columns)
        if not parts["impressions"]:
            return
        catalog = _catalog(catalog_parts)
        impressions = _concatenate(parts["impressions"], ("user_id", "item_id", "timestamp", "label", "is_eval", "row"))
        names = ("user_id", "item_id", "timestamp", "latest") + (
            ("order_line",) if _all_have(parts["behaviors"], "order_line") else ()
        )
        behaviors = _concatenate(parts["behaviors"], names)
        shown = {name: impressions[name] for name in ("user_id", "item_id", "timestamp", "label")}
        table = pa.table(shown)
        bad, reasons = rules.broken(table, rules.row_rules("impressions", item_ids=catalog["item_id"]))
        self._counters["dead_letter"].inc(int(bad.sum()))
        yield from _dead_letters(table, "impressions", impressions["row"], bad, reasons)
        is_eval = impressions["is_eval"] if self._first_eval is None else impressions["timestamp"] >= self._first_eval
        for split, rows in (("train", ~bad & ~is_eval), ("eval", ~bad & is_eval)):
            built = examples.build(
                {name: values[rows] for name, values in shown.items()},
                behaviors,
                catalog,
                self._max_behaviors,
            )
            self._counters[split].inc(int(rows.sum()))
            for record in examples.serialize(built):
                yield pvalue.TaggedOutput(split, record)


def _all_have(parts: list[examples.Columns], name: str) -> bool:
    return all(name in part for part in parts)


def _concatenate(parts: list[examples.Columns], names: typing.Iterable[str]) -> examples.Columns:
    return {name: np.concatenate([part[name] for part in parts]) if parts else np.zeros(0, np.int64) for name in names}


def _catalog(parts: list[tuple[np.ndarray, np.ndarray]]) -> examples.Columns:
    ids, categories = (np.concatenate(arrays) for arrays in zip(*parts))
    order = np.argsort(ids, kind="stable")
    return {"item_id": ids[order], "category": categories[order]}
