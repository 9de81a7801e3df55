"""What makes a row unusable: the batch job makes it a dead letter, `tfmm data check` reports it."""

from __future__ import annotations

import dataclasses
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from tfmm.data import instants, schema
from tfmm.features import ACTIONS, Label
from tfmm.labels import NEGATIVE_RATE, SAMPLE_WEIGHT
from tfmm.modalities import MAX_TEXT_BYTES
from tfmm.pretrain.picture_header import MAX_SCANS, num_pixels, num_scans
from tfmm.scl_config import SCLConfig

Array: typing.TypeAlias = pa.Array | pa.ChunkedArray
UNKNOWN_ITEM = "must be in the items table"
IN_FUTURE = "must not be later than a day from now: is another unit, or a date for `never`, written?"
OUTSIDE_YEARS = "must lie in the years 1 to 9999: does the column's type name the unit of its values?"


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule about the values of one column.

    Args:
        column: its name.
        text: completes "`column` ...".
        breaks: from a column in its documented type, [n], to bool [n]: True where a value breaks the rule. A
            null breaks "must not be null", and nothing else.
    """

    column: str
    text: str
    breaks: typing.Callable[[Array], np.ndarray]


def row_rules(
    name: str,
    item_ids: np.ndarray | None = None,
    search_ids: np.ndarray | None = None,
    has_split: bool = False,
    tables: schema.Tables = schema.TABLES,
    label: Label | None = None,
    newest_us: int | None = None,
) -> list[Rule]:
    """Returns the cheap rules of a table's rows.

    Args:
        name: the table.
        item_ids: int64 [n] fingerprints of the catalog, sorted; None: references to items are not looked up.
        search_ids: the same of searches.
        has_split: impressions say their split themselves.
        tables: with the columns that a run declares.
        label: what it declares of labels; None: Label().
        newest_us: microseconds since 1970, after which no impression has happened; None: `instants.newest_us`.
    """
    label, rules = label or Label(), []
    for column in tables[name].columns:
        if column.required:
            rules.append(Rule(column.name, "must not be null", _null))
        if column.kind == "id" and column.is_key:
            rules.append(Rule(column.name, "must not be 0 or empty", is_zero))
        if column.kind == "timestamp":
            rules.append(Rule(column.name, OUTSIDE_YEARS, _outside_years))
    if name == "impressions":  # one would be the newest of all for ever: every split and watermark goes by the newest
        rules.append(Rule("timestamp", IN_FUTURE, later_than(instants.newest_us() if newest_us is None else newest_us)))
        rules += _label_rules(label)
        rules.append(Rule("split", "must be train or eval", _outside(schema.SPLITS)))
        if has_split:
            rules.append(Rule("split", "must not be null where other rows have a split", _null))
    if name == "behaviors":
        rules.append(Rule("action", f"must be one of {', '.join(ACTIONS)}", _outside(ACTIONS)))
    for referring, table, ids, text in (
        ("item_id", "items", item_ids, UNKNOWN_ITEM),
        ("trigger_item_id", "items", item_ids, UNKNOWN_ITEM),
        ("search_id", "searches", search_ids, "must be in the searches table"),
    ):
        is_here = any(column.name == referring and column.is_key for column in tables[name].columns)
        if ids is not None and name != table and is_here:
            rules.append(Rule(referring, text, _unknown(ids)))
    return rules


def _label_rules(label: Label) -> typing.Iterator[Rule]:
    """A row whose weight or rate is missing is left out: it is neither 0 nor 1."""
    yield Rule(label.column, "must be 0 or 1", _outside((0, 1)))
    for name, text, breaks in (
        (SAMPLE_WEIGHT, "must be a finite number of at least 0", _no_weight),
        (NEGATIVE_RATE, "must be a share in (0, 1]", _no_rate),
    ):
        if column := label.sources.get(name):
            yield Rule(column, "must not be null", lambda values: np.isnan(_floats(values)))
            yield Rule(column, text, breaks)


def content_rules(
    name: str,
    dims: typing.Mapping[str, int] | None = None,
    tables: schema.Tables = schema.TABLES,
    max_pixels: typing.Mapping[str, int] | None = None,
    texts: typing.Collection[str] = (),
) -> list[Rule]:
    """Returns the rules about what encoders are given: images and vectors, which have to be opened, and texts.

    Args:
        name: the table.
        dims: of vectors, by column.
        tables: with the columns that a run declares.
        max_pixels: of pictures, by column, where it is not the default of encoders.
        texts: columns that an encoder reads which refuses long texts.
    """
    rules = []
    for picture in (column.name for column in tables[name].columns if column.kind == "binary"):
        most = (max_pixels or {}).get(picture, SCLConfig.max_pixels)
        rules.append(Rule(picture, f"must have at most {most:,} pixels", _larger_than(most)))
        rules.append(Rule(picture, f"must have at most {MAX_SCANS} scans", _has_many_scans))
        rules.append(Rule(picture, "must be a PNG or JPEG that can be decoded", _undecodable(most)))
    for text in texts:
        text_rule = f"must have at most {MAX_TEXT_BYTES:,} bytes of UTF-8"
        rules.append(Rule(text, text_rule, _longer_than(MAX_TEXT_BYTES)))
    for column, dim in (dims or {}).items():
        rules += [
            Rule(column, f"must have {dim} values, as most have", _other_length(dim)),
            Rule(column, "must hold finite numbers only", _not_finite),
            Rule(column, "must not be all zeros", _all_zero),
        ]
    return rules


def broken(table: pa.Table, rules: typing.Iterable[Rule]) -> tuple[np.ndarray, np.ndarray]:
    """Returns per row whether it breaks a rule, bool [n], and the first one that it breaks, object [n]."""
    bad, reasons = np.zeros(table.num_rows, bool), np.full(table.num_rows, "", object)
    for rule in rules:
        if rule.column in table.column_names:
            faulty = rule.breaks(table[rule.column])
            reasons[faulty & ~bad] = f"`{rule.column}` {rule.text}"
            bad |= faulty
    return bad, reasons


def _mask(values: Array) -> np.ndarray:
    return np.asarray(values).astype(bool)


def _null(values: Array) -> np.ndarray:
    return _mask(pc.is_null(values))


def is_zero(values: Array) -> np.ndarray:
    """Returns where an id column says 0 or "", which stand for padding, bool [n]; not where it is null."""
    return (schema.fingerprints(values) == 0) & ~_null(values)


def _outside_years(values: Array) -> np.ndarray:
    if not pa.types.is_timestamp(values.type):  # in a shard, checked where it was read
        return np.zeros(len(values), bool)
    counts = np.asarray(pc.fill_null(values.cast(pa.int64()), 0))
    return (counts < instants.FIRST_US) | (counts > instants.LAST_US)


def later_than(newest_us: int) -> typing.Callable[[Array], np.ndarray]:
    """Returns what says of times, as they are stored, which are later than an instant, bool [n]."""

    def breaks(values: Array) -> np.ndarray:
        if pa.types.is_integer(values.type):  # in a shard, checked where it was read
            return np.zeros(len(values), bool)
        times = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
        return np.asarray(schema.microseconds(instants.to_timestamps(times))) > newest_us

    return breaks


def _outside(allowed: typing.Sequence[typing.Any]) -> typing.Callable[[Array], np.ndarray]:
    def breaks(values: Array) -> np.ndarray:
        if pa.types.is_null(values.type):
            return np.zeros(len(values), bool)
        return ~_mask(pc.is_in(values, value_set=pa.array(allowed, values.type))) & ~_null(values)

    return breaks


def _no_weight(values: Array) -> np.ndarray:
    weights = _floats(values)
    return (weights < 0) | np.isinf(weights)


def _no_rate(values: Array) -> np.ndarray:
    rates = _floats(values)
    return (rates <= 0) | (rates > 1)


def _floats(values: Array) -> np.ndarray:
    """Returns a column of numbers as float32 [n], null as NaN."""
    return np.asarray(values.cast(pa.float32()), np.float32)


def _unknown(known: np.ndarray) -> typing.Callable[[Array], np.ndarray]:
    def breaks(values: Array) -> np.ndarray:
        ids = schema.fingerprints(values)
        if not len(known):
            return ids != 0
        return (known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] != ids) & (ids != 0)

    return breaks


def _larger_than(max_pixels: int) -> typing.Callable[[Array], np.ndarray]:
    def breaks(values: Array) -> np.ndarray:
        return np.array([num_pixels(value or b"") > max_pixels for value in values.to_pylist()], bool)

    return breaks


def _has_many_scans(values: Array) -> np.ndarray:
    return np.array([num_scans(value or b"") > MAX_SCANS for value in values.to_pylist()], bool)


def _longer_than(max_bytes: int) -> typing.Callable[[Array], np.ndarray]:
    return lambda values: _mask(pc.fill_null(pc.greater(pc.binary_length(values.cast(pa.string())), max_bytes), False))


def _undecodable(max_pixels: int) -> typing.Callable[[Array], np.ndarray]:
    """A picture that says to be larger, or to have many scans, is not opened: opening it is what costs."""

    def is_bad(image: bytes | None) -> bool:
        is_small = image is not None and num_pixels(image) <= max_pixels and num_scans(image) <= MAX_SCANS
        return is_small and not _decodes(typing.cast(bytes, image))

    return lambda values: np.array([is_bad(value) for value in values.to_pylist()], bool)


def _decodes(image: bytes) -> bool:
    if not image.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")):
        return False
    try:
        return bool(tf.io.decode_image(image, channels=3, expand_animations=False).shape[0])
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError):
        return False


def _other_length(dim: int) -> typing.Callable[[Array], np.ndarray]:
    return lambda values: _mask(pc.fill_null(pc.not_equal(pc.list_value_length(values), dim), False))


def _per_row(values: Array, of_elements: typing.Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Counts, per list, the elements for which a function says True; int64 [n]."""
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)
    parents = pc.list_parent_indices(values).to_numpy()
    elements = values.flatten().to_numpy(zero_copy_only=False)  # a null element comes as NaN
    return np.bincount(parents[of_elements(elements)], minlength=len(values))


def _not_finite(values: Array) -> np.ndarray:
    return _per_row(values, lambda elements: ~np.isfinite(elements)) > 0


def _all_zero(values: Array) -> np.ndarray:
    return (_per_row(values, lambda elements: elements != 0) == 0) & ~_null(values)
