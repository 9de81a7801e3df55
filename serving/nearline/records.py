"""What the near-line trainer reads: served requests with their features, and what became of the items shown."""

from __future__ import annotations

import dataclasses
import json
import math
import time
import typing

from serving.streaming.events import EventError, is_integer, shorten

MAX_AHEAD_S = 300.0  # of another machine's clock before ours
_FIRST_S = 1e9  # 2001: what lies before is no time since 1970
SHOWN = "shown"
Item = int | str


@dataclasses.dataclass(frozen=True)
class Request:
    """A request as it was served."""

    request_id: str
    time_us: int
    version: int  # of the model that scored it
    items: tuple[Item, ...]
    features: typing.Mapping[str, typing.Any]  # by column, as the request gave them
    item_features: typing.Mapping[str, typing.Any]  # by column or feature, one per item, as the model looked them up


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of an item of a request."""

    request_id: str
    item: Item
    time_us: int
    label: int  # 1: clicked; 0: shown


def parse(payload: bytes, label: str) -> Request | Outcome | None:
    """Reads a record; one with `items` is a request. None: it says that nothing was shown or clicked.

    Of a row of Parquet, `items`, `features` and `item_features` may be texts that hold JSON.

    Args:
        payload: JSON.
        label: the declared column of the label, under which an outcome says it.
    Raises:
        EventError: it cannot be used, and why.

    >>> parse(b'{"request_id": "a", "item_id": 7, "time": 1709596800.5, "click": true}', "click")
    Outcome(request_id='a', item=7, time_us=1709596800500000, label=1)
    """
    record = _read_json(payload)
    request_id, time_us = _text(record, "request_id"), _time_us(record.get("time"))
    return (_request if "items" in record else _outcome)(record, request_id, time_us, label)


def _request(record: dict[str, typing.Any], request_id: str, time_us: int, _: str) -> Request:
    items, rate = _of_json(record, "items"), record.get("sample_rate")
    if rate not in (None, 1):
        raise EventError(f"sample_rate: must be 1, as in a log for training, which has every request, not {rate!r}")
    if not isinstance(items, list) or not items:
        raise EventError(f"items: must be a list of at least one id, not {shorten(items)}")
    parts = {name: _of_json(record, name) or {} for name in ("features", "item_features")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise EventError(f"{name}: must be an object of values by column, not {shorten(part)}")
    version = record.get("version", 0)
    if not is_integer(version):
        raise EventError(f"version: must be the number of the model that scored, not {shorten(version)}")
    return Request(request_id, time_us, version, tuple(_id(item, "items") for item in items), **parts)


def _outcome(record: dict[str, typing.Any], request_id: str, time_us: int, label: str) -> Outcome | None:
    item = _id(record.get("item_id"), "item_id")
    said = {name: record[name] for name in (SHOWN, label) if record.get(name) is not None}
    if not said:
        raise EventError(f"no outcome: must say `{SHOWN}` or `{label}`, or have `items`, not {shorten(list(record))}")
    for name, value in said.items():
        if value not in (0, 1):  # booleans among them
            raise EventError(f"{name}: must be true or false, not {shorten(value)}")
    return Outcome(request_id, item, time_us, int(said.get(label, 0))) if any(said.values()) else None


def _of_json(record: dict[str, typing.Any], field: str) -> typing.Any:
    value = record.get(field)
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise EventError(f"{field}: not JSON: {error}") from error


def _read_json(payload: bytes) -> dict[str, typing.Any]:
    try:
        record = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise EventError(f"not JSON: {error}") from error
    if not isinstance(record, dict):
        raise EventError(f"not a JSON object: {shorten(record)}")
    return record


def _text(record: dict[str, typing.Any], field: str) -> str:
    value = record.get(field)
    if not isinstance(value, str) or not value:
        raise EventError(f"{field}: must be text, not {shorten(value)}")
    return value


def _id(value: typing.Any, field: str) -> Item:
    is_id = (isinstance(value, str) and value) or (is_integer(value) and value and -(1 << 63) <= value < 1 << 63)
    if not is_id:
        raise EventError(f"{field}: must be a 64-bit integer or text, neither 0 nor empty, not {shorten(value)}")
    return typing.cast(Item, value)


def _time_us(value: typing.Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise EventError(f"time: must be seconds since 1970, not {shorten(value)}")
    if value < _FIRST_S or value > time.time() + MAX_AHEAD_S:
        raise EventError(f"time: must be seconds since 1970, and at most {MAX_AHEAD_S:.0f} s ahead, not {value}")
    return round(value * 1e6)
