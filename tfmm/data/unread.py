"""What lies in a data folder and is not read: files, tables and columns, each with the reason."""

from __future__ import annotations

import collections
import pathlib
import typing

from tfmm.data import layout, schema
from tfmm.data.layout import Unread

NOT_A_COLUMN = "not a column of the schema"
PARTITION_KEY = "a partition key that is not a column of the schema"
NO_ROWS = "no rows"


def say(
    data_dir: str | pathlib.Path, write: typing.Callable[[str], object], tables: schema.Tables | None = None
) -> None:
    """Writes what is not read of a data folder, by the documented tables or those given: a line for each reason.

    Raises:
        LayoutError: the files of a table cannot be read as one table.
    """
    known = tables or schema.TABLES
    found = of_folder(data_dir, known) + [one for name in known for one in of_table(data_dir, name, known)]
    for line in in_words(found):
        write(line)


def in_words(unread: typing.Iterable[Unread]) -> list[str]:
    """Returns a line for each reason.

    >>> in_words([Unread("items.brand", NOT_A_COLUMN), Unread("items.price", NOT_A_COLUMN)])
    ['not used: items.brand, items.price (not a column of the schema)']
    """
    groups = collections.defaultdict(list)
    for found in unread:
        groups[found.reason].append(str(found))
    return [f"not used: {', '.join(names)} ({reason})" for reason, names in groups.items()]


def of_folder(data_dir: str | pathlib.Path, tables: schema.Tables = schema.TABLES) -> list[Unread]:
    """Returns the files and folders that belong to no table."""
    return layout.unknown_files(data_dir, tables)


def of_table(
    data_dir: str | pathlib.Path, name: str, tables: schema.Tables = schema.TABLES
) -> list[Unread]:
    """Returns the files in a table's folder that are no parts, and the columns that the schema does not have.

    Raises:
        LayoutError: its files cannot be read as one table.
    """
    result = layout.unread_files(data_dir, name)
    parts = schema.table_parts(data_dir, name, tables)
    if parts and not any(sum(part.row_groups) for part in parts):
        result.append(Unread(name, NO_ROWS))
    documented = {column.name for column in tables[name].columns}
    for columns, reason in (
        ((column for part in parts for column in part.stored.names), NOT_A_COLUMN),
        ((column for part in parts for column in part.other_keys), PARTITION_KEY),
    ):
        others = dict.fromkeys(column for column in columns if column not in documented)
        result += [Unread(f"{name}.{column}", reason) for column in others]
    return result
