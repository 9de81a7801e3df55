"""The Beam job that joins impressions with histories; it wraps the pure functions of `tfmm.data.examples`."""

from __future__ import annotations

import collections
import gzip
import logging
import pathlib
import typing

import numpy as np

from tfmm import buckets, dead_letters, extras
from tfmm.config import DataConfig
from tfmm.data import as_known, declared, examples, instants, join, left_out, reading, schema, spans, times
from tfmm.features import FeatureSet

try:
    import apache_beam as beam
    from apache_beam import pvalue
    from apache_beam.metrics import Metrics
except ModuleNotFoundError as error:
    raise extras.MissingExtraError(extras.explain(error) or error, name=error.name) from error

NAMESPACE = "tfmm.data"
PREFIX = "Split-{split}/data_tfrecord"  # of files of records, as a TFX Examples artifact has them
_LOG = logging.getLogger(__name__)


class BuildExamples(beam.PTransform):
    """Reads a data folder and builds one tf.Example per impression.

    Expands a pipeline root to a dict of PCollections: "train" and "eval" of serialized tf.Examples (bytes,
    columns of `tfmm.preprocessing.raw_spec`), "dead_letter" of dicts with `table`, `row` (from 0, over the table's
    files in order of name), `reason` and `content` (JSON). An impression of an item that the catalog lacks is a
    dead letter; a behavior of one, since delisted perhaps, stays in the history, without the item's features.
    """

    def __init__(
        self,
        data_dir: str | pathlib.Path,
        config: DataConfig,
        feature_set: FeatureSet,
        before: spans.Before = spans.FROM_SCRATCH,
        newest_us: int | None = None,
    ):
        """Takes what is to be joined, and what is held out; of a model that goes on, what is after its watermark.

        An impression later than `newest_us` (None: a day from now) has not happened, and is a dead letter.

        `span` says what these are once a pipeline has been built, and `read` how many rows of each log are read.
        """
        super().__init__()
        self._data_dir, self._config, self._features = str(data_dir), config, feature_set
        self._before, self._newest_us = before, newest_us
        self.span = spans.Span(None, 0, 0, (), {}, instants.NULL)
        self.read = dict.fromkeys(reading.LOGS, 0)

    def expand(self, root: beam.Pipeline | pvalue.PBegin) -> dict[str, beam.PCollection]:
        declared.require(self._data_dir, self._features)
        impressions = reading.row_groups(self._data_dir, ["impressions"], self._features)
        seen = times.resolutions(self._data_dir, self._config.time_zone)
        seen |= as_known.verified(self._data_dir, self._config.time_zone, declared.tables(self._features))
        for note in times.notes(seen):
            _LOG.warning(note)
        has_split = reading.has_split(impressions)
        tally = spans.Tally(self._before, self._newest_us, has_split)
        counts, first_eval = spans.look(impressions, seen["impressions"], self._config.eval_fraction, tally)
        self.span = tally.span()
        has_behaviors = schema.has_table(self._data_dir, "behaviors")
        reader = reading.Reader(self._features, seen, has_behaviors, has_split, tally.newest_us)
        names = reading.log_names(self._data_dir, self._features)
        logs = reading.row_groups(self._data_dir, names, self._features)
        if has_behaviors:  # else clicks are behaviors, of before the span too
            old = {(group.part, group.group) for group, count in zip(impressions, counts) if not count}
            logs = [one for one in logs if one.table != "impressions" or (one.part, one.group) not in old]
        for one in logs:
            self.read[one.table] += one.part.row_groups[one.group]
        num_rows = collections.Counter({"impressions": sum(counts)})
        for one in logs:
            if one.table != "impressions":
                num_rows[one.table] += one.part.row_groups[one.group]
        num_shards = join.num_partitions(num_rows)
        catalog = (
            root
            | "ListItems" >> beam.Create(reading.row_groups(self._data_dir, ["items"], self._features))
            | "ReadItems" >> beam.ParDo(_ReadItems(reader)).with_outputs("dead_letter", main="rows")
        )
        sorted_catalog = catalog.rows | "SortItems" >> beam.CombineGlobally(_Sort()).without_defaults()
        read = (
            root
            | "ListLogs" >> beam.Create(logs)
            | "SpreadLogs" >> beam.Reshuffle()
            | "ReadLogs"
            >> beam.ParDo(_ReadLogs(num_shards, reader, tally)).with_outputs("dead_letter", main="rows")
        )
        built = (
            read.rows
            | "GroupByShard" >> beam.GroupByKey()
            | "Join"
            >> beam.ParDo(_JoinShard(self._features, first_eval), pvalue.AsSingleton(sorted_catalog)).with_outputs(
                *schema.SPLITS, "dead_letter"
            )
        )
        dead_letters = (catalog.dead_letter, read.dead_letter, built.dead_letter) | "AllDeadLetters" >> beam.Flatten()
        return {**{split: built[split] for split in schema.SPLITS}, "dead_letter": dead_letters}


def write(
    root: beam.Pipeline,
    data_dir: str | pathlib.Path,
    config: DataConfig,
    feature_set: FeatureSet,
    output_dir: str | pathlib.Path,
    prefix: str = PREFIX,
    before: spans.Before = spans.FROM_SCRATCH,
    newest_us: int | None = None,
) -> spans.Span:
    """Adds to a pipeline: BuildExamples, its records as gzip TFRecords, its dead letters as Parquet.

    Args:
        prefix: of the record files under `output_dir`.
        before: what is known before the training, see `BuildExamples`.
        newest_us: see there.
    Returns:
        The span, which is written beside the examples, too.
    """
    return _write(root, data_dir, config, feature_set, output_dir, prefix, before, newest_us).span


def generate(
    pipeline: beam.Pipeline,
    data_dir: str | pathlib.Path,
    config: DataConfig,
    feature_set: FeatureSet,
    output_dir: str | pathlib.Path,
    before: spans.Before = spans.FROM_SCRATCH,
) -> tuple[spans.Span, list[dead_letters.Count]]:
    """Runs a pipeline that writes examples into a folder of this machine, as `write` does, and looks at what came.

    Returns:
        The span, and how many rows were left out, by reason.
    Raises:
        EmptySpan: no impression is later than the watermark, or none is to be trained on.
        ValueError: a rule leaves out more than `config.max_bad_fraction` of a table's rows as far as they were read,
            or a split came out empty.
    """
    with pipeline as root:
        build = _write(root, data_dir, config, feature_set, output_dir, PREFIX, before, None)
    lost = dead_letters.counts(dead_letters.read(output_dir))
    left_out.verify(lost, left_out.totals(lost, build.read, data_dir, feature_set), config.max_bad_fraction)
    has_rows = {split: _has_records(pathlib.Path(output_dir), PREFIX.format(split=split)) for split in schema.SPLITS}
    empty = ", ".join(f"no row of {split}" for split, has_any in has_rows.items() if not has_any)
    count = sum(one.count for one in lost)
    left_out.verify_splits(has_rows, before.goes_on, f"{empty}; {count:,} rows left out")
    return build.span, lost


def _has_records(folder: pathlib.Path, prefix: str) -> bool:
    """Returns whether one of a split's files, which are compressed, holds anything."""
    for path in sorted(folder.glob(f"{prefix}*.gz")):
        with gzip.open(path) as file:
            if file.read(1):
                return True
    return False


def _write(
    root: beam.Pipeline,
    data_dir: str | pathlib.Path,
    config: DataConfig,
    feature_set: FeatureSet,
    output_dir: str | pathlib.Path,
    prefix: str,
    before: spans.Before,
    newest_us: int | None,
) -> BuildExamples:
    build = BuildExamples(data_dir, config, feature_set, before, newest_us)
    built = root | "BuildExamples" >> build
    folder = str(output_dir).rstrip("/")
    for split in schema.SPLITS:
        path = f"{folder}/{prefix.format(split=split)}"
        _make_folder(path.rpartition("/")[0])
        _ = built[split] | f"Write_{split}" >> beam.io.WriteToTFRecord(
            path,
            file_name_suffix=".tfrecord.gz" if prefix == "{split}" else ".gz",
            coder=beam.coders.BytesCoder(),
        )
    _make_folder(folder)
    _ = built["dead_letter"] | "Write_dead_letter" >> beam.io.WriteToParquet(
        f"{folder}/dead_letter", reading.DEAD_LETTER, file_name_suffix=".parquet"
    )
    build.span.write(folder)
    return build


def _make_folder(path: str) -> None:
    """Makes a folder of this machine; a bucket needs none."""
    if not buckets.is_url(path):
        pathlib.Path(path).mkdir(parents=True, exist_ok=True)


class _Sort(beam.CombineFn):
    """The parts of the catalog -> the catalog, ascending by id: once, for all shards."""

    def create_accumulator(self) -> list[examples.Columns]:
        return []

    def add_input(self, parts: list[examples.Columns], part: examples.Columns) -> list[examples.Columns]:
        return [*parts, part]

    def merge_accumulators(self, accumulators: typing.Iterable[list[examples.Columns]]) -> list[examples.Columns]:
        return [part for parts in accumulators for part in parts]

    def extract_output(self, parts: list[examples.Columns]) -> examples.Columns:
        return reading.sorted_by("item_id", parts)


class _ReadItems(beam.DoFn):
    """Row group of items -> their arrays."""

    def __init__(self, reader: reading.Reader):
        self._reader = reader

    def setup(self) -> None:
        self._left_out = Metrics.counter(NAMESPACE, "dead_letter")

    def process(self, element: reading.RowGroup) -> typing.Iterator[typing.Any]:
        good, letters = self._reader.catalog(reading.RowGroup(*element))
        self._left_out.inc(len(letters))
        yield from (pvalue.TaggedOutput("dead_letter", letter) for letter in letters)
        yield good


class _ReadLogs(beam.DoFn):
    """Row group -> (shard, (table, arrays)); a user's rows share a shard."""

    def __init__(self, num_shards: int, reader: reading.Reader, tally: spans.Tally):
        self._num_shards, self._reader, self._tally = num_shards, reader, tally

    def setup(self) -> None:
        self._left_out = Metrics.counter(NAMESPACE, "dead_letter")

    def process(self, element: reading.RowGroup) -> typing.Iterator[typing.Any]:
        good, letters = self._reader.log(reading.RowGroup(*element))
        self._left_out.inc(len(letters))
        yield from (pvalue.TaggedOutput("dead_letter", letter) for letter in letters)
        if "impressions" in good:
            good["impressions"] = spans.of_span(good["impressions"], self._tally)
        for name, columns in good.items():
            shards = reading.shards_of(columns, self._num_shards)
            for shard in np.unique(shards).tolist():
                yield shard, (name, {key: values[shards == shard] for key, values in columns.items()})


class _JoinShard(beam.DoFn):
    """(shard, all its arrays), with the catalog as side input -> serialized examples, tagged by split."""

    def __init__(self, feature_set: FeatureSet, first_eval: int | None):
        self._features, self._first_eval = feature_set, first_eval

    def setup(self) -> None:
        self._counters = {name: Metrics.counter(NAMESPACE, name) for name in (*schema.SPLITS, "dead_letter")}

    def process(self, element: typing.Any, catalog: examples.Columns) -> typing.Iterator[typing.Any]:
        parts: dict[str, list[examples.Columns]] = {name: [] for name in reading.LOGS}
        for name, columns in element[1]:
            parts[name].append(columns)
        if not parts["impressions"]:
            return
        impressions = reading.stacked(parts["impressions"])
        users = reading.users_of(parts["users"], self._features)
        behaviors = reading.behaviors_of(parts["behaviors"], self._features)
        bad, letters = reading.unlisted(impressions, catalog["item_id"])
        self._counters["dead_letter"].inc(len(letters))
        yield from (pvalue.TaggedOutput("dead_letter", letter) for letter in letters)
        is_eval = reading.is_eval(impressions, self._first_eval)
        for split, rows in zip(schema.SPLITS, (~bad & ~is_eval, ~bad & is_eval)):
            chosen = {name: values[rows] for name, values in impressions.items()}
            built = examples.build(chosen, behaviors, catalog, users, self._features)
            self._counters[split].inc(int(rows.sum()))
            for record in examples.serialize(built):
                yield pvalue.TaggedOutput(split, record)
