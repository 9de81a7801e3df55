"""New item events: JSON, versioned, checked where they enter."""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import time
import typing

from tfmm import features, fingerprints
from tfmm.index import encode

VERSION = 1
_FIELDS = ("version", "item_id", "category", "title", "image", "vector", "event_time_us", "withdrawn")


class EventError(ValueError):
    """An event that cannot be used; it goes to the dead letters with this reason."""


class NewItem(typing.NamedTuple):
    """A parsed event."""

    item: encode.Item
    is_withdrawn: bool


def make_event(
    item_id: int | str,
    *,
    category: int | str | None = None,
    title: str | None = None,
    image: bytes | None = None,
    vector: typing.Sequence[float] | None = None,
    event_time_us: int | None = None,
    withdrawn: bool = False,
) -> bytes:
    """Returns an event as bytes of JSON.

    Args:
        item_id: as in the catalog.
        category: as in the catalog; None: none.
        title: text content.
        image: encoded PNG or JPEG; base64 in the event.
        vector: the item's own embedding, where the catalog brings them.
        event_time_us: when the item entered or changed, microseconds since 1970; None: now.
        withdrawn: the item leaves the index.

    >>> make_event(7, title="red shoe", event_time_us=1)
    b'{"version": 1, "item_id": 7, "title": "red shoe", "event_time_us": 1}'
    """
    event = {
        "version": VERSION,
        "item_id": item_id,
        "category": category,
        "title": title,
        "image": None if image is None else base64.b64encode(image).decode(),
        "vector": None if vector is None else [float(value) for value in vector],
        "event_time_us": time.time_ns() // 1000 if event_time_us is None else event_time_us,
        "withdrawn": withdrawn or None,
    }
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


def parse_events(payloads: typing.Sequence[bytes]) -> list[NewItem | EventError]:
    """Reads and checks events; an event that cannot be used comes as the reason why.

    >>> good, bad = parse_events([make_event(7, title="red shoe", event_time_us=1), b"?"])
    >>> good.item.title, str(bad)
    ('red shoe', 'not JSON: Expecting value: line 1 column 1 (char 0)')
    """
    results: list[NewItem | EventError] = []
    for payload in payloads:
        try:
            results.append(_parse(payload))
        except EventError as error:
            results.append(error)
    good = [result for result in results if isinstance(result, NewItem)]
    ids, categories = (
        iter(_fingerprints([getattr(new.item, field) for new in good])) for field in ("item_id", "category")
    )
    return [
        new
        if isinstance(new, EventError)
        else new._replace(item=dataclasses.replace(new.item, item_id=next(ids), category=next(categories)))
        for new in results
    ]


def _parse(payload: bytes) -> NewItem:
    """Returns an event whose ids are still as in the catalog."""
    try:
        event = json.loads(payload)
    except ValueError as error:
        raise EventError(f"not JSON: {error}") from error
    if not isinstance(event, dict):
        raise EventError("not a JSON object")
    if event.get("version") != VERSION:
        raise EventError(f"version: must be {VERSION}, not {event.get('version')!r}")
    if unknown := sorted(set(event) - set(_FIELDS)):
        raise EventError(f"unknown fields: {', '.join(unknown)}")
    time_us = event.get("event_time_us")
    if time_us is None or not _is_integer(time_us) or not 0 <= time_us < 1 << 63:
        raise EventError(f"event_time_us: must be microseconds since 1970, not {time_us!r}")
    item_id = _id(event, "item_id")
    if item_id in (None, "", features.PADDING):
        raise EventError(f"item_id: must be neither missing, 0 nor empty, not {item_id!r}")
    title, withdrawn = event.get("title"), event.get("withdrawn", False)
    if title is not None and not isinstance(title, str):
        raise EventError(f"title: must be text, not {type(title).__name__}")
    if not isinstance(withdrawn, bool):
        raise EventError(f"withdrawn: must be true or false, not {withdrawn!r}")
    item = encode.Item(item_id, _id(event, "category"), time_us, _image(event), title, _vector(event))  # type: ignore[arg-type]
    if not withdrawn and not (item.image or item.title or item.vector):
        raise EventError("no content: none of image, title and vector is given")
    return NewItem(item, withdrawn)


def _fingerprints(ids: typing.Sequence[int | str | None]) -> list[int]:
    texts = iter(fingerprints.fingerprint([value for value in ids if isinstance(value, str)]).tolist())
    return [next(texts) if isinstance(value, str) else value or features.PADDING for value in ids]


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _id(event: dict[str, typing.Any], field: str) -> int | str | None:
    value = event.get(field)
    if not (value is None or isinstance(value, str) or (_is_integer(value) and -(1 << 63) <= value < 1 << 63)):
        raise EventError(f"{field}: must be a 64-bit integer or a string, not {value!r}")
    return value


def _image(event: dict[str, typing.Any]) -> bytes | None:
    if (value := event.get("image")) is None:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise EventError(f"image: not base64: {error}") from error


def _vector(event: dict[str, typing.Any]) -> list[float] | None:
    if (value := event.get("vector")) is None:
        return None
    if not isinstance(value, list) or not all(isinstance(v, float) or _is_integer(v) for v in value):
        raise EventError("vector: must be a list of numbers")
    return value
