"""The values in a declaration: names that a column may have, types of fields, what may stand for a feature in service.

A file and a caller may give anything.
"""

from __future__ import annotations

import dataclasses
import keyword
import re
import typing

from tfmm.labels import LABEL, NEGATIVE_RATE, SAMPLE_WEIGHT

RESERVED = ("timestamp", LABEL, SAMPLE_WEIGHT, NEGATIVE_RATE, "split", "examples", "modality", "scales", "sequences",
            "encoder_version", "self")  # fmt: skip
NAME_RULE = "lower case letters, digits and _"
COLUMN_RULE = f"{NAME_RULE}, no word of Python, and none of {', '.join(RESERVED)}"
MAX_TABLE_BYTES = 16 * 2**30  # of a declared embedding table: it lies in memory, thrice in training
MAX_NUMBER = 1e30  # in size: what is larger, such as an infinity or C's largest float, is missing, as NaN is
SERVING_RULES = {  # what a `serving_value` must be, by kind
    "id": "an integer or a string, as its ids are",
    "number": f"a finite number of at most {MAX_NUMBER:g}",
    "boolean": "true or false, 1 or 0",
    "time": "a whole number of microseconds since 1970",
}
_NAME = re.compile(r"[a-z][a-z0-9_]*")
_MAX_INT = 2**63 - 1  # int64
_STRINGS = "tuple[str, ...]"
_CHECKED = ("str", "int", "float", "bool", _STRINGS)


def is_name(text: str) -> bool:
    """Whether a text obeys NAME_RULE."""
    return bool(_NAME.fullmatch(text))


def is_column(text: str) -> bool:
    """Whether a column may be called so, in a signature too: COLUMN_RULE."""
    return is_name(text) and text not in RESERVED and not keyword.iskeyword(text)


def can_serve(value: typing.Any, kind: str) -> bool:
    """Whether a value obeys SERVING_RULES; an id's type is compared with the data's."""
    if kind not in SERVING_RULES:
        return True  # what is wrong is the kind
    if kind == "boolean":
        return type(value) in (bool, int, float) and value in (0, 1)
    if kind == "number":
        return type(value) in (int, float) and -MAX_NUMBER <= value <= MAX_NUMBER
    return (type(value) is int and -_MAX_INT <= value <= _MAX_INT) or (type(value) is str and kind == "id")


def size_fault(dim: int, num_indices: int) -> str:
    """Returns that an embedding table, float32 [num_indices, dim], is too large; "" where it is not.

    >>> size_fault(8, 1_000_000), size_fault(16, 300_000_000)
    ('', 'an embedding table must take at most 16 GiB, not 17.9 GiB')
    """
    size = 4 * dim * num_indices
    gib = f"an embedding table must take at most {MAX_TABLE_BYTES / 2**30:.0f} GiB, not {size / 2**30:,.1f} GiB"
    return gib if size > MAX_TABLE_BYTES else ""


def faults(value: typing.Any) -> typing.Iterator[str]:
    """Yields which fields of a dataclass hold another type than is annotated, a phrase each; a float may be an int.

    Only `str`, `int`, `float`, `bool` and `tuple[str, ...]` are looked at, written so.
    """
    for field in dataclasses.fields(value):
        given = getattr(value, field.name)
        if field.type not in _CHECKED:
            continue
        if field.type == _STRINGS:
            if not (isinstance(given, tuple) and all(type(part) is str for part in given)):
                yield f"`{field.name}` must be a tuple of strings, not {given!r}"
        elif type(given).__name__ != field.type and not (field.type == "float" and type(given) is int):
            yield f"`{field.name}` must be of type {field.type}, not {given!r}"


def with_tuples(value: typing.Any) -> None:
    """Makes lists in the fields of a frozen dataclass tuples, as they are once a run was written and read."""
    for field in dataclasses.fields(value):
        if isinstance(given := getattr(value, field.name), list):
            object.__setattr__(value, field.name, tuple(given))


def sliceable(features: typing.Iterable[typing.Any]) -> tuple[str, ...]:
    """Returns the names of the features that an evaluation can be sliced by: one id, number or boolean per row.

    >>> from tfmm.features import DEFAULT_FEATURES
    >>> sliceable(DEFAULT_FEATURES)
    ('user_id', 'item_id', 'category')
    """
    kinds = ("id", "number", "boolean")
    return tuple(feature.name for feature in features if feature.kind in kinds and feature.role != "behavior")
