"""What a server answered, as it is logged and as training reads it: one record per request that it ranked.

A record is an object of JSON in UTF-8, or a row of Parquet with the same fields as columns, where `features`, `items`
and `item_features`, whose types follow from the model, are texts of JSON, as they may be in an object too. What became
of the items comes later, from the application, as events: one that says that an item was shown, perhaps one that says
that it was clicked.

An id of a feature of strings that stands as an integer is the string's fingerprint: so models hold what they look up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import typing

import pyarrow as pa
import pyarrow.parquet as pq

from tfmm.data.layout import Unread

SHOWN = "shown"  # the field of an event which says that an item was shown
SUFFIXES = (".parquet", ".jsonl")
MAX_REQUEST_ID = 200  # characters
_OF_JSON = ("features", "items", "item_features")  # columns of Parquet that hold JSON
_NOT_VALUES = ("request_id", "item_id", "time", SHOWN)
OTHER_SUFFIX = f"the name ends in none of {', '.join(SUFFIXES)}"
HALF_WRITTEN = "a last line without an end that is no whole object"
_BATCH = 1024
_TAIL_BYTES = 1 << 16
SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("time", pa.float64()),
        ("model", pa.string()),
        ("version", pa.int64()),
        ("encoders", pa.map_(pa.string(), pa.string())),
        ("index", pa.map_(pa.string(), pa.int64())),
        ("features", pa.string()),
        ("items", pa.string()),
        ("item_features", pa.string()),
        ("scores", pa.list_(pa.float32())),
        ("sample_rate", pa.float64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Served:
    """One request as it was served.

    Attributes:
        request_id: the request's own.
        time: seconds since 1970, when it was scored.
        model, version: that scored it.
        encoders: version of the encoder, or of the layout, by modality.
        index: by modality, the sequence of the item index up to which the scores saw every change, and none beyond.
        features: by input, what the request gave: one value of the user's or a list, of items one value each; and what
            the model looked up of behaviors' items.
        items: ids of the candidates.
        scores: float [C].
        item_features: by feature, what the model looked up of the candidates, one value each; None: nothing.
        sample_rate: share of the requests that the log keeps; 1: all, as training wants it.
    """

    request_id: str
    time: float
    model: str
    version: int
    encoders: dict[str, str]
    index: dict[str, int]
    features: dict[str, typing.Any]
    items: list[int | str]
    scores: list[float]
    item_features: dict[str, list[typing.Any]] | None = None
    sample_rate: float = 1.0


@dataclasses.dataclass(frozen=True)
class Event:
    """What became of an item of a request.

    Attributes:
        request_id, item_id: of which.
        time: seconds since 1970.
        is_click: whether it says so; else that the item was shown.
        values: further columns of the event, such as the position at which it was shown.
    """

    request_id: str
    item_id: int | str
    time: float
    is_click: bool
    values: dict[str, typing.Any] = dataclasses.field(default_factory=dict)


def parse(payload: bytes) -> Served:
    """Reads a record.

    Raises:
        ValueError: all that is wrong with it, in a line.

    >>> parse(b'{"request_id": "", "version": 3}')  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: `request_id` must be a text of 1 to 200 characters, not ''; `time` must be...
    """
    return served(loaded(payload))


def loaded(payload: bytes) -> dict[str, typing.Any]:
    """Returns the fields of a record or an event; raises as `parse` does."""
    try:
        values = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"must be an object of JSON, not {type(values).__name__}")
    return values


def is_request(values: typing.Mapping[str, typing.Any]) -> bool:
    """Returns whether fields are of a record, where a log holds records and events."""
    return "items" in values


def served(values: typing.Mapping[str, typing.Any]) -> Served:
    """Returns a record from its fields; raises as `parse` does. Fields that are not known are passed over."""
    names = [field.name for field in dataclasses.fields(Served)]
    found = _decoded({name: values[name] for name in names if values.get(name) is not None})
    get: typing.Callable[..., typing.Any] = found.get
    faults = list(_id_faults(found))
    if not isinstance(get("model"), str) or not get("model"):
        faults.append(f"`model` must be a name, not {get('model')!r}")
    if not _is_int(get("version")) or get("version", 0) < 1:
        faults.append(f"`version` must be a positive integer, not {get('version')!r}")
    for name, is_right, what in (
        ("encoders", lambda one: isinstance(one, str), "versions"),
        ("index", _is_int, "sequences"),
        ("features", _is_value, "values or lists of such"),
    ):
        if not isinstance(get(name), dict) or not all(map(is_right, get(name, {}).values())):
            faults.append(f"`{name}` must be an object of {what} by name, not {str(get(name))[:80]}")
    items, scores = get("items"), get("scores")
    is_list = isinstance(items, list) and all(_is_int(one) or isinstance(one, str) for one in items)
    if not is_list:
        faults.append(f"`items` must be a list of ids, integers or texts, not {str(items)[:80]}")
    if not isinstance(scores, list) or not all(map(_is_number, scores)):
        faults.append(f"`scores` must be a list of finite numbers, not {str(scores)[:80]}")
    elif is_list and len(scores) != len(items):
        faults.append(f"`scores` must be one per item, {len(items)}, not {len(scores)}")
    per_item = get("item_features", {})
    if not isinstance(per_item, dict) or not all(isinstance(one, list) and _is_value(one) for one in per_item.values()):
        faults.append(f"`item_features` must be an object of lists by name, not {str(per_item)[:80]}")
    elif is_list and (wrong := [name for name, one in per_item.items() if len(one) != len(items)]):
        faults.append(f"`item_features` must have one value per item, {len(items)}, which {', '.join(wrong)} has not")
    if not _is_number(get("sample_rate", 1.0)) or not 0.0 < get("sample_rate", 1.0) <= 1.0:
        faults.append(f"`sample_rate` must lie in (0, 1], not {get('sample_rate')!r}")
    if faults:
        raise ValueError("; ".join(faults))
    return Served(**{**found, "time": float(found["time"])})


def refuse_sample(record: Served) -> None:
    """Raises a ValueError for a record of a log that keeps some requests alone: training wants all."""
    if record.sample_rate < 1.0:
        raise ValueError(f"`sample_rate` must be 1: a sample is for inspection, not {record.sample_rate}")


def parse_event(payload: bytes, label: str) -> Event | None:
    """Reads an event; None: it says that nothing was shown or clicked.

    Args:
        payload: one object of JSON.
        label: the name under which it says that an item was clicked: the label's column, as the run declares it.
    Raises:
        ValueError: all that is wrong with it, in a line.

    >>> parse_event(b'{"request_id": "a", "item_id": 7, "time": 1.5, "shown": true, "position": 2}', "label")
    Event(request_id='a', item_id=7, time=1.5, is_click=False, values={'position': 2})
    """
    return event(loaded(payload), label)


def event(values: typing.Mapping[str, typing.Any], label: str) -> Event | None:
    """Returns an event from its fields; raises as `parse_event` does."""
    faults = list(_id_faults(values))
    item: typing.Any = values.get("item_id")
    if not item or not (_is_int(item) or isinstance(item, str)):
        faults.append(f"`item_id` must be an integer or a text, neither 0 nor empty, not {repr(item)[:80]}")
    said = {name: values[name] for name in (SHOWN, label) if values.get(name) is not None}
    if not said:
        faults.append(f"`{SHOWN}` or `{label}` must be there")
    for name, one in said.items():
        if one not in (0, 1):  # booleans among them
            faults.append(f"`{name}` must be true or false, not {one!r}")
    if faults:
        raise ValueError("; ".join(faults))
    if not any(said.values()):
        return None
    others = {name: one for name, one in values.items() if name not in (*_NOT_VALUES, label)}
    return Event(values["request_id"], item, float(values["time"]), bool(said.get(label)), others)


def to_json(record: Served) -> bytes:
    """Returns a record as `parse` reads it; numbers that are none become null."""
    values = {name: one for name, one in dataclasses.asdict(record).items() if one is not None}
    if record.sample_rate == 1.0:
        del values["sample_rate"]
    return json.dumps(_without_nan(values), ensure_ascii=False, allow_nan=False).encode()


def table(
    records: typing.Sequence[typing.Mapping[str, typing.Any]],
    to_text: typing.Callable[[typing.Any], str] = json.dumps,
) -> pa.Table:
    """Returns records, as their JSON was loaded, as a table of `SCHEMA`; `to_text` writes JSON."""
    columns = {}
    for field in SCHEMA:
        values = [record.get(field.name) for record in records]
        if field.name in _OF_JSON:
            values = [None if one is None else to_text(one) for one in values]
        elif pa.types.is_map(field.type):
            values = [list((one or {}).items()) for one in values]
        columns[field.name] = pa.array(values, field.type)
    return pa.table(columns, SCHEMA)


def files(folder: str | os.PathLike[str]) -> list[pathlib.Path]:
    """Returns the files of a folder that hold records or events, at any depth, sorted; hidden ones are not whole yet.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    place = pathlib.Path(os.fspath(folder).removeprefix("folder://"))
    return [path for path in shown_files(place) if path.suffix in SUFFIXES]


def unread(folder: str | os.PathLike[str]) -> list[Unread]:
    """Returns what lies in a folder of records or events and is not read; hidden files are not whole yet."""
    place = pathlib.Path(os.fspath(folder).removeprefix("folder://"))
    shown = shown_files(place)
    others = [path for path in shown if path.suffix not in SUFFIXES]
    cut = [path for path in shown if path.suffix == ".jsonl" and not is_whole(_last_line(path) or b"\n")]
    found = ((others, OTHER_SUFFIX), (cut, HALF_WRITTEN))
    return [Unread(str(paths[0]), reason, len(paths)) for paths, reason in found if paths]


def shown_files(place: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files under a folder that are not hidden, sorted.

    Raises:
        FileNotFoundError: there is no such folder.
    """
    if not place.is_dir():
        raise FileNotFoundError(f"{place} must be a folder with files {' or '.join(SUFFIXES)}. It is not there.")
    found = (path for path in place.rglob("*") if path.is_file())
    return sorted(p for p in found if not any(name.startswith((".", "_")) for name in p.relative_to(place).parts))


def payloads(path: pathlib.Path) -> typing.Iterator[bytes]:
    """Yields the objects of JSON of a file, of Parquet one per row, a last line that is half written not.

    Raises:
        ValueError: it is no Parquet that can be read.
    """
    if path.suffix == ".jsonl":
        with path.open("rb") as file:
            yield from (line for line in file if line.strip() and is_whole(line))
        return
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for row in batch.to_pylist():
                    found = {name: one for name, one in row.items() if one is not None}
                    yield json.dumps(found, default=str).encode()
    except pa.ArrowMemoryError:
        raise
    except pa.ArrowException as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path} must be readable Parquet. Received: {reason}") from error


def is_whole(line: bytes) -> bool:
    """Returns whether a line has its end, or is an object of JSON, which the beginning of one never is.

    >>> is_whole(b'{"a": 1'), is_whole(b'{"a": 1}'), is_whole(b"[1\\n"), is_whole(b"1")
    (False, True, True, False)
    """
    if line.endswith(b"\n"):
        return True
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _last_line(path: pathlib.Path) -> bytes:
    """Returns the last line of a file, with its end where it has one."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        tail = b""
        while end > 0 and tail.count(b"\n", 0, -1) == 0:
            start = max(0, end - _TAIL_BYTES)
            file.seek(start)
            tail, end = file.read(end - start) + tail, start
    return tail[tail.rfind(b"\n", 0, -1) + 1 :]


def _decoded(values: dict[str, typing.Any]) -> dict[str, typing.Any]:
    """Returns fields of which some stand as Parquet holds them: texts of JSON, lists of pairs. Others stay."""
    result = dict(values)
    for name in _OF_JSON:
        if isinstance(result.get(name), str):
            with contextlib.suppress(ValueError, RecursionError):
                result[name] = json.loads(result[name])
    for field in SCHEMA:
        if pa.types.is_map(field.type) and isinstance(result.get(field.name), list):
            with contextlib.suppress(ValueError, TypeError):
                result[field.name] = dict(result[field.name])
    return result


def _id_faults(values: typing.Mapping[str, typing.Any]) -> typing.Iterator[str]:
    request_id: typing.Any = values.get("request_id")
    time: typing.Any = values.get("time")
    if not isinstance(request_id, str) or not 0 < len(request_id) <= MAX_REQUEST_ID:
        yield f"`request_id` must be a text of 1 to {MAX_REQUEST_ID} characters, not {str(request_id)[:80]!r}"
    if not _is_number(time) or not 0 < time < 253_402_300_800:  # the year 10,000
        yield f"`time` must be seconds since 1970, not {time!r}"


def _is_int(value: typing.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(1 << 63) <= value < 1 << 63


def _is_number(value: typing.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_value(value: typing.Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_value, value))
    return value is None or isinstance(value, (str, bool, float)) or _is_int(value)


def _without_nan(value: typing.Any) -> typing.Any:
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
