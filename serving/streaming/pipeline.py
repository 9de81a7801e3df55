"""The streaming job (section 5): new item event -> encoder -> item index, as one Beam pipeline."""

from __future__ import annotations

import collections
import logging
import os
import pathlib
import time
import typing

import apache_beam as beam

from serving.streaming import embedding, engine, event_log, ingestion, letters, metrics, reading
from tfmm import artifacts, dead_letters, registered
from tfmm.index import beam as index_beam
from tfmm.index import encode, item_features, store

stop_requested = reading.stop_requested  # set it, and the job ends
_METRICS = "streaming"


class _Encoders(list):
    """Encoders, which can be held together."""


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
        self._key = f"{os.urandom(8).hex()} encoders"
        self._letters: letters.LetterLog | None = None

    def setup(self) -> None:
        self._index = store.open_store(self._url)
        self._encoders = reading.held(self._key, self._load)
        if self._letters_url is not None:
            self._letters = letters.LetterLog(self._letters_url)

    def _load(self) -> _Encoders:
        found = [encoder for folders in self._encoder_dirs for encoder in index_beam.load_encoders(folders, {})]
        found += index_beam.load_encoders({}, given_dims(self._index))
        encoders = _Encoders({(encoder.modality, encoder.version): encoder for encoder in found}.values())
        for encoder in encoders:
            self._index.register_encoder(encoder.modality, encoder.version, encoder.dim)
        embedding.warm_up(encoders)
        return encoders

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
        times = [item.event_time_us for item in [*items, *withdrawn]]
        age = f", the newest {(time.time_ns() // 1000 - max(times)) / 1000:.0f} ms old" if times else ""
        logging.info(
            "offset %d: %d items, %d withdrawn, %d dead letters, %d older than what is known%s",
            batch.events[-1].offset,
            len(items),
            len(withdrawn),
            dead,
            older,
            age,
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
    bundle_s: float | None = None,
    pipeline_args: typing.Sequence[str] = (),
    readers: int | None = None,
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
        bundle_s: seconds until a bundle ends, for which an engine's checkpoints wait; None: as suits the engine.
        pipeline_args: Beam's options; none that name a runner: see `engine.Engine`.
        letters_url: a log that gets dead letters too, as JSON (`letters.to_json`); None: the index alone has them.
        readers: that share the source's logs; None: as many as the engine works at once. In this process one.
    Raises:
        ValueError: the folder holds no encoder, and the index no vectors that items brought themselves.
            Or Beam's options cannot be used, or several readers are wanted in this process.
        Exception: the index or an encoder fails on any event. One event alone ends nothing: it becomes a dead letter.
    """
    chosen = engine.Engine(pipeline_args)
    num_readers = chosen.num_readers(readers)
    folders = [encoders_dir] if isinstance(encoders_dir, (str, os.PathLike)) else encoders_dir or ()
    encoder_dirs = [found for folder in folders if (found := find_encoders(chosen.place(folder)))]
    with store.open_store(index) as opened:
        if not encoder_dirs and not given_dims(opened):
            raise ValueError(
                f"`encoders_dir` must hold an encoder as <modality>/{artifacts.MANIFEST}, since items of "
                f"{registered.without_password(index)} do not bring their own vectors. Received: {encoders_dir}. Name "
                "the folder that pre-training wrote; a quickstart leaves it at "
                "<workdir>/pipeline/SCLTrainer/encoders/<N>."
            )
    events = chosen.place(events_url)
    event_log.source_class(events)  # an unknown scheme ends it here, and not in a worker
    if letters_url is not None and not hasattr(event_log.source_class(letters_url), "append"):
        raise ValueError(f"Dead letters need a log that takes them. Received: {letters_url}, which has no `append`.")
    url, ready = chosen.place(index), None if ready_file is None else chosen.place(ready_file)
    letters_log = None if letters_url is None else chosen.place(letters_url)
    bundle_s = chosen.bundle_s if bundle_s is None else bundle_s

    def make(pipeline: beam.Pipeline) -> None:
        _ = (
            pipeline
            | "Numbers" >> beam.Create(range(num_readers))
            | "Shares" >> beam.ParDo(reading.Shares(stays=chosen.is_outside)).with_output_types(tuple[int, None])
            | "Read" >> beam.ParDo(reading.ReadEvents(events, num_readers, url, poll_s, bundle_s, ready))
            | "Embed" >> beam.ParDo(EmbedEvents(encoder_dirs, url, letters_log))
        )

    chosen.run(make, f"{url} {events}", stop_requested)


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
