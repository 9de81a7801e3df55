"""Beam transforms that embed the catalog into the item index."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import time
import typing

import numpy as np
import pyarrow as pa

from tfmm import buckets, dead_letters, extras, plain_paths
from tfmm.data import as_known, declared, left_out, rules, schema, times
from tfmm.data.parts import Part
from tfmm.features import STORED, FeatureSet
from tfmm.index import encode, item_features, store
from tfmm.modalities import UNDECLARED, ModalitySet

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    raise extras.MissingExtraError(extras.explain(error) or error, name=error.name) from error

BATCH_SIZE = 64
DECLARED = FeatureSet()
MAX_CONTENT = 1 << 20  # characters of a rejected content that its dead letter keeps; the catalog has it whole
_METRICS = "item_index"
_FAULT = f"{schema.UPDATED_AT}: {rules.OUTSIDE_YEARS}"


class CatalogPart(typing.NamedTuple):
    """One row group of an items file."""

    part: Part
    row_group: int
    rows: np.ndarray | None = None  # int64 [k] that are read of it, see `as_known.row_groups`; None: all


def catalog_parts(
    data_dir: str | pathlib.Path, tables: schema.Tables | None = None, time_zone: str = "UTC"
) -> list[CatalogPart]:
    """Returns the row groups of the catalog's files; where items have versions, with the rows that are the newest.

    Raises:
        ValueError: two versions of one item have one instant, or none is told.
    """
    if not as_known.see(data_dir, time_zone, tables, ["items"]):
        as_known.require_unique(data_dir, "items", tables)
    groups = as_known.row_groups(data_dir, "items", time_zone, tables, with_faulty=True)
    return list(itertools.starmap(CatalogPart, groups))


class Reading(typing.NamedTuple):
    """What is read of the catalog."""

    tables: schema.Tables
    contents: dict[str, str]  # column by modality
    layout: item_features.Layout
    seen: times.Seen  # of impressions, whose zone is that of all times that name none, and of versions, where there are
    time_zone: str = "UTC"  # of `created_at`

    @property
    def columns(self) -> list[str]:
        own = [feature.column for feature in self.layout.features]
        return list(dict.fromkeys(["item_id", "created_at", *own, *self.contents.values()]))


def read_items(
    part: CatalogPart, reading: Reading, batch_size: int = BATCH_SIZE
) -> typing.Iterator[list[encode.Item]]:
    """Yields a row group's items in batches, with contents and features."""
    table = schema.read_part(part.part, "items", reading.columns, part.row_group, reading.tables)
    rows = np.arange(table.num_rows) if part.rows is None else part.rows
    table = table if part.rows is None else table.take(pa.array(rows))
    layout = reading.layout
    now_us = time.time_ns() // 1000
    written_us = min(now_us, buckets.stat(part.part.path)[1] // 1000)
    updates = as_known.updates(part.part, "items", part.row_group, reading.seen)
    faulty = np.zeros(len(rows), bool) if updates is None else updates.faulty[rows]
    created = times.starts(part.part, "items", part.row_group, reading.time_zone)[rows]
    created = np.where((created >= 0) & (created <= now_us), created, 0)  # what is yet to come tells no age
    instants = {
        f.name: declared.instants_of(part.part, "items", part.row_group, f, reading.seen)[rows]
        for f in layout.features
        if f.kind == "time"
    }
    for start in range(0, table.num_rows, batch_size):
        batch, places = table.slice(start, batch_size), slice(start, start + batch_size)
        ids = schema.fingerprints(batch["item_id"]).tolist()
        contents = [_contents(batch[column]) for column in reading.contents.values()]
        packed: list[tuple[item_features.Packed, ...]] = [()] * len(ids)
        if layout.features:
            values = {
                f.name: instants[f.name][places] if f.kind == "time" else declared.values(batch[f.column], f)
                for f in layout.features
            }
            packed = [(item_features.Packed(layout.version, row),) for row in layout.pack(values)]
        faults = [_FAULT if bad else None for bad in faulty[places].tolist()]
        yield [
            encode.Item(item_id, time, dict(zip(reading.contents, values)), features, written_us, fault)
            for item_id, time, features, fault, *values in zip(ids, created[places].tolist(), packed, faults, *contents)
        ]


def _contents(column: pa.ChunkedArray) -> list[typing.Any]:
    """Returns a column's values; texts as bytes, since one with invalid UTF-8 must not end the job."""
    return (column.cast(pa.binary()) if pa.types.is_string(column.type) else column).to_pylist()


def load_encoders(
    encoder_dirs: typing.Mapping[str, str], vector_dims: typing.Mapping[str, int]
) -> list[encode.AnyEncoder]:
    """Loads the encoders of a job.

    Args:
        encoder_dirs: pre-training's output folder by modality.
        vector_dims: dims of the vectors that items bring themselves, by modality.
    Raises:
        ValueError: a folder holds the encoder of another modality.
    """
    encoders: list[encode.AnyEncoder] = []
    for modality, folder in sorted(encoder_dirs.items()):
        encoder = encode.load_encoder(folder)
        if encoder.modality != modality:
            raise ValueError(
                f"`encoder_dirs` names {folder} for {modality!r}. It holds an encoder of {encoder.modality!r}."
            )
        encoders.append(encoder)
    return encoders + [encode.GivenVectors(dim, modality) for modality, dim in sorted(vector_dims.items())]


class EmbedIntoIndex(beam.DoFn):
    """Embeds batches of items and writes each in one transaction; emits rejected contents.

    Args:
        encoder_dirs: pre-training's output folder by modality.
        vector_dims: dims of the items' own vectors, by modality.
        index: the item index, a path or a URL (`store.open_store`), which knows the layout of features.
    """

    def __init__(self, encoder_dirs: typing.Mapping[str, str], vector_dims: typing.Mapping[str, int], index: str):
        self._encoder_dirs, self._vector_dims, self._url = dict(encoder_dirs), dict(vector_dims), index

    def setup(self) -> None:
        self._encoders = load_encoders(self._encoder_dirs, self._vector_dims)
        self._index = store.open_store(self._url)

    def process(self, items: list[encode.Item]) -> typing.Iterator[encode.Rejected]:
        results = [(encoder, *encode.embed(items, encoder)) for encoder in self._encoders]
        written = {item.item_id: item.catalog_time_us for item in items}
        tables = [
            store.TableRows(encoder.modality, encoder.version, rows, None, _times(written, rows.ids))
            for encoder, rows, _, _ in results
        ]
        applied = self._index.apply(store.IndexBatch(rows=[*tables, *encode.feature_rows(items)]))
        for (encoder, rows, rejected, missing), changed in zip(results, applied.rows):
            counts = {"embedded": len(rows), "changed": changed, "rejected": len(rejected), "missing": missing}
            for name, count in counts.items():
                beam.metrics.Metrics.counter(_METRICS, f"{encoder.modality}/{name}").inc(count)
        for encoder, _, rejected, _ in results:
            for place, reason in rejected.items():
                content = items[place].content(encoder.modality)
                yield encode.Rejected(items[place].item_id, encoder.modality, reason, content)

    def teardown(self) -> None:
        self._index.close()


def _times(times: typing.Mapping[int, int], ids: np.ndarray) -> np.ndarray:
    return np.array([times[item_id] for item_id in ids.tolist()], np.int64)


class EmbedCatalog(beam.PTransform):
    """Embeds the catalog of a data folder into the index; gives the rejected contents (`encode.Rejected`).

    Args:
        data_dir: the data folder, with table `items`.
        encoder_dirs: pre-training's output folder by modality; items' own vectors need none.
        index: the item index, a path or a URL (`store.open_store`).
        modality_set, feature_set: what the run declares.
        time_zone: of times whose column names none, of features and of versions.

    Attributes:
        vector_dims: dims of the items' own vectors, by modality.
        layout: of the items' features.
    Raises:
        ValueError: the catalog lacks the column of a feature, or two versions of one item have one instant.
    """

    def __init__(
        self,
        data_dir: str | pathlib.Path,
        encoder_dirs: typing.Mapping[str, str],
        index: str | pathlib.Path,
        modality_set: ModalitySet = UNDECLARED,
        feature_set: FeatureSet = DECLARED,
        time_zone: str = "UTC",
    ):
        super().__init__()
        tables = declared.tables(feature_set, modality_set)
        self._parts = catalog_parts(data_dir, tables, time_zone)
        self.vector_dims = vector_dims(data_dir, modality_set)
        self.layout = item_features.Layout.of(feature_set, declared.id_types(data_dir, feature_set))
        _require_columns(self._parts, self.layout)
        contents = {name: modality_set[name].content for name in sorted({*encoder_dirs, *self.vector_dims})}
        seen = {**_seen(data_dir, self.layout, time_zone), **as_known.see(data_dir, time_zone, tables, ["items"])}
        self._reading = Reading(tables, contents, self.layout, seen, time_zone)
        self._encoder_dirs, self._url = dict(encoder_dirs), str(index)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Parts" >> beam.Create(self._parts)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(read_items, self._reading)
            | "Embed" >> beam.ParDo(EmbedIntoIndex(self._encoder_dirs, self.vector_dims, self._url))
        )


def _seen(data_dir: str | pathlib.Path, layout: item_features.Layout, time_zone: str) -> times.Seen:
    """Returns the clocks of the catalog's times, as the join of impressions reads them."""
    if all(feature.kind != "time" for feature in layout.features):
        return {}
    return {"impressions": times.Resolution(time_zone)} | times.resolutions(data_dir, time_zone, ["impressions"])


def _require_columns(parts: typing.Sequence[CatalogPart], layout: item_features.Layout) -> None:
    """Raises ValueError where the catalog lacks a declared column; only `category` may be absent."""
    known = {name for part in parts for name in part.part.schema.names} | {"category"}
    if missing := [f"items.{f.column} of {f.name!r}" for f in layout.features if f.column not in known]:
        raise ValueError(
            f"The catalog must have the columns of declared features. Missing: {', '.join(missing)}. Name another "
            "`source`, or leave the feature out."
        )


def vector_dims(data_dir: str | pathlib.Path, modality_set: ModalitySet = UNDECLARED) -> dict[str, int]:
    """Returns the most frequent length of the vectors that items bring themselves, by modality."""
    parts = schema.table_parts(data_dir, "items")
    ready = [m for m in map(modality_set.__getitem__, schema.modalities(data_dir, modality_set)) if m.is_ready]
    dims = {modality.name: declared.vector_dim(parts, modality.content) for modality in ready}
    return {name: dim for name, dim in dims.items() if dim}


def embed_catalog(
    data_dir: str | pathlib.Path,
    encoder_dirs: typing.Mapping[str, str],
    index: str | pathlib.Path,
    dead_letter_dir: str | pathlib.Path | None = None,
    pipeline_args: typing.Sequence[str] = ("--runner=FnApiRunner",),
    modality_set: ModalitySet = UNDECLARED,
    feature_set: FeatureSet = DECLARED,
    max_bad_fraction: float = 1.0,
    time_zone: str = "UTC",
    activate: bool = True,
) -> dict[str, dict[str, int]]:
    """Embeds the whole catalog into the item index, items' features with it, and makes its encoders the active ones.

    Of an item with versions (`tfmm.data.as_known`) the newest is taken. Running it again changes only what changed in
    the catalog; items of the same encoders that came by the stream stay. Where the stream has touched an item, a row
    counts that is not what the catalog said the last time, from the time on at which its file was written; an item that
    was withdrawn stays so.

    Args:
        data_dir: the data folder.
        encoder_dirs: pre-training's output folder by modality; items' own vectors need none.
        index: the item index, a path or a URL (`store.open_store`); made where missing.
        dead_letter_dir: receives rejected contents as JSON lines, with reasons; None: they are only counted.
        pipeline_args: Beam's options.
        modality_set, feature_set: what the run declares.
        max_bad_fraction: the share of a modality's contents that may be rejected for one reason.
        time_zone: IANA name, of times whose column names none, of features and of versions.
        activate: else the active encoders and layout stay so, and the new tables stand beside theirs.
    Returns:
        By modality, the number of items `embedded`, of those `changed` in the index, `rejected` and `missing`
        (without content).
    Raises:
        ValueError: nothing to embed: no encoder is named and the catalog brings no vectors; or it lacks the column of a
            declared feature; or the index holds ids of another type; or too many contents are rejected: then the
            encoders in use stay the active ones.
    """
    transform = EmbedCatalog(data_dir, encoder_dirs, index, modality_set, feature_set, time_zone)
    encoders = load_encoders(encoder_dirs, transform.vector_dims)
    if not encoders:
        raise ValueError(
            f"`encoder_dirs` must name an encoder, since items of {data_dir} bring no vectors. Received: none."
        )
    layout = transform.layout
    with store.open_store(index) as opened:
        opened.keep_id_types(schema.item_id_types(data_dir))
        if layout.features:
            opened.register_encoder(STORED, layout.version, layout.dim, layout.text)
    pipeline = beam.Pipeline(options=PipelineOptions(list(pipeline_args)))
    rejected = pipeline | transform
    with contextlib.ExitStack() as stack:
        if dead_letter_dir is not None:
            pathlib.Path(dead_letter_dir).mkdir(parents=True, exist_ok=True)
            prefix = stack.enter_context(plain_paths.plain(dead_letter_dir)) + "/embedding"
            rejected | "ToJSON" >> beam.Map(_to_json) | "DeadLetters" >> beam.io.WriteToText(prefix, ".jsonl")
        result = pipeline.run()
        result.wait_until_finish()
    counters = {
        counter.key.metric.name: counter.committed
        for counter in result.metrics().query(beam.metrics.MetricsFilter().with_namespace(_METRICS))["counters"]
    }
    counts = {
        encoder.modality: {
            name: counters.get(f"{encoder.modality}/{name}", 0)
            for name in ("embedded", "changed", "rejected", "missing")
        }
        for encoder in encoders
    }
    _verify(counts, dead_letter_dir, max_bad_fraction)
    with store.open_store(index) as opened:
        for encoder in encoders:
            opened.register_encoder(encoder.modality, encoder.version, encoder.dim)
            if activate:
                opened.activate(encoder.modality, encoder.version)
        if layout.features and activate:
            opened.activate(STORED, layout.version)
    return counts


def _to_json(rejected: encode.Rejected) -> str:
    return json.dumps({**rejected._asdict(), "content": _kept(rejected.content)})


def _kept(content: encode.Content | None) -> str | None:
    """Returns a content as text, the end of what is long replaced by its size; None where there is none."""
    if content is None:
        return None
    whole = content if isinstance(content, (bytes, str)) else json.dumps(content)
    data = whole.encode("utf-8", "surrogatepass") if isinstance(whole, str) else whole
    text = str(dead_letters.as_text(data))
    return text if len(text) <= MAX_CONTENT else f"{text[:MAX_CONTENT]}... ({len(data):,} bytes)"


def _verify(
    counts: typing.Mapping[str, typing.Mapping[str, int]],
    dead_letter_dir: str | pathlib.Path | None,
    max_bad_fraction: float,
) -> None:
    """Raises ValueError where too many contents of a modality were rejected for one reason."""
    totals = {f"items.{name}": count["embedded"] + count["rejected"] for name, count in counts.items()}
    if dead_letter_dir is not None:
        found = dead_letters.counts(dead_letters.read(*sorted(pathlib.Path(dead_letter_dir).glob("*.jsonl"))))
    else:
        rejected = {f"items.{modality}": count["rejected"] for modality, count in counts.items()}
        stage, reason = dead_letters.EMBEDDING, "cannot be embedded"
        found = [dead_letters.Count(stage, source, "", reason, count) for source, count in rejected.items()]
    left_out.verify(found, totals, max_bad_fraction, dead_letter_dir)
