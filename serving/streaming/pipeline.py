"""The streaming job (section 5): new item event -> encoder -> item index, as one Beam pipeline."""

from __future__ import annotations

import collections
import json
import logging
import math
import os
import pathlib
import threading
import time
import typing
import zlib

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.utils.timestamp import Duration

from serving.streaming import embedding, event_log, ingestion, letters, metrics
from tfmm import artifacts, dead_letters, registered
from tfmm.index import beam as index_beam
from tfmm.index import encode, item_features, store

PIPELINE_ARGS = (
    "--runner=FnApiRunner",
    "--streaming",
    "--direct_running_mode=in_memory",
    "--direct_num_workers=1",
)
MAX_BATCH = 32  # events embedded together
_LOOK_S = 2.0  # between looks for new logs of a source
_END = (1 << 63) - 1
_METRICS = "streaming"

stop_requested = threading.Event()  # set it, and the job ends after the batch at hand (in-process runners)


class _Tracker(OffsetRestrictionTracker):
    def is_bounded(self) -> bool:
        return False


_RESTRICTION = beam.DoFn.RestrictionParam()  # the DoFn itself provides it


class Share(typing.NamedTuple):
    """What one of several readers takes of a source: every so many-th of its logs."""

    url: str
    number: int
    num_readers: int

    def parts(self, source: typing.Any) -> list[event_log.EventSource]:
        """Returns those of the opened source that there are now; a log stays with its reader."""
        return [part for part in event_log.parts_of(source) if _place(part) % self.num_readers == self.number]


def _place(part: event_log.EventSource) -> int:
    place = getattr(part, "number", None)  # of a partition
    return zlib.crc32(part.name.encode()) if place is None else place


class ReadEvents(beam.DoFn, beam.transforms.core.RestrictionProvider):
    """Splittable: turns a share of a source into an endless stream of `embedding.EventBatch`.

    Each log is read from the index's position on, which is written together with what its events led to. The
    restriction counts the events of this run, so that an engine may stop a bundle and go on behind it. Draining stops
    at once, as what is left stays in the log.

    Batches go on at once, not at the end of a bundle. FnApiRunner keeps about 24 KB for every bundle of a job and
    grows slower with each, so bundles are long there; an engine that takes checkpoints between bundles wants
    short ones.

    Args:
        index: the item index, a path or a URL, which knows from where to read.
        poll_s: seconds between looks at an idle source.
        bundle_s: seconds until a bundle ends.
        ready_file: JSON file written at the first look, when encoders are loaded; None: none.
    """

    def __init__(self, index: str, poll_s: float, bundle_s: float, ready_file: str | None):
        self._url, self._poll_s, self._bundle_s, self._ready_file = index, poll_s, bundle_s, ready_file
        self._sources: dict[str, typing.Any] = {}
        self._readers: dict[str, event_log.EventSource] = {}

    def initial_restriction(self, share: Share) -> OffsetRange:
        return OffsetRange(0, _END)

    def create_tracker(self, restriction: OffsetRange) -> _Tracker:
        return _Tracker(restriction)

    def restriction_size(self, share: Share, restriction: OffsetRange) -> int:
        return 1

    def truncate(self, share: Share, restriction: OffsetRange) -> None:
        return None

    @beam.DoFn.unbounded_per_element()
    def process(
        self, share: Share, tracker: typing.Any = _RESTRICTION
    ) -> typing.Iterator[embedding.EventBatch]:
        if share.url not in self._sources:
            self._sources[share.url] = event_log.open_source(share.url)
        source = self._sources[share.url]
        claimed = tracker.current_restriction().start - 1
        end = time.monotonic() + self._bundle_s
        with store.open_store(self._url) as index:
            positions: dict[str, int] = {}
            looked = -math.inf
            while time.monotonic() < end:
                if time.monotonic() - looked > _LOOK_S:
                    looked = time.monotonic()
                    for part in share.parts(source):
                        if part.name not in positions:
                            self._readers.setdefault(part.name, part)
                            positions[part.name] = index.position(part.name)
                    self._tell_ready(source.name, positions)
                is_idle = True
                for name in positions:
                    if stop_requested.is_set():
                        tracker.try_claim(_END - 1)  # nothing is left to do here; the log keeps it for the next start
                        return
                    batch = self._readers[name].read(positions[name], MAX_BATCH)
                    if not batch:
                        continue
                    is_idle, claimed = False, claimed + len(batch)
                    if not tracker.try_claim(claimed):
                        return
                    positions[name] = batch[-1].offset
                    yield embedding.EventBatch(name, batch)
                if is_idle:
                    stop_requested.wait(self._poll_s)
                    if stop_requested.is_set() and not positions:
                        tracker.try_claim(_END - 1)
                        return
        tracker.defer_remainder(Duration(seconds=0))

    def _tell_ready(self, source: str, positions: typing.Mapping[str, int]) -> None:
        if self._ready_file is not None:
            write_json(self._ready_file, {"pid": os.getpid(), "source": source, "positions": positions})
            self._ready_file = None

    def teardown(self) -> None:
        for opened in [*self._readers.values(), *self._sources.values()]:
            if hasattr(opened, "close"):
                opened.close()


class EmbedEvents(beam.DoFn):
    """Embeds batches of events into the index; see `ingestion.ingest`.

    Args:
        encoder_dirs: pre-training's output folder by modality; several of one modality write rows side by side.
        index: the item index, a path or a URL.
        letters_url: a log that gets dead letters too; None: the index alone has them.
    """

    def __init__(
        self, encoder_dirs: typing.Sequence[typing.Mapping[str, str]], index: str, letters_url: str | None = None
    ):
        self._encoder_dirs, self._url, self._letters_url = [*encoder_dirs], index, letters_url
        self._letters: letters.LetterLog | None = None

    def setup(self) -> None:
        self._index = store.open_store(self._url)
        found = [encoder for folders in self._encoder_dirs for encoder in index_beam.load_encoders(folders, {})]
        found += index_beam.load_encoders({}, given_dims(self._index))
        self._encoders = list({(encoder.modality, encoder.version): encoder for encoder in found}.values())
        for encoder in self._encoders:
            self._index.register_encoder(encoder.modality, encoder.version, encoder.dim)
        embedding.warm_up(self._encoders)
        if self._letters_url is not None:
            self._letters = letters.LetterLog(self._letters_url)

    def process(self, batch: embedding.EventBatch) -> None:
        outcome = ingestion.ingest(batch, self._encoders, self._index, item_features.layouts(self._index))
        metrics.record(batch, outcome)
        if self._letters is not None:
            self._letters.send(ingestion.dead_letters_of(batch, outcome))
        items, withdrawn = outcome.items, outcome.withdrawn
        events, dead, older = len(batch.events), len(outcome.dead), len(outcome.older)
        for name, count in (("events", events), ("dead_letters", dead), ("older", older)):
            beam.metrics.Metrics.counter(_METRICS, name).inc(count)
        for reason, count in collections.Counter(dead_letters.reason_code(why) for _, why in outcome.dead).items():
            logging.warning("left out: %d of %s: %s; `tfmm dead-letters INDEX` shows them", count, batch.source, reason)
        newest_us = max((item.event_time_us for item in [*items, *withdrawn]), default=0)
        logging.info(
            "offset %d: %d items, %d withdrawn, %d dead letters, %d older than what is known, the newest %.0f ms old",
            batch.events[-1].offset,
            len(items),
            len(withdrawn),
            dead,
            older,
            (time.time_ns() // 1000 - newest_us) / 1000,
        )

    def teardown(self) -> None:
        self._index.close()
        if self._letters is not None:
            self._letters.close()


def run(
    events_url: str | pathlib.Path,
    encoders_dir: str | pathlib.Path | typing.Sequence[str | pathlib.Path] | None,
    index: str | pathlib.Path,
    ready_file: str | pathlib.Path | None = None,
    poll_s: float = 0.005,
    bundle_s: float = 60.0,
    pipeline_args: typing.Sequence[str] = PIPELINE_ARGS,
    readers: int = 1,
    letters_url: str | None = None,
) -> None:
    """Runs the job until `stop_requested` is set.

    Each event takes effect once, however often the job is killed: the position lies in the index, written in
    the same transaction as what the events led to.

    Args:
        events_url: where events come from, see `event_log.open_source`.
        encoders_dir: folder with one encoder per modality, as pre-training wrote them; several folders: every event
            is embedded by the encoders of each; None: there are none, and items bring their own vectors.
        index: the item index, a path or a URL (`tfmm.index.store.open_store`); made where missing.
        ready_file: JSON file that says when the job polls; None: none.
        poll_s: seconds between looks at an idle source.
        bundle_s: seconds until a bundle ends; take less than a second on Flink.
        pipeline_args: Beam's options.
        letters_url: a log that gets dead letters too, as JSON (`letters.to_json`); None: the index alone has them.
        readers: that share the source's logs; as many as the engine has slots, and 1 on FnApiRunner, which runs one
            after another.
    Raises:
        ValueError: the folder holds no encoder, and the index no vectors that items brought themselves.
        Exception: the index or an encoder fails on any event. One event alone ends nothing: it becomes a dead letter.
    """
    folders = [encoders_dir] if isinstance(encoders_dir, (str, os.PathLike)) else encoders_dir or ()
    encoder_dirs = [found for folder in folders if (found := find_encoders(folder))]
    with store.open_store(index) as opened:
        if not encoder_dirs and not given_dims(opened):
            raise ValueError(
                f"`encoders_dir` must hold an encoder as <modality>/{artifacts.MANIFEST}, since items of "
                f"{registered.without_password(index)} do not bring their own vectors. Received: {encoders_dir}. Name "
                "the folder that pre-training wrote; a quickstart leaves it at "
                "<workdir>/pipeline/SCLTrainer/encoders/<N>."
            )
    events = os.fspath(events_url)
    event_log.source_class(events)  # an unknown scheme ends it here, and not in a worker
    if letters_url is not None and not hasattr(event_log.source_class(letters_url), "append"):
        raise ValueError(f"Dead letters need a log that takes them. Received: {letters_url}, which has no `append`.")
    url, ready = str(index), None if ready_file is None else str(ready_file)
    pipeline = beam.Pipeline(options=PipelineOptions(list(pipeline_args)))
    _ = (
        pipeline
        | "Source" >> beam.Create([Share(events, number, readers) for number in range(readers)])
        | "Spread" >> beam.Reshuffle()
        | "Read" >> beam.ParDo(ReadEvents(url, poll_s, bundle_s, ready))
        | "Embed" >> beam.ParDo(EmbedEvents(encoder_dirs, url, letters_url))
    )
    pipeline.run().wait_until_finish()


def given_dims(index: store.IndexStore) -> dict[str, int]:
    """Returns the dims of the vectors that items bring themselves, by modality."""
    return {
        modality: encoder.dim
        for modality, encoder in index.active_encoders().items()
        if encoder.encoder_version.startswith(encode.GIVEN)
    }


def find_encoders(encoders_dir: str | pathlib.Path) -> dict[str, str]:
    """Returns the folders of the encoders in `encoders_dir` by modality."""
    manifests = sorted(pathlib.Path(encoders_dir).glob(f"*/{artifacts.MANIFEST}"))
    return {
        path.parent.name: str(path.parent)
        for path in manifests
        if artifacts.read_manifest(path.parent)["kind"] == "encoder"
    }


def write_json(path: str | pathlib.Path, values: typing.Mapping[str, typing.Any]) -> None:
    """Writes a JSON file so that a reader sees all of it or none."""
    path = pathlib.Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(values) + "\n")
    temporary.replace(path)
