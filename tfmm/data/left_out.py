"""Rows that a job left out: how many by reason, said in lines, and refused where they are too many."""

from __future__ import annotations

import collections
import glob
import pathlib

import pyarrow.parquet as pq

from tfmm.data import schema

Counts = collections.Counter[tuple[str, str]]  # by table and reason


def read(examples_dir: str | pathlib.Path) -> Counts:
    """Counts the dead letters that `tfmm.data.beam` wrote."""
    counts: Counts = collections.Counter()
    for path in sorted(glob.glob(f"{glob.escape(str(examples_dir))}/dead_letter-*.parquet")):
        letters = pq.read_table(path, columns=["table", "reason"])
        counts.update(zip(letters["table"].to_pylist(), letters["reason"].to_pylist()))
    return counts


def in_words(counts: Counts) -> list[str]:
    """Returns a line for each table and reason, the most frequent first.

    >>> in_words(collections.Counter({("behaviors", "`action` must be one of click, cart"): 1800}))
    ['left out: 1,800 rows of behaviors: `action` must be one of click, cart']
    """
    return [f"left out: {count:,} rows of {table}: {reason}" for (table, reason), count in counts.most_common()]


def refuse_many(
    counts: Counts, data_dir: str | pathlib.Path, max_bad_fraction: float, tables: schema.Tables | None = None
) -> None:
    """Raises a ValueError with each reason that leaves out more than `max_bad_fraction` of its table's rows."""
    sizes: dict[str, int] = {}
    many = []
    for (table, reason), count in counts.most_common():
        if table not in sizes:
            sizes[table] = sum(sum(part.row_groups) for part in schema.table_parts(data_dir, table, tables))
        if count > max_bad_fraction * sizes[table]:
            many.append(f"{table} {reason} ({count:,} of {sizes[table]:,})")
    if many:
        raise ValueError(
            f"{data_dir} breaks rules too often to leave rows out: {'; '.join(many)}. `tfmm data check` lists every "
            f"fault; `data.max_bad_fraction`, now {max_bad_fraction:g}, says how many rows may be left out."
        )
