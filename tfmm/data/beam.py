"""The Beam job that joins impressions with histories; it wraps the pure functions of `tfmm.data.examples`."""

from __future__ import annotations

import glob
import json
import logging
import pathlib
import typing

import numpy as np
import pyarrow as pa

from tfmm import artifacts, dead_letters, extras, plain_paths
from tfmm import config as config_lib
from tfmm.config import DataConfig
from tfmm.data import as_known, declared, examples, instants, left_out, rules, schema, times
from tfmm.data import behaviors as behaviors_lib
from tfmm.data.parts import Part
from tfmm.features import ACTIONS, KEYS, LABEL, Feature, FeatureSet

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
_BASE = ("user_id", "item_id", "timestamp", "label")  # of an impression, whatever a run declares
_ROW, _IS_EVAL = "_row", "_is_eval"  # see `examples.LATEST`
_COLUMNS = {  # what the join itself needs of each table
    "impressions": ("user_id", "item_id", "timestamp", "split"),  # and the label's
    "behaviors": ("user_id", "item_id", "timestamp", "action", "order_line"),
    "items": ("item_id",),
    "users": ("user_id",),
}
_DEAD_LETTER = pa.schema(
    [("table", pa.string()), ("row", pa.int64()), ("reason", pa.string()), ("content", pa.string())]
)


class BuildExamples(beam.PTransform):
    """Reads a data folder and builds one tf.Example per impression.

    Expands a pipeline root to a dict of PCollections: "train" and "eval" of serialized tf.Examples (bytes,
    columns of `tfmm.preprocessing.raw_spec`), "dead_letter" of dicts with `table`, `row` (from 0, over the table's
    files in order of name), `reason` and `content` (JSON). An impression of an item that the catalog lacks is a
    dead letter; a behavior of one, since delisted perhaps, stays in the history, without the item's features.
    """

    def __init__(self, data_dir: str | pathlib.Path, config: DataConfig, feature_set: FeatureSet):
        super().__init__()
        self._data_dir, self._config, self._features = str(data_dir), config, feature_set

    def expand(self, root: beam.Pipeline | pvalue.PBegin) -> dict[str, beam.PCollection]:
        if found := declared.faults(self._data_dir, self._features):
            raise ValueError(f"{self._data_dir} must have what the run declares. Received:\n- " + "\n- ".join(found))
        declared.id_types(self._data_dir, self._features)  # refuses ids of mixed types
        splits = schema.read_table(self._data_dir, "impressions", ["split"])["split"]
        tables = declared.tables(self._features)
        seen = times.resolutions(self._data_dir, self._config.time_zone)
        seen |= as_known.verified(self._data_dir, self._config.time_zone, tables)
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
        names += ["users"] if self._features.of_table("users") else []
        catalog = (
            root
            | "ListItems" >> beam.Create(_row_groups(self._data_dir, ["items"], tables))
            | "ReadItems" >> beam.FlatMap(_read_catalog, self._features, seen).with_outputs("dead_letter", main="rows")
        )
        read = (
            root
            | "ListLogs" >> beam.Create(_row_groups(self._data_dir, names, tables))
            | "SpreadLogs" >> beam.Reshuffle()
            | "ReadLogs"
            >> beam.ParDo(_ReadLogs(num_shards, has_behaviors, first_eval is None, seen, self._features)).with_outputs(
                "dead_letter", main="rows"
            )
        )
        built = (
            read.rows
            | "GroupByShard" >> beam.GroupByKey()
            | "Join"
            >> beam.ParDo(_JoinShard(self._features, first_eval), pvalue.AsList(catalog.rows)).with_outputs(
                "train", "eval", "dead_letter"
            )
        )
        dead_letters = (catalog.dead_letter, read.dead_letter, built.dead_letter) | "AllDeadLetters" >> beam.Flatten()
        return {"train": built.train, "eval": built.eval, "dead_letter": dead_letters}


def write(
    root: beam.Pipeline,
    data_dir: str | pathlib.Path,
    config: DataConfig,
    feature_set: FeatureSet,
    output_dir: str | pathlib.Path,
    prefix: str = "Split-{split}/data_tfrecord",
) -> None:
    """Adds to a pipeline: BuildExamples, its records as gzip TFRecords, its dead letters as Parquet.

    Args:
        prefix: of the record files under `output_dir`; the default is the layout of a TFX Examples artifact.
    """
    built = root | "BuildExamples" >> BuildExamples(data_dir, config, feature_set)
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


def run(
    data_dir: str | pathlib.Path, config: DataConfig, feature_set: FeatureSet, output_dir: str | pathlib.Path
) -> dict[str, int]:
    """Runs `write` in this process; returns the counts of train, eval and dead_letter rows."""
    logging.getLogger("apache_beam").setLevel(logging.WARNING)
    pipeline = beam.Pipeline(options=PipelineOptions(["--runner=FnApiRunner", "--direct_num_workers=1"]))
    pathlib.Path(output_dir).mkdir(parents=True, exist_ok=True)
    with plain_paths.plain(output_dir) as folder:
        write(pipeline, data_dir, config, feature_set, folder, prefix="{split}")
        result = pipeline.run()
        result.wait_until_finish()
    counters = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(NAMESPACE))["counters"]
    counts = {"train": 0, "eval": 0, "dead_letter": 0}
    for counter in counters:
        counts[counter.key.metric.name] += counter.committed
    return counts


def write_examples(
    data_dir: str | pathlib.Path,
    config: DataConfig,
    feature_set: FeatureSet,
    output_dir: str | pathlib.Path,
    say: typing.Callable[[str], object] = lambda line: None,
) -> dict[str, typing.Any]:
    """Runs `BuildExamples` on this machine, and says how many rows it wrote and which were left out.

    Writes `{train,eval}-*.tfrecord.gz`, `dead_letter-*.parquet` (rows that were left out, with their reason)
    and a manifest.

    Returns:
        The manifest: counts `train`, `eval` and `dead_letter`, and the `feature_set`.
    Raises:
        ValueError: a split came out empty, or a rule leaves out more than `config.max_bad_fraction` of a table's rows.
    """
    folder = pathlib.Path(output_dir)
    escaped = glob.escape(str(folder))
    for stale in glob.glob(f"{escaped}/*.tfrecord.gz") + glob.glob(f"{escaped}/dead_letter-*.parquet"):
        pathlib.Path(stale).unlink()
    counts = run(data_dir, config, feature_set, folder)
    say(f"examples: {counts['train']:,} train, {counts['eval']:,} eval, {counts['dead_letter']:,} rows left out")
    found, tables = dead_letters.counts(dead_letters.read(folder)), declared.tables(feature_set)
    for line in dead_letters.count_lines(found, folder):
        say(line)
    totals = {
        name: sum(sum(part.row_groups) for part in schema.table_parts(data_dir, name, tables))
        for name in {one.source for one in found}
    }
    left_out.verify(found, totals, config.max_bad_fraction, folder)
    if not counts["train"] or not counts["eval"]:
        raise ValueError(
            f"Both splits must have rows. Received: {counts}. {folder}/dead_letter-*.parquet holds the rows "
            "that were left out, with their reasons."
        )
    facts = {**counts, "feature_set": config_lib.to_dict(feature_set)}
    return artifacts.write_manifest(folder, "examples", config, parents=[data_dir], **facts)


def _row_groups(
    data_dir: str, names: typing.Sequence[str], tables: schema.Tables
) -> list[tuple[str, Part, int, int]]:
    """Returns (table, file, row group, row of the table with which it starts)."""
    result = []
    for name in names:
        first = 0
        for part in schema.table_parts(data_dir, name, tables):
            for group, num_rows in enumerate(part.row_groups):
                result.append((name, part, group, first))
                first += num_rows
    return result


def _read(
    name: str, part: Part, group: int, feature_set: FeatureSet, seen: times.Seen
) -> tuple[pa.Table, examples.Columns]:
    """Returns a row group in the declared types, and the features that come from it, by name."""
    labels = feature_set.label.sources if name == "impressions" else {}
    updated = [schema.UPDATED_AT] if times.VERSIONS.get(name) in seen else []
    wanted = declared.columns_of(name, (*_COLUMNS[name], *updated, *labels.values()), feature_set)
    table = schema.read_part(part, name, wanted, group, declared.tables(feature_set))
    columns = {
        f.name: declared.instants_of(part, name, group, f, seen)
        if f.kind == "time"
        else declared.values(table[f.column], f)
        for f in feature_set.of_table(name)
    }
    columns |= as_known.columns(as_known.updates(part, name, group, seen))
    return table, columns | {own: _label_values(table[column], own) for own, column in labels.items()}


def _label_values(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """Returns int64 labels or float32 weights and rates; of rows that a rule leaves out, anything."""
    if pa.types.is_null(column.type):
        return np.zeros(len(column), np.int64 if name == LABEL else np.float32)
    return column.fill_null(0).to_numpy()


def _read_catalog(
    element: tuple[str, Part, int, int], feature_set: FeatureSet, seen: times.Seen
) -> typing.Iterator[typing.Any]:
    """Yields a row group of items; versions whose time is a fault are dead letters."""
    name, part, group, first = element
    table, columns = _read(name, part, group, feature_set, seen)
    columns["item_id"] = schema.fingerprints(table["item_id"])
    own_rules = [rule for rule in rules.row_rules(name) if rule.column == schema.UPDATED_AT]
    bad, reasons = rules.broken(table, own_rules)
    if bad.any():
        Metrics.counter(NAMESPACE, "dead_letter").inc(int(bad.sum()))
        yield from _dead_letters(table, name, np.arange(first, first + table.num_rows), bad, reasons)
    yield {key: values[~bad] for key, values in columns.items()}


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

    def __init__(
        self,
        num_shards: int,
        has_behaviors: bool,
        has_split: bool,
        seen: times.Seen,
        feature_set: FeatureSet,
    ):
        self._num_shards, self._has_behaviors, self._has_split = num_shards, has_behaviors, has_split
        self._seen, self._features = seen, feature_set

    def setup(self) -> None:
        self._left_out = Metrics.counter(NAMESPACE, "dead_letter")

    def process(self, element: tuple[str, Part, int, int]) -> typing.Iterator[typing.Any]:
        name, part, group, first = element
        table, columns = _read(name, part, group, self._features, self._seen)
        own_rules = rules.row_rules(
            name, has_split=self._has_split, tables=declared.tables(self._features), label=self._features.label
        )
        bad, reasons = rules.broken(table, own_rules)
        rows = np.arange(first, first + table.num_rows)
        self._left_out.inc(int(bad.sum()))
        yield from _dead_letters(table, name, rows, bad, reasons)
        columns["user_id"] = schema.fingerprints(table["user_id"])
        if name != "users":
            columns["item_id"] = schema.fingerprints(table["item_id"])
            stored = times.read_stored(part, name, group)
            columns["timestamp"], columns[examples.LATEST] = times.bounds(stored, self._seen[name])
        if name == "impressions":
            columns[_ROW] = rows
            columns[_IS_EVAL] = np.asarray(pa.compute.equal(table["split"], "eval").fill_null(False).to_numpy(), bool)
        elif name == "behaviors":
            columns[examples.ACTION] = declared.action_places(table["action"])
            columns[examples.ORDER_LINE] = table["order_line"].fill_null(0).to_numpy()
        shards = behaviors_lib.tie_break(columns["user_id"]) % np.uint64(self._num_shards)
        for shard in np.unique(shards[~bad]).tolist():
            kept = ~bad & (shards == shard)
            own = {key: values[kept] for key, values in columns.items()}
            yield shard, (name, own)
            if name == "impressions" and not self._has_behaviors:
                clicked = own["label"] == 1
                acts = {key: own[key][clicked] for key in (*KEYS, "timestamp", examples.LATEST)}
                acts[examples.ACTION] = np.full(int(clicked.sum()), ACTIONS.index("click"))
                yield shard, ("behaviors", acts)


class _JoinShard(beam.DoFn):
    """(shard, all its arrays), with the catalog as side input -> serialized examples, tagged by split."""

    def __init__(self, feature_set: FeatureSet, first_eval: int | None):
        self._features, self._first_eval = feature_set, first_eval

    def setup(self) -> None:
        self._counters = {name: Metrics.counter(NAMESPACE, name) for name in ("train", "eval", "dead_letter")}

    def process(self, element: typing.Any, catalog_parts: list[examples.Columns]) -> typing.Iterator[typing.Any]:
        parts: dict[str, list[examples.Columns]] = {"impressions": [], "behaviors": [], "users": []}
        for name, columns in element[1]:
            parts[name].append(columns)
        if not parts["impressions"]:
            return
        catalog, impressions = _sorted_by("item_id", catalog_parts), _stacked(parts["impressions"])
        users = _sorted_by("user_id", parts["users"]) if parts["users"] else self._nobody()
        behaviors = _stacked(parts["behaviors"]) if parts["behaviors"] else self._nothing()
        shown = pa.table({name: impressions[name] for name in _BASE})
        bad, reasons = rules.broken(shown, rules.row_rules("impressions", item_ids=catalog["item_id"]))
        self._counters["dead_letter"].inc(int(bad.sum()))
        yield from _dead_letters(shown, "impressions", impressions[_ROW], bad, reasons)
        is_eval = impressions[_IS_EVAL] if self._first_eval is None else impressions["timestamp"] >= self._first_eval
        for split, rows in (("train", ~bad & ~is_eval), ("eval", ~bad & is_eval)):
            chosen = {name: values[rows] for name, values in impressions.items()}
            built = examples.build(chosen, behaviors, catalog, users, self._features)
            self._counters[split].inc(int(rows.sum()))
            for record in examples.serialize(built):
                yield pvalue.TaggedOutput(split, record)

    def _nobody(self) -> examples.Columns:
        own = {f.name: _empty(f) for f in self._features.of_table("users")}
        return own | {"user_id": np.zeros(0, np.int64)}

    def _nothing(self) -> examples.Columns:
        own = {f.name: _empty(f) for f in self._features.of_table("behaviors")}
        return own | {name: np.zeros(0, np.int64) for name in (*KEYS, "timestamp", examples.ACTION)}


def _empty(feature: Feature) -> np.ndarray:
    return np.zeros((0, feature.max_values) if feature.kind == "ids" else 0, examples.dtype_of(feature))


def _stacked(parts: list[examples.Columns]) -> examples.Columns:
    """Stacks the columns that all parts have."""
    names = [name for name in parts[0] if all(name in part for part in parts)]
    return {name: np.concatenate([part[name] for part in parts]) for name in names}


def _sorted_by(key: str, parts: list[examples.Columns]) -> examples.Columns:
    columns = _stacked(parts)
    order = as_known.order(columns, key)
    return {name: values[order] for name, values in columns.items()}
