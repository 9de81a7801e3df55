"""One Parquet file of a table: its own columns, and those that the names of its folders give."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import typing

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfmm import buckets


class LayoutError(ValueError):
    """The files of a table cannot be read as one table."""


class Key(typing.NamedTuple):
    """A column that a folder's name gives, as `action=click` does: one value for all rows under it."""

    column: str
    value: int | str | datetime.date | datetime.datetime | None
    type: pa.DataType


@dataclasses.dataclass(frozen=True)
class Part:
    """One Parquet file of a table.

    Args:
        path: of the file.
        keys: documented columns that its folders' names give.
        other_keys: names of further keys, such as `dt`, which no documented column has.
    """

    path: str
    keys: tuple[Key, ...] = ()
    other_keys: tuple[str, ...] = ()

    @property
    def stored(self) -> pa.Schema:
        """The columns inside the file. Raises LayoutError where it cannot be read, or has a column twice."""
        with self._opened() as file:
            return file.schema_arrow

    @property
    def schema(self) -> pa.Schema:
        """The columns inside the file, then those that only its folders' names give."""
        schema = self.stored
        for key in self.keys:
            if key.column not in schema.names:
                schema = schema.append(pa.field(key.column, key.type))
        return schema

    @property
    def row_groups(self) -> list[int]:
        """The number of rows of each row group."""
        with self._opened() as file:
            return [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]

    def read(self, columns: typing.Sequence[str], row_group: int | None = None) -> pa.Table:
        """Reads those of `columns` that the part has, as they are stored.

        Args:
            columns: names.
            row_group: the only row group to read; None: all of them.
        Raises:
            LayoutError: the file is damaged, or holds another value than its folder's name says.
        """
        with self._opened() as file:
            names = file.schema_arrow.names
            wanted = [column for column in columns if column in names]
            table = file.read(columns=wanted) if row_group is None else file.read_row_group(row_group, columns=wanted)
        for key in self.keys:
            if key.column not in columns:
                continue
            if key.column not in names:
                values = pa.nulls(table.num_rows, key.type)
                if key.value is not None:
                    values = pa.repeat(pa.scalar(key.value, key.type), table.num_rows)
                table = table.append_column(key.column, values)
            elif not _all_are(table[key.column], key):
                raise LayoutError(
                    f"{self.path} must hold in column {key.column!r} what its folder's name says: {key.value}. "
                    "Received another value. Rename the folder, or leave the column out of the file."
                )
        return table

    @contextlib.contextmanager
    def _opened(self) -> typing.Iterator[pq.ParquetFile]:
        try:
            with buckets.opened(self.path) as place:
                # Spark's INT96 holds years to 9999; as nanoseconds, Arrow's default, those beyond 2262 would wrap.
                file = pq.ParquetFile(place, coerce_int96_timestamp_unit="us")
                names = collections.Counter(file.schema_arrow.names)
                if twice := [name for name, count in names.items() if count > 1]:
                    raise LayoutError(
                        f"{self.path} must have each column once. Received more than once: {', '.join(twice)}. Rename "
                        "or drop one."
                    )
                yield file
        except pa.ArrowMemoryError:
            raise
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            if isinstance(error, PermissionError) and buckets.is_url(self.path):
                raise
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            if "Expected all lists to be of size" in reason:  # Arrow below 13
                reason += ". This Arrow cannot read nulls among lists of one fixed length: write them as lists."
            raise LayoutError(f"{self.path} must be readable Parquet. Received: {reason}") from error


def _all_are(stored: pa.ChunkedArray, key: Key) -> bool:
    if key.value is None or stored.null_count:
        return key.value is None and stored.null_count == len(stored)
    if pa.types.is_dictionary(stored.type):
        stored = stored.cast(stored.type.value_type)
    try:
        values = stored.cast(key.type, safe=not pa.types.is_temporal(key.type))
        return bool(pc.all(pc.equal(values, pa.scalar(key.value, key.type)), min_count=0).as_py())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return False


def keys(column: str, kind: str, texts: typing.Sequence[str | None]) -> list[Key]:
    """Returns the values of one column from the texts in folders' names, in one type.

    Ids are int64 where all of them are whole numbers, else strings. A timestamp is a date or a time in ISO 8601.

    Args:
        column: its name.
        kind: id, string, integer or timestamp; see `tfmm.data.schema.Column`.
        texts: one per part; None is null.
    Raises:
        ValueError: a text is no value of the kind.
    """
    given = [text for text in texts if text is not None]
    parse: typing.Callable[[str], typing.Any]
    if kind == "id":
        parse, type_ = (int, pa.int64()) if all(map(_is_whole, given)) else (str, pa.string())
    elif kind == "string":
        parse, type_ = str, pa.string()
    elif kind == "integer":
        parse, type_ = _integer, pa.int64()
    elif kind == "timestamp":
        are_dates = all(len(text) == len("2024-03-04") for text in given)
        parse, type_ = (datetime.date.fromisoformat, pa.date32()) if are_dates else (_utc, pa.timestamp("us"))
    else:
        raise ValueError(f"a {kind} cannot be the name of a folder")
    return [Key(column, None if text is None else parse(text), type_) for text in texts]


def _is_whole(text: str) -> bool:
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and str(int(text)) == text and -(2**63) <= int(text) < 2**63


def _integer(text: str) -> int:
    if text in ("true", "false"):
        return int(text == "true")
    if not _is_whole(text):
        raise ValueError("no whole number of 64 bits")
    return int(text)


def _utc(text: str) -> datetime.datetime:
    time = datetime.datetime.fromisoformat(text.replace("Z", "+00:00"))
    return time if time.tzinfo is None else time.astimezone(datetime.timezone.utc).replace(tzinfo=None)
