"""Items' features in events: checked as the catalog's columns are, and packed as the index keeps them."""

from __future__ import annotations

import logging
import typing

import numpy as np
import pyarrow as pa

from serving.streaming.events import EventError, is_integer, shorten, unicode_text
from tfmm.data import declared
from tfmm.features import Feature
from tfmm.index.item_features import Layout, Packed

_log = logging.getLogger(__name__)
_TYPES = {"number": pa.float64(), "boolean": pa.bool_(), "time": pa.timestamp("us")}
_ID_TYPES = {"int64": pa.int64(), "string": pa.string()}
_WORDS = {"int64": "a 64-bit integer", "string": "text"}
_LARGEST = float(np.finfo(np.float32).max)
_MAX_SAID = 100
_said: set[str] = set()  # columns that events bring and no layout takes, the first of them
Fields = typing.Mapping[str, typing.Any]


def pack(
    brought: typing.Sequence[Fields], layouts: typing.Sequence[Layout]
) -> list[tuple[Packed, ...] | EventError]:
    """Returns the rows of items by what their events bring.

    Args:
        brought: by column of the catalog, per event; null says that the item has no such value, and a column that
            is not there leaves what the index has.
        layouts: of the index, the active one last.
    Returns:
        Per event a row for each layout that takes any of its columns, or why it cannot be used.
    """
    results: list[tuple[Packed, ...] | EventError] = []
    good: list[Fields] = []
    for fields in brought:
        try:
            good.append(_checked(fields, layouts))
            results.append(())
        except EventError as error:
            results.append(error)
    per_event: list[list[Packed]] = [[] for _ in good]
    for layout in layouts:
        if not good or not layout.features:
            continue
        rows = layout.pack({f.name: _column([fields.get(_key(f, layout)) for fields in good], f, layout)
                            for f in layout.features})  # fmt: skip
        for place, fields in enumerate(good):
            if names := [f.name for f in layout.features if _key(f, layout) in fields]:
                per_event[place].append(Packed(layout.version, rows[place], layout.given(names)))
    packed = iter(per_event)
    return [result if isinstance(result, EventError) else tuple(next(packed)) for result in results]


def _key(feature: Feature, layout: Layout) -> str:
    """Returns what makes two layouts read one value: the column and its type."""
    return f"{feature.column} {feature.kind} {layout.id_types.get(feature.name, '')}"


def _checked(fields: Fields, layouts: typing.Sequence[Layout]) -> dict[str, typing.Any]:
    """Returns an event's values by `_key`: a column that layouts read by different types, by the active one's.

    Raises:
        EventError: a value is of another type; the feature is named.
    """
    result: dict[str, typing.Any] = {}
    known: set[str] = set()
    for layout in reversed(layouts):
        own = {f.column: f for f in layout.features}
        for column in fields.keys() & (own.keys() - known):
            feature = own[column]
            result[_key(feature, layout)] = _value(fields[column], feature, layout.id_types.get(feature.name, ""))
        known |= own.keys()
    for column in sorted(fields.keys() - known - _said)[: _MAX_SAID - len(_said)]:
        _said.add(column)
        taken = ", ".join(sorted(known)) or "none"
        _log.warning("not used: %s among an event's features; the index takes %s", shorten(column), taken)
    return result


def _value(value: typing.Any, feature: Feature, id_type: str) -> typing.Any:
    if value is None:
        return None
    name = f"features.{feature.column}"
    if feature.kind == "ids":
        if not isinstance(value, list):
            raise EventError(f"{name}: must be a list, each of it {_WORDS[id_type]}, not {shorten(value)}")
        return [None if one is None else _id(one, name, id_type) for one in value]
    if feature.kind == "id":
        return _id(value, name, id_type)
    if feature.kind == "boolean":
        if not isinstance(value, bool):
            raise EventError(f"{name}: must be true or false, not {shorten(value)}")
        return value
    if feature.kind == "time":
        if not is_integer(value) or not -(1 << 63) < value < 1 << 63:
            raise EventError(f"{name}: must be microseconds since 1970, not {shorten(value)}")
        return value
    if not (isinstance(value, float) or is_integer(value)):
        raise EventError(f"{name}: must be a number, not {shorten(value)}")
    try:
        number = float(value)
    except OverflowError as error:
        raise EventError(f"{name}: must be finite: {error}") from error
    if not abs(number) <= _LARGEST:
        raise EventError(f"{name}: must be finite in 32 bits, not {shorten(value)}")
    return number


def _id(value: typing.Any, name: str, id_type: str) -> int | str:
    if id_type == "string" and isinstance(value, str):
        return unicode_text(name, value)
    if id_type == "int64" and is_integer(value) and -(1 << 63) <= value < 1 << 63:
        return value
    raise EventError(f"{name}: must be {_WORDS[id_type]}, as in the catalog, not {shorten(value)}")


def _column(values: list[typing.Any], feature: Feature, layout: Layout) -> np.ndarray:
    """Returns values by the rules that read the catalog."""
    kind = _TYPES.get(feature.kind) or _ID_TYPES[layout.id_types[feature.name]]
    array = pa.array(values, pa.list_(kind) if feature.kind == "ids" else kind)
    return declared.values(pa.chunked_array([array]), feature)
