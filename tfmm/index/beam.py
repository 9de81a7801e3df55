"""Beam transforms that embed the catalog into the item index."""

from __future__ import annotations

import json
import pathlib
import typing

import pyarrow as pa

from tfmm import dead_letters, extras, features
from tfmm.data import declared, left_out, schema
from tfmm.data.parts import Part
from tfmm.index import encode, item_index
from tfmm.modalities import UNDECLARED, ModalitySet

try:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions
except ModuleNotFoundError as error:
    raise extras.MissingExtraError(extras.explain(error) or error, name=error.name) from error

BATCH_SIZE = 64
MAX_CONTENT_BYTES = 1 << 20  # of a rejected content that its dead letter keeps; the catalog has it whole
_METRICS = "item_index"


class CatalogPart(typing.NamedTuple):
    """One row group of an items file."""

    part: Part
    row_group: int


def catalog_parts(data_dir: str | pathlib.Path) -> list[CatalogPart]:
    """Returns the row groups of the catalog's files."""
    return [
        CatalogPart(part, group)
        for part in schema.table_parts(data_dir, "items")
        for group in range(len(part.row_groups))
    ]


def read_items(
    part: CatalogPart, modalities: ModalitySet, names: typing.Collection[str], batch_size: int = BATCH_SIZE
) -> typing.Iterator[list[encode.Item]]:
    """Yields a row group's items in batches, with the contents of the modalities named only."""
    columns = {name: modalities[name].content for name in sorted(names)}
    wanted = list(dict.fromkeys(["item_id", "category", "created_at", *columns.values()]))
    table = schema.read_part(part.part, "items", wanted, part.row_group, schema.documented(modalities))
    for start in range(0, table.num_rows, batch_size):
        rows = table.slice(start, batch_size)
        ids, categories = (schema.fingerprints(rows[name]).tolist() for name in ("item_id", "category"))
        times = [max(0, time) for time in schema.microseconds(rows["created_at"]).tolist()]
        contents = [_contents(rows[column]) for column in columns.values()]
        yield [
            encode.Item(item_id, category, time, dict(zip(columns, values)))
            for item_id, category, time, *values in zip(ids, categories, times, *contents)
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
        index_path: the SQLite file of the item index.
    """

    def __init__(
        self, encoder_dirs: typing.Mapping[str, str], vector_dims: typing.Mapping[str, int], index_path: str
    ):
        self._encoder_dirs, self._vector_dims, self._index_path = dict(encoder_dirs), dict(vector_dims), index_path

    def setup(self) -> None:
        self._encoders = load_encoders(self._encoder_dirs, self._vector_dims)
        self._index = item_index.ItemIndex(self._index_path)

    def process(self, items: list[encode.Item]) -> typing.Iterator[encode.Rejected]:
        results = [(encoder, *encode.embed(items, encoder)) for encoder in self._encoders]
        named = [item for item in items if item.item_id != features.PADDING]
        with self._index.transaction():
            self._index.write_items(
                [item.item_id for item in named],
                [item.category for item in named],
                [item.event_time_us for item in named],
            )
            for encoder, rows, rejected, missing in results:
                changed = self._index.write(
                    encoder.modality, encoder.version, rows.ids, rows.rows, rows.scales, rows.event_times_us
                )
                for name, count in (
                    ("embedded", len(rows)),
                    ("changed", changed),
                    ("rejected", len(rejected)),
                    ("missing", missing),
                ):
                    beam.metrics.Metrics.counter(_METRICS, f"{encoder.modality}/{name}").inc(count)
        for encoder, _, rejected, _ in results:
            for place, reason in rejected.items():
                content = items[place].content(encoder.modality)
                yield encode.Rejected(items[place].item_id, encoder.modality, reason, content)

    def teardown(self) -> None:
        self._index.close()


class EmbedCatalog(beam.PTransform):
    """Embeds the catalog of a data folder into the index; gives the rejected contents (`encode.Rejected`).

    Args:
        data_dir: the data folder, with table `items`.
        encoder_dirs: pre-training's output folder by modality; items' own vectors need none.
        index_path: the SQLite file of the item index.
        modality_set: what the run declares.

    Attributes:
        vector_dims: dims of the items' own vectors, by modality.
    """

    def __init__(
        self,
        data_dir: str | pathlib.Path,
        encoder_dirs: typing.Mapping[str, str],
        index_path: str | pathlib.Path,
        modality_set: ModalitySet = UNDECLARED,
    ):
        super().__init__()
        self._parts, self._modalities = catalog_parts(data_dir), modality_set
        self.vector_dims = vector_dims(data_dir, modality_set)
        self._encoder_dirs, self._index_path = dict(encoder_dirs), str(index_path)

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection:
        return (
            begin
            | "Parts" >> beam.Create(self._parts)
            | "Spread" >> beam.Reshuffle()
            | "Read" >> beam.FlatMap(read_items, self._modalities, [*self._encoder_dirs, *self.vector_dims])
            | "Embed" >> beam.ParDo(EmbedIntoIndex(self._encoder_dirs, self.vector_dims, self._index_path))
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
    index_path: str | pathlib.Path,
    dead_letter_dir: str | pathlib.Path | None = None,
    pipeline_args: typing.Sequence[str] = ("--runner=FnApiRunner",),
    modality_set: ModalitySet = UNDECLARED,
    max_bad_fraction: float = 1.0,
) -> dict[str, dict[str, int]]:
    """Embeds the whole catalog into the item index and makes its encoders the active ones.

    Running it again changes only what changed in the catalog; items of the same encoders that came by the stream
    stay.

    Args:
        data_dir: the data folder.
        encoder_dirs: pre-training's output folder by modality; items' own vectors need none.
        index_path: the SQLite file of the item index; made where missing.
        dead_letter_dir: receives rejected contents as JSON lines, with reasons; None: they are only counted.
        pipeline_args: Beam's options.
        modality_set: what the run declares.
        max_bad_fraction: the share of a modality's contents that may be rejected for one reason; where more are,
            the encoders stay as active as they were.
    Returns:
        By modality, the number of items `embedded`, of those `changed` in the index, `rejected` and `missing`
        (without content).
    Raises:
        ValueError: nothing to embed: no encoder is named and the catalog brings no vectors; or too much is rejected.
    """
    transform = EmbedCatalog(data_dir, encoder_dirs, index_path, modality_set)
    encoders = load_encoders(encoder_dirs, transform.vector_dims)
    if not encoders:
        raise ValueError(
            f"`encoder_dirs` must name an encoder, since items of {data_dir} bring no vectors. Received: none."
        )
    pipeline = beam.Pipeline(options=PipelineOptions(list(pipeline_args)))
    rejected = pipeline | transform
    if dead_letter_dir is not None:
        (
            rejected
            | "ToJSON" >> beam.Map(_to_json)
            | "DeadLetters" >> beam.io.WriteToText(str(pathlib.Path(dead_letter_dir) / "embedding"), ".jsonl")
        )
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
    with item_index.ItemIndex(index_path) as index:
        for encoder in encoders:
            index.register_encoder(encoder.modality, encoder.version, encoder.dim)
            index.activate(encoder.modality, encoder.version)
    return counts


def _to_json(rejected: encode.Rejected) -> str:
    content = rejected.content
    if isinstance(content, bytes):
        content = dead_letters.as_text(content[:MAX_CONTENT_BYTES])
    return json.dumps({**rejected._asdict(), "content": content if isinstance(content, str) else json.dumps(content)})


def _verify(
    counts: typing.Mapping[str, typing.Mapping[str, int]],
    dead_letter_dir: str | pathlib.Path | None,
    max_bad_fraction: float,
) -> None:
    """Raises ValueError where too many contents of a modality were rejected for one reason."""
    totals = {f"items.{m}": sum(c[name] for name in ("embedded", "rejected", "missing")) for m, c in counts.items()}
    if dead_letter_dir is not None:
        found = dead_letters.counts(dead_letters.read(*sorted(pathlib.Path(dead_letter_dir).glob("*.jsonl"))))
    else:
        rejected = {f"items.{modality}": count["rejected"] for modality, count in counts.items()}
        stage, reason = dead_letters.EMBEDDING, "cannot be embedded"
        found = [dead_letters.Count(stage, source, "", reason, count) for source, count in rejected.items()]
    left_out.verify(found, totals, max_bad_fraction)
