"""What a batch of events leads to: embeddings, withdrawals and dead letters; no state and no output."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import typing

from serving.streaming import event_log, events, item_features
from tfmm.index import encode
from tfmm.index import rows as rows_lib
from tfmm.index.item_features import Layout
from tfmm.modalities import event_field

_MAX_NAMES = 200  # characters of what an event brings, in a reason
_log = logging.getLogger(__name__)
_MAX_SAID = 100
_said: set[str] = set()  # contents that events bring and no encoder takes, the first of them


class EventBatch(typing.NamedTuple):
    """Events that are embedded together."""

    source: str
    events: list[event_log.Event]


class Outcome(typing.NamedTuple):
    """What the index takes for a batch of events."""

    items: list[encode.Item]  # with features, with an embedding or without
    withdrawn: list[encode.Item]
    embedded: list[tuple[encode.AnyEncoder, rows_lib.IndexRows]]
    dead: list[tuple[event_log.Event, str]]  # with the reason
    older: typing.Sequence[int] = ()  # ids of items of which the index knows something newer: not taken


def embed_events(
    batch: typing.Sequence[event_log.Event],
    encoders: typing.Sequence[encode.AnyEncoder],
    layouts: typing.Sequence[Layout] = (),
    id_types: typing.Mapping[str, str] | None = None,
) -> Outcome:
    """Parses events, and embeds their items with every encoder whose content they bring.

    Args:
        batch: in order.
        encoders: of the index.
        layouts: of the features that the index keeps, the active one last.
        id_types: of the catalog, as far as they are known; see `events.parse_events`.
    Raises:
        encode.EncoderError: an encoder fails on every content.
    """
    parsed: list[tuple[event_log.Event, events.NewItem]] = []
    dead: list[tuple[event_log.Event, str]] = []
    for event, result in zip(batch, events.parse_events([event.payload for event in batch], id_types)):
        if isinstance(result, events.EventError):
            dead.append((event, str(result)))
        else:
            parsed.append((event, result))
    new: list[tuple[event_log.Event, encode.Item]] = []
    arriving = [(event, result) for event, result in parsed if not result.is_withdrawn]
    rows_of_features = item_features.pack([result.features for _, result in arriving], layouts)
    for (event, result), packed in zip(arriving, rows_of_features):
        if isinstance(packed, events.EventError):
            dead.append((event, str(packed)))
        else:
            new.append((event, dataclasses.replace(result.item, features=packed)))
    embedded = []
    for encoder in encoders:
        rows, reasons, _ = encode.embed([item for _, item in new], encoder)
        embedded.append((encoder, rows))
        known = {(event.offset, reason) for event, reason in dead}  # by another encoder of the modality
        found = [(new[place][0], reason) for place, reason in reasons.items()]
        dead += [(event, reason) for event, reason in found if (event.offset, reason) not in known]
    taken = sorted({event_field(encoder.modality) for encoder in encoders})
    features = sorted({f"features.{feature.column}" for layout in layouts for feature in layout.features})
    columns = {event.offset: [f"features.{name}" for name in sorted(result.features)] for event, result in arriving}
    for event, item in new:
        brought = sorted(event_field(modality) for modality in item.contents if item.content(modality) is not None)
        if not set(brought) & set(taken) and not (item.features and not brought):
            reason = "no content that this index embeds: it takes {}, the event brings {}"
            said = ", ".join([*brought, *columns[event.offset]])[:_MAX_NAMES].encode(errors="backslashreplace").decode()
            dead.append((event, reason.format(", ".join([*taken, *features]), said)))
        else:
            _say_unused(set(brought) - set(taken), taken)
    return Outcome(
        [item for _, item in new],
        [result.item for _, result in parsed if result.is_withdrawn],
        embedded,
        dead,
    )


def _say_unused(fields: set[str], taken: typing.Sequence[str]) -> None:
    """Names contents that events bring and no encoder takes in the log, once each."""
    for field in sorted({field[:100] for field in fields} - _said)[: _MAX_SAID - len(_said)]:
        _said.add(field)
        _log.warning("not used: %s of events; the index takes %s", field, ", ".join(taken))


def concatenate(outcomes: typing.Sequence[Outcome]) -> Outcome:
    """Returns the outcomes of consecutive batches as one."""
    return Outcome(*(list(itertools.chain.from_iterable(parts)) for parts in zip(*outcomes)))


def warm_up(encoders: typing.Sequence[encode.AnyEncoder]) -> None:
    """Makes the first event as fast as later ones."""
    learned = [encoder.modality for encoder in encoders if not isinstance(encoder, encode.GivenVectors)]
    contents = dict.fromkeys(learned, b"warm-up")
    payload = events.make_event("warm-up", contents=contents)
    embed_events([event_log.Event(0, payload)], encoders)
