"""Where events enter the index: a batch in one transaction; no event, whatever it holds, ends the job."""

from __future__ import annotations

import logging
import sqlite3
import traceback
import typing

from serving.streaming import embedding
from tfmm.index import encode, item_index

_log = logging.getLogger(__name__)
_VALUE_ERRORS = (sqlite3.DataError, sqlite3.IntegrityError)  # the store is well, and cannot hold this value


def ingest(
    batch: embedding.EventBatch, encoders: typing.Sequence[encode.AnyEncoder], index: item_index.ItemIndex
) -> embedding.Outcome:
    """Embeds a batch and writes what it leads to; rows, categories, dead letters and position in one transaction.

    Where that fails, the events are taken one by one, and one that fails by itself becomes a dead letter: a later
    start would fail on it again, and never come to the events behind it.

    Returns:
        What has been written.
    Raises:
        sqlite3.Error: the index itself fails, by a full disk, a lock or a damaged file.
        encode.EncoderError: an encoder fails on every content.
            Nothing is lost by either: the source's position stays before the events that were not written.
    """
    try:
        return _write(batch, embedding.embed_events(batch.events, encoders, index.catalog.id_types()), index)
    except encode.EncoderError:
        raise
    except Exception as error:
        if isinstance(error, sqlite3.Error) and not isinstance(error, _VALUE_ERRORS):
            raise
        if len(batch.events) > 1:
            singles = [batch._replace(events=[event]) for event in batch.events]
            return embedding.concatenate([ingest(single, encoders, index) for single in singles])
        (event,) = batch.events
        _log.exception("offset %d of %s becomes a dead letter", event.offset, batch.source)
        reason = "the event fails: " + "".join(traceback.format_exception_only(type(error), error)).strip()
        return _write(batch, embedding.Outcome([], [], [], [(event, reason)]), index)


def _write(
    batch: embedding.EventBatch, outcome: embedding.Outcome, index: item_index.ItemIndex
) -> embedding.Outcome:
    with index.transaction():
        index.write_items(
            [item.item_id for item in outcome.items],
            [item.category for item in outcome.items],
            [item.event_time_us for item in outcome.items],
        )
        older: set[int] = set()
        withdrawn = [item.item_id for item in outcome.withdrawn], [item.event_time_us for item in outcome.withdrawn]
        for encoder, rows in outcome.embedded:
            index.write(encoder.modality, encoder.version, rows.ids, rows.rows, rows.scales, rows.event_times_us)
            for ids, times in ((rows.ids, rows.event_times_us), withdrawn):
                is_older = index.is_older(encoder.modality, encoder.version, ids, times)
                older |= {i for i, passed_over in zip(map(int, ids), is_older) if passed_over}
        index.withdraw(*withdrawn)
        for event, reason in outcome.dead:
            index.write_dead_letter(batch.source, event.offset, reason, event.payload)
        index.commit_position(batch.source, batch.events[-1].offset)
    return outcome._replace(older=sorted(older))
