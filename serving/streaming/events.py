"""New item events: JSON, versioned, checked where they enter."""

from __future__ import annotations

import base64
import binascii
import collections
import dataclasses
import json
import math
import reprlib
import time
import typing

from tfmm import features, fingerprints
from tfmm.config import RunConfig
from tfmm.index import encode, store
from tfmm.index import rows as rows_lib
from tfmm.modalities import DEFAULT, event_field

VERSION = 1
MAX_PAYLOAD_BYTES = store.MAX_LETTER_BYTES  # so that a dead letter keeps it whole
MAX_VALUES = rows_lib.MAX_DIM  # of a vector
_BASE64 = "base64"  # of an object in `contents` that holds bytes
MAX_AHEAD_US = 86_400_000_000  # of a producer's clock before ours: what lies later would block all that follows
_UNITS_US = {"seconds": 1e6, "milliseconds": 1e3, "nanoseconds": 1e-3}
_FIRST_US = 1e15  # 2001: a time before it that is one after it in another unit was meant in that one
_MAX_DIGITS = 1000  # of an integer; Python's own limit may be off, and the time grows with the square
_NAMED = {event_field(modality.name): modality for modality in DEFAULT}  # fields with the content of one modality
FIELDS = ("version", "item_id", "category", "features", *_NAMED, "contents", "event_time_us", "withdrawn")


class EventError(ValueError):
    """An event that cannot be used; it goes to the dead letters with this reason."""


class NewItem(typing.NamedTuple):
    """A parsed event."""

    item: encode.Item  # without features, whose types the index knows
    is_withdrawn: bool
    features: dict[str, typing.Any]  # by column of the catalog, as they stand in JSON


def make_event(
    item_id: int | str,
    *,
    category: int | str | None = None,
    title: str | None = None,
    image: bytes | None = None,
    vector: typing.Sequence[float] | None = None,
    contents: typing.Mapping[str, encode.Content | None] | None = None,
    features: typing.Mapping[str, typing.Any] | None = None,
    event_time_us: int | None = None,
    withdrawn: bool = False,
) -> bytes:
    """Returns an event as bytes of JSON.

    Args:
        item_id: as in the catalog.
        category: as in the catalog; None: not said. The same as `features={"category": ...}`.
        title: text content.
        image: encoded PNG or JPEG; base64 in the event.
        vector: the item's own embedding, where the catalog brings them.
        contents: of declared modalities by name: text, bytes (base64 in the event) or a vector.
        features: of declared item features by column of the catalog: ids, lists of ids, numbers, booleans, or times
            in microseconds since 1970; None: it has none. A column that is not there keeps the value that it has.
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
        "contents": {name: _to_json(value) for name, value in (contents or {}).items() if value is not None} or None,
        "features": {name: _no_nan(value) for name, value in (features or {}).items()} or None,
        "event_time_us": time.time_ns() // 1000 if event_time_us is None else event_time_us,
        "withdrawn": withdrawn or None,
    }
    return json.dumps({name: value for name, value in event.items() if value is not None}).encode()


def event_of_row(
    run: RunConfig, row: typing.Mapping[str, typing.Any], values: typing.Mapping[str, typing.Any]
) -> bytes:
    """Returns the event of a row of the catalog, with what the run's modalities and stored features read of it.

    Args:
        run: the declaration.
        row: by column of the catalog, `item_id` among them.
        values: by feature, as requests have them.
    """
    contents = {modality.name: row.get(modality.content) for modality in run.modality_set.known}
    stored = {feature.column: values[feature.name] for feature in run.feature_set.stored}
    return make_event(row["item_id"], contents=contents, features=stored)


def _no_nan(value: typing.Any) -> typing.Any:
    return None if isinstance(value, float) and math.isnan(value) else value


def _to_json(content: encode.Content) -> typing.Any:
    if isinstance(content, bytes):
        return {_BASE64: base64.b64encode(content).decode()}
    return content if isinstance(content, str) else [float(value) for value in content]


def parse_events(
    payloads: typing.Sequence[bytes], id_types: typing.Mapping[str, str] | None = None
) -> list[NewItem | EventError]:
    """Reads and checks events; an event that cannot be used comes as the reason why.

    Args:
        payloads: of events.
        id_types: "int64" or "string" by field, as far as the catalog's are known; others are taken in both.

    >>> good, bad = parse_events([make_event(7, title="red shoe", event_time_us=1), b"?"])
    >>> good.item.contents, str(bad)
    ({'text': 'red shoe'}, 'not JSON: Expecting value: line 1 column 1 (char 0)')
    """
    results: list[NewItem | EventError] = []
    for payload in payloads:
        try:
            results.append(_parse(payload, id_types or {}))
        except EventError as error:
            results.append(error)
    good = [result for result in results if isinstance(result, NewItem)]
    ids = iter(_fingerprints([new.item.item_id for new in good]))
    return [
        new
        if isinstance(new, EventError)
        else new._replace(item=dataclasses.replace(new.item, item_id=next(ids)))
        for new in results
    ]


def _parse(payload: bytes, id_types: typing.Mapping[str, str]) -> NewItem:
    """Returns an event whose ids are still as in the catalog."""
    event = _read_json(payload)
    version = event.get("version")
    if not is_integer(version) or version != VERSION:
        raise EventError(f"version: must be {VERSION}, not {shorten(version)}")
    if unknown := sorted(set(event) - set(FIELDS)):
        raise EventError(f"unknown fields: {', '.join(unknown)[:200]}; an event has {', '.join(FIELDS)}")
    time_us = _time_us(event.get("event_time_us"))
    item_id = _id(event, "item_id", id_types)
    if item_id in (None, "", features.PADDING):
        raise EventError(f"item_id: must be neither missing, 0 nor empty, not {item_id!r}")
    withdrawn = event.get("withdrawn", False)
    if not isinstance(withdrawn, bool):
        raise EventError(f"withdrawn: must be true or false, not {shorten(withdrawn)}")
    item = encode.Item(item_id, time_us, _contents(event))  # type: ignore[arg-type]
    found = _features(event, id_types)
    if not withdrawn and not any(item.contents.values()) and not event.get("features"):
        raise EventError(f"no content: none of {', '.join(_NAMED)} and contents is given, nor features")
    return NewItem(item, withdrawn, found)


def _read_json(payload: bytes) -> dict[str, typing.Any]:
    """Returns the JSON object (RFC 8259: UTF-8, and stricter: unique names) of an event."""
    if not isinstance(payload, bytes):
        raise EventError(f"payload: must be bytes, not {type(payload).__name__}")
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise EventError(
            f"payload: must be at most {MAX_PAYLOAD_BYTES} bytes, which are kept here, not {len(payload)}; "
            "send a smaller image"
        )
    try:
        event = json.loads(
            payload.decode("utf-8-sig"),
            object_pairs_hook=_unique,
            parse_int=_integer,
            parse_constant=_no_constant,
        )
    except EventError:
        raise
    except RecursionError as error:
        raise EventError("not JSON that can be read: nested too deep; an event is one object") from error
    except ValueError as error:
        raise EventError(f"not JSON: {error}") from error
    if not isinstance(event, dict):
        raise EventError(f"not a JSON object: {shorten(event)}")
    return event


def _unique(pairs: list[tuple[str, typing.Any]]) -> dict[str, typing.Any]:
    event = dict(pairs)
    if len(event) < len(pairs):
        ((name, count),) = collections.Counter(name for name, _ in pairs).most_common(1)
        raise EventError(f"{name[:100]}: must stand once in a JSON object, not {count} times")
    return event


def _integer(digits: str) -> int:
    if (count := len(digits.lstrip("-"))) > _MAX_DIGITS:
        raise EventError(f"not a usable number: must have at most {_MAX_DIGITS} digits, not {count}")
    return int(digits)


def _no_constant(name: str) -> typing.NoReturn:
    raise EventError(f"not JSON: {name} is no number; leave out what is missing")


_SHORT = reprlib.Repr()  # of values in reasons, which may be of any size and depth
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60
_SHORT.maxlevel = 3


def shorten(value: typing.Any) -> str:
    """Returns a value as reasons show it."""
    return _SHORT.repr(value)


def _fingerprints(ids: typing.Sequence[int | str | None]) -> list[int]:
    texts = iter(fingerprints.fingerprint([value for value in ids if isinstance(value, str)]).tolist())
    return [next(texts) if isinstance(value, str) else value or features.PADDING for value in ids]


def is_integer(value: typing.Any) -> bool:
    """Returns whether a value of JSON is an integer, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def _time_us(value: typing.Any) -> int:
    if not is_integer(value) or not 0 <= value < 1 << 63:
        raise EventError(f"event_time_us: must be microseconds since 1970, not {shorten(value)}")
    last_us = time.time_ns() // 1000 + MAX_AHEAD_US
    if not _FIRST_US <= value <= last_us:
        for unit, factor in _UNITS_US.items():
            if _FIRST_US <= value * factor <= last_us:
                raise EventError(f"event_time_us: must be microseconds since 1970, not {value}, which is {unit}")
    if value > last_us:
        raise EventError(
            f"event_time_us: must be at most {MAX_AHEAD_US // 3_600_000_000} hours from now, not {value}, which is "
            f"{(value - last_us + MAX_AHEAD_US) // 86_400_000_000:,} days ahead; no later change would be taken"
        )
    return value


def _id(event: dict[str, typing.Any], field: str, id_types: typing.Mapping[str, str]) -> int | str | None:
    value = event.get(field)
    kind = "string" if isinstance(value, str) else "int64"
    if (isinstance(value, str) or is_integer(value)) and id_types.get(field, kind) != kind:
        wanted = {"int64": "an integer", "string": "a string"}[id_types[field]]
        raise EventError(f"{field}: must be {wanted}, as in the catalog, not {shorten(value)}")
    if not (value is None or isinstance(value, str) or (is_integer(value) and -(1 << 63) <= value < 1 << 63)):
        raise EventError(f"{field}: must be a 64-bit integer or a string, not {shorten(value)}")
    return unicode_text(field, value) if isinstance(value, str) else value


def _features(event: dict[str, typing.Any], id_types: typing.Mapping[str, str]) -> dict[str, typing.Any]:
    """Returns the features of an event by column; what they hold is checked where their types are known."""
    category, given = _id(event, "category", id_types), event.get("features")
    if given is None:
        given = {}
    if not isinstance(given, dict):
        raise EventError(f"features: must be an object of values by column, not {shorten(given)}")
    if category is None:
        return given
    if "category" in given:
        raise EventError("features.category: must not stand beside category, which is the same")
    return {**given, "category": category}


def _contents(event: dict[str, typing.Any]) -> dict[str, encode.Content]:
    """Returns the contents of an event by modality."""
    result: dict[str, encode.Content] = {}
    for field, modality in _NAMED.items():
        if (value := event.get(field)) is not None:
            result[modality.name] = _READERS[modality.kind](field, value)
    if (given := event.get("contents")) is None:
        return result
    if not isinstance(given, dict):
        raise EventError(f"contents: must be an object of contents by modality, not {shorten(given)}")
    for name, value in given.items():
        if value is None:
            continue
        field = f"contents.{name[:100]}"
        if name in result:
            raise EventError(f"{field}: must not stand beside {event_field(name)}, which is the same content")
        result[unicode_text("contents", name)] = _content(field, value)
    return result


def _content(field: str, value: typing.Any) -> encode.Content:
    if isinstance(value, str):
        return unicode_text(field, value)
    if isinstance(value, list):
        return _vector(field, value)
    if isinstance(value, dict) and list(value) == [_BASE64]:
        return _bytes(field, value[_BASE64])
    raise EventError(
        f'{field}: must be text, {{"{_BASE64}": ...}} or a list of numbers, not {shorten(value)}'
    )


def _title(field: str, value: typing.Any) -> str:
    if not isinstance(value, str):
        raise EventError(f"{field}: must be text, not {type(value).__name__}")
    return unicode_text(field, value)


def unicode_text(field: str, text: str) -> str:
    """Returns a text that UTF-8 can hold; JSON's escapes can also spell half a pair of surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise EventError(
            f"{field}: must be Unicode text, not {text[error.start]!a} at character {error.start}, half a pair of "
            "surrogates; cut texts between characters"
        ) from error
    return text


def _bytes(field: str, value: typing.Any) -> bytes:
    if not isinstance(value, str):
        raise EventError(f"{field}: not base64: must be text, not {shorten(value)}")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EventError(f"{field}: not base64: {error}") from error


def _vector(field: str, value: typing.Any) -> list[float]:
    if not isinstance(value, list) or not all(isinstance(v, float) or is_integer(v) for v in value):
        raise EventError(f"{field}: must be a list of numbers, not {shorten(value)}")
    if len(value) > MAX_VALUES:
        raise EventError(f"{field}: must have at most {MAX_VALUES} values, not {len(value)}")
    try:
        vector = [float(v) for v in value]
    except OverflowError as error:
        raise EventError(f"{field}: must be finite: {error}") from error
    if not all(map(math.isfinite, vector)):
        raise EventError(f"{field}: must be finite, not {shorten(value)}")
    return vector


_READERS: dict[str, typing.Callable[[str, typing.Any], encode.Content]] = {
    "string": _title,
    "binary": _bytes,
    "vector": _vector,
}
