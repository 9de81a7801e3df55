"""The raw tables: what a data folder holds, in which columns and types, and how it is read.

A data folder holds Parquet tables, each one file or one folder of files; `tfmm.data.layout` says which.
"""

from __future__ import annotations

import dataclasses
import pathlib
import typing

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tfmm.data import casting, layout
from tfmm.data.parts import Part
from tfmm.fingerprints import fingerprint
from tfmm.modalities import UNDECLARED, ModalitySet

SPLITS = TRAIN, EVAL = ("train", "eval")
UPDATED_AT = "updated_at"  # of a table that may have several rows per id, see `tfmm.data.as_known`


@dataclasses.dataclass(frozen=True)
class Column:
    """One documented column."""

    name: str
    kind: str  # id, string, binary (a picture), vector, content (of an own encoder), timestamp or integer
    meaning: str
    required: bool = False  # the column must exist and hold no null
    is_key: bool = True  # of an id: it names a row or refers to one, so 0 and "" are refused; else they are missing


@dataclasses.dataclass(frozen=True)
class Table:
    """One documented table."""

    name: str
    meaning: str
    columns: tuple[Column, ...]
    required: bool = False

    def column(self, name: str) -> Column:
        """Returns the column of a name."""
        return next(column for column in self.columns if column.name == name)


Tables = typing.Mapping[str, Table]


def documented(modality_set: ModalitySet) -> dict[str, Table]:
    """Returns the tables of every run, with the contents that its modalities read."""

    def with_contents(table: str, before: tuple[Column, ...], after: tuple[Column, ...] = ()) -> tuple[Column, ...]:
        own = {column.name for column in before + after}  # what they are is no modality's to say
        read = modality_set.columns(table).items()
        return (*before, *(Column(name, *facts) for name, facts in read if name not in own), *after)

    tables = (
        Table(
            "items",
            "the catalog",
            with_contents(
                "items",
                (Column("item_id", "id", "unique, or at each `updated_at`", required=True),),
                (
                    Column("category", "id", "leaf category", is_key=False),
                    Column("created_at", "timestamp", "when the item entered the catalog"),
                    Column(UPDATED_AT, "timestamp", "from when on the row holds; an item may have a row per time"),
                ),
            ),
            required=True,
        ),
        Table(
            "searches",
            "searches with a text, an image, or both",
            with_contents(
                "searches",
                (
                    Column("search_id", "id", "unique", required=True),
                    Column("user_id", "id", "who searched", required=True),
                    Column("timestamp", "timestamp", "when, UTC", required=True),
                ),
            ),
        ),
        Table(
            "behaviors",
            "what users did with items; where it is absent, histories are the clicked impressions",
            (
                Column("user_id", "id", "who", required=True),
                Column("item_id", "id", "with which item", required=True),
                Column("timestamp", "timestamp", "when, UTC", required=True),
                Column("action", "string", "click, cart, favorite or purchase", required=True),
                Column("search_id", "id", "the search that led to it"),
                Column(
                    "trigger_item_id",
                    "id",
                    "the item whose page led to the click: its hard negative is this item",
                ),
                Column("order_id", "id", "the order or invoice of a purchase"),
                Column("order_line", "integer", "place in the order; adjacent lines give co-purchase pairs"),
            ),
        ),
        Table(
            "impressions",
            "items shown, clicked or not",
            (
                Column("user_id", "id", "to whom", required=True),
                Column("item_id", "id", "which item", required=True),
                Column("timestamp", "timestamp", "when, UTC", required=True),
                Column("label", "integer", "1 clicked, 0 not", required=True),
                Column(
                    "split",
                    "string",
                    "train or eval; where the column is absent, the last ones by time are eval",
                ),
            ),
            required=True,
        ),
    )
    return {table.name: table for table in tables}


TABLES = documented(UNDECLARED)

_NOTES = """
One Parquet file `<table>.parquet`, or one folder `<table>/` or `<table>.parquet/` of files at any depth, per table;
a folder `action=click/` gives a column to the files in it. An optional column may be absent, or null in a row. Ids
are whole numbers or strings, of one type over all tables; 0 and the empty string are no ids. A catalog needs a title,
an image or a vector in at least one row."""


def schema_text(tables: Tables | None = None) -> str:
    """Returns the documented schema as plain text, or that of `declared.tables`.

    >>> print(schema_text().splitlines()[0])
    items (required): the catalog
    """
    lines = []
    for table in (tables or TABLES).values():
        lines.append(f"{table.name} ({'required' if table.required else 'optional'}): {table.meaning}")
        for column in table.columns:
            presence = "required" if column.required else "optional"
            lines.append(f"  {column.name:<16} {casting.KIND_TEXT[column.kind]:<16} {presence:<9} {column.meaning}")
        lines.append("")
    return "\n".join(lines) + _NOTES


def kind_text(column: Column) -> str:
    """Returns a column's documented type in words."""
    return casting.KIND_TEXT[column.kind]


def table_parts(data_dir: str | pathlib.Path, name: str, tables: Tables | None = None) -> list[Part]:
    """Returns the Parquet files of a table, sorted by path; none where the table is absent.

    Raises:
        LayoutError: the files do not make up one table; see `tfmm.data.layout.table_parts`.
    """
    tables = tables or TABLES
    if name not in tables:
        raise ValueError(f"`name` must be one of {sorted(tables)}. Received: {name!r}.")
    return layout.table_parts(data_dir, name, {column.name: column.kind for column in tables[name].columns})


def has_table(data_dir: str | pathlib.Path, name: str, tables: Tables | None = None) -> bool:
    """Returns whether a data folder has a table, in either form."""
    return bool(table_parts(data_dir, name, tables))


def _require_parts(data_dir: str | pathlib.Path, name: str, tables: Tables | None = None) -> list[Part]:
    if parts := table_parts(data_dir, name, tables):
        return parts
    unread = "".join(f" Not read: {found} ({found.reason})." for found in layout.unread_files(data_dir, name))
    raise FileNotFoundError(
        f"{data_dir} holds no table {name!r}: expected {name}.parquet or {name}/*.parquet.{unread} "
        "`tfmm data schema` prints the tables."
    )


def read_table(
    data_dir: str | pathlib.Path,
    name: str,
    columns: typing.Sequence[str] | None = None,
    tables: Tables | None = None,
) -> pa.Table:
    """Reads a table, in the documented types.

    Args:
        data_dir: the data folder.
        name: items, searches, behaviors or impressions.
        columns: the columns wanted, in this order; an optional one that the files lack comes as nulls. None:
            all documented columns that the files have.
        tables: with the columns that a run declares (`declared.tables`); None: the documented ones.
    Returns:
        The table. Ids are int64 or string, timestamps timestamp[us], labels int64, vectors lists of float32.
    Raises:
        FileNotFoundError: the table is absent.
        ValueError: a required column is absent, or a column cannot be read as its documented type.
        LayoutError: a file cannot be read, or the files do not make up one table.
    """
    return concatenate(
        [read_part(part, name, columns, tables=tables) for part in _require_parts(data_dir, name, tables)]
    )


def read_part(
    part: Part,
    name: str,
    columns: typing.Sequence[str] | None = None,
    row_group: int | None = None,
    tables: Tables | None = None,
) -> pa.Table:
    """Reads one file of a table, or one row group of it, in the documented types; see `read_table`."""
    stored, spec = part.schema.names, (tables or TABLES)[name]
    wanted = [column.name for column in spec.columns] if columns is None else columns
    for column in (spec.column(one) for one in wanted):
        if column.required and column.name not in stored:
            raise ValueError(
                f"Table {name!r} must have a column {column.name!r} ({casting.KIND_TEXT[column.kind]}). "
                f"Received the columns {stored} in {part.path}."
            )
    table = part.read([column for column in wanted if column in stored], row_group)
    try:
        return conform(table, name, columns, tables)
    except ValueError as error:
        raise ValueError(f"{error} In {part.path}.") from error


def concatenate(parts: typing.Sequence[pa.Table]) -> pa.Table:
    """Stacks tables; a column that one of them lacks, or holds as untyped nulls, is null there."""
    if len(parts) == 1:
        return parts[0]
    types: dict[str, pa.DataType] = {}
    for field in (field for part in parts for field in part.schema):
        if field.name not in types or pa.types.is_null(types[field.name]):
            types[field.name] = field.type

    def column(part: pa.Table, name: str) -> pa.ChunkedArray:
        if name in part.column_names and not pa.types.is_null(part[name].type):
            return part[name]
        return pa.chunked_array([pa.nulls(part.num_rows, types[name])])

    return pa.concat_tables([pa.table({name: column(part, name) for name in types}) for part in parts])


def conform(
    table: pa.Table, name: str, columns: typing.Sequence[str] | None = None, tables: Tables | None = None
) -> pa.Table:
    """Returns a table's columns in their documented types and order; see `read_table`."""
    spec = (tables or TABLES)[name]
    if columns is None:
        columns = [c.name for c in spec.columns if c.required or c.name in table.column_names]
    arrays = []
    for column in (spec.column(wanted) for wanted in columns):
        if column.name in table.column_names:
            arrays.append(casting.cast(table[column.name], column.name, column.kind, name))
        elif column.required:
            raise ValueError(
                f"Table {name!r} must have a column {column.name!r} ({casting.KIND_TEXT[column.kind]}). "
                f"Received the columns: {table.column_names}."
            )
        else:
            kind = casting.ARROW_TYPES.get(column.kind, pa.null())
            arrays.append(pa.chunked_array([pa.nulls(table.num_rows, kind)]))
    return pa.table(arrays, names=list(columns))


def fingerprints(ids: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """Returns int64 [n] fingerprints of an id column (int64 or string); null gives 0.

    >>> fingerprints(pa.array([5, None]))
    array([5, 0])
    """
    if pa.types.is_null(ids.type):
        return np.zeros(len(ids), np.int64)
    if pa.types.is_integer(ids.type):
        return pc.fill_null(ids.cast(pa.int64()), 0).to_numpy(**_zero_copy(ids))
    if isinstance(ids, pa.ChunkedArray):
        ids = ids.combine_chunks()
    if isinstance(ids, pa.ChunkedArray):  # no chunk, or more than one array can hold
        ids = pa.concat_arrays(ids.chunks) if ids.num_chunks else pa.array([], ids.type)
    encoded = ids.dictionary_encode()
    texts = encoded.dictionary.cast(pa.large_binary()).to_pylist()  # bytes: files may hold invalid UTF-8
    distinct = fingerprint(texts) if texts else np.zeros(0, np.int64)
    places = pc.fill_null(encoded.indices, len(distinct)).to_numpy(zero_copy_only=False)
    return np.append(distinct, 0)[places].astype(np.int64)


def _zero_copy(array: pa.ChunkedArray | pa.Array) -> dict[str, bool]:
    return {} if isinstance(array, pa.ChunkedArray) else {"zero_copy_only": False}


def microseconds(timestamps: pa.ChunkedArray) -> np.ndarray:
    """Returns int64 [n] microseconds since 1970 of a timestamp[us] column; null gives the smallest int64."""
    return pc.fill_null(timestamps.cast(pa.timestamp("us")).cast(pa.int64()), np.iinfo(np.int64).min).to_numpy()


def modalities(data_dir: str | pathlib.Path, modality_set: ModalitySet = UNDECLARED) -> tuple[str, ...]:
    """Returns what stands for an item, by name: what the run declares, or else what the data has of `DEFAULT`.

    A content in at least one row is enough. Each but ready vectors needs an encoder; see
    `tfmm.data.pairs.build_pairs` for the logs that it is learned from.

    Raises:
        FileNotFoundError: there is no table of items.
        ValueError: a declared modality has no content; all of them are named.
    """
    parts = _require_parts(data_dir, "items", documented(modality_set))
    names = modality_set.present(lambda column: has_value(parts, column))
    if empty := [m for m in map(modality_set.__getitem__, names) if not has_value(parts, m.content)]:
        received = ", ".join(f"{modality.name!r} with nothing in items.{modality.content}" for modality in empty)
        raise ValueError(
            f"Declared modalities must have content in at least one row of {data_dir}. Received: {received}. Fill the "
            "column, name another `column`, or leave the modality out."
        )
    return names


def has_value(parts: typing.Sequence[Part], column: str) -> bool:
    """Returns whether any row of a table holds something in a column."""
    for part in parts:
        if column in part.schema.names:
            for group in range(len(part.row_groups)):
                values = part.read([column], group)[column]
                if values.null_count < len(values):
                    return True
    return False


def id_types(data_dir: str | pathlib.Path) -> dict[str, str]:
    """Returns the types of user ids, item ids and categories at the edge: "int64" or "string".

    Raises:
        ValueError: an id, be it one of these, of a search or of an order, has another type in one table or file
            than in another.
    """
    found: dict[str, str] = {}
    for name, column, key in (
        ("impressions", "user_id", "user_id"),
        ("items", "item_id", "item_id"),
        ("items", "category", "category"),
        ("impressions", "item_id", "item_id"),
        ("behaviors", "user_id", "user_id"),
        ("behaviors", "item_id", "item_id"),
        ("behaviors", "trigger_item_id", "item_id"),
        ("behaviors", "order_id", "order_id"),
        ("searches", "user_id", "user_id"),
        ("searches", "search_id", "search_id"),
        ("behaviors", "search_id", "search_id"),
    ):
        for part in table_parts(data_dir, name):
            schema = part.schema
            if column not in schema.names or pa.types.is_null(schema.field(column).type):
                continue
            kind = schema.field(column).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            text = "int64" if pa.types.is_integer(kind) else "string"
            if found.setdefault(key, text) != text:
                rule = "one type in all tables" if column == key else f"the type of `{key}`"
                received = f"{found[key]} elsewhere, {kind} in {part.path}"
                raise ValueError(f"`{column}` must have {rule}. Received: {received}.")
    return {key: found.get(key, "int64") for key in ("user_id", "item_id", "category")}


def item_id_types(data_dir: str | pathlib.Path) -> dict[str, str]:
    """Returns the types of the catalog's ids, `item_id` and `category`: "int64" or "string"; none of what it lacks."""
    result = {}
    for part in table_parts(data_dir, "items"):
        for name in ("item_id", "category"):
            if name in part.schema.names and name not in result:
                kind = conform(part.schema.empty_table().select([name]), "items", [name])[name].type
                if not pa.types.is_null(kind):
                    result[name] = "int64" if pa.types.is_integer(kind) else "string"
    return result
