"""Where events enter the index: a batch in one transaction; no event, whatever it holds, ends the job."""

from __future__ import annotations

import logging
import traceback
import typing

from serving.streaming import embedding
from tfmm.index import encode, store
from tfmm.index.item_features import Layout

_log = logging.getLogger(__name__)


def ingest(
    batch: embedding.EventBatch,
    encoders: typing.Sequence[encode.AnyEncoder],
    index: store.IndexStore,
    layouts: typing.Sequence[Layout] = (),
) -> embedding.Outcome:
    """Embeds a batch and writes what it leads to; rows, withdrawals, dead letters and position together.

    Where that fails, the events are taken one by one, and one that fails by itself becomes a dead letter: a later
    start would fail on it again, and never come to the events behind it.

    Returns:
        What has been written.
    Raises:
        encode.EncoderError: an encoder fails on every content.
        Exception: the index itself fails (`IndexStore.is_failing`), by a full disk, a lock or a damaged file.
            Nothing is lost by either: the source's position stays before the events that were not written.
    """
    try:
        return _write(batch, embedding.embed_events(batch.events, encoders, layouts, index.id_types()), index)
    except encode.EncoderError:
        raise
    except Exception as error:
        if index.is_failing(error):
            raise
        if len(batch.events) > 1:
            singles = [batch._replace(events=[event]) for event in batch.events]
            return embedding.concatenate([ingest(single, encoders, index, layouts) for single in singles])
        (event,) = batch.events
        _log.exception("offset %d of %s becomes a dead letter", event.offset, batch.source)
        reason = "the event fails: " + "".join(traceback.format_exception_only(type(error), error)).strip()
        return _write(batch, embedding.Outcome([], [], [], [(event, reason)]), index)


def dead_letters_of(batch: embedding.EventBatch, outcome: embedding.Outcome) -> list[store.DeadLetter]:
    """Returns what of a batch could not be used."""
    return [store.DeadLetter(batch.source, event.offset, reason, event.payload) for event, reason in outcome.dead]


def _write(batch: embedding.EventBatch, outcome: embedding.Outcome, index: store.IndexStore) -> embedding.Outcome:
    applied = index.apply(
        store.IndexBatch(
            rows=[
                *(store.TableRows(encoder.modality, encoder.version, rows) for encoder, rows in outcome.embedded),
                *encode.feature_rows(outcome.items),
            ],
            withdrawn=[store.Withdrawal(item.item_id, item.event_time_us) for item in outcome.withdrawn],
            dead_letters=dead_letters_of(batch, outcome),
            positions={batch.source: batch.events[-1].offset},
        )
    )
    return outcome._replace(older=applied.older)
