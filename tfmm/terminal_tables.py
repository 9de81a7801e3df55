"""Tables that commands show in a terminal."""

from __future__ import annotations

import typing

from rich import table


def folded(*headers: str, **options: typing.Any) -> table.Table:
    """Returns a table whose cells go on in the next line where the terminal is narrow.

    Rich cuts long words, and paths, codes and versions are there to be copied.

    Args:
        *headers: of the columns.
        **options: of rich's Table, such as its title.
    """
    return table.Table(*(table.Column(header, overflow="fold") for header in headers), **options)
