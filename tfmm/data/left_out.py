"""Rows that a job leaves out, and whether they are more than a run may lose."""

from __future__ import annotations

import os
import pathlib
import typing

import pyarrow.parquet as pq

from tfmm import dead_letters
from tfmm.data import declared, reading, schema, spans
from tfmm.features import FeatureSet


def verify(
    counts: typing.Iterable[dead_letters.Count],
    totals: typing.Mapping[str, int],
    max_bad_fraction: float,
    folder: str | os.PathLike[str] | None = None,
) -> None:
    """Refuses to go on where a reason took more than `data.max_bad_fraction` of a table's rows.

    Args:
        counts: rows that were left out, by source and reason.
        totals: rows of each source.
        max_bad_fraction: the share of a source's rows that one reason may take.
        folder: where the dead letters lie, if anywhere.
    Raises:
        ValueError: all such reasons.

    >>> none = dead_letters.Count("examples", "behaviors", "a", "`timestamp` must not be null", 1800)
    >>> verify([none], {"behaviors": 1_000_000}, 0.01)
    >>> verify([none], {"behaviors": 1800}, 0.01)  # doctest: +NORMALIZE_WHITESPACE
    Traceback (most recent call last):
    ...
    ValueError: No reason may leave out more than 1 % of a table's rows (`data.max_bad_fraction`). Left out:
    - 1,800 of 1,800 of behaviors: `timestamp` must not be null
    Mend them, or raise `data.max_bad_fraction`.
    """
    too_many = [one for one in counts if one.count > max_bad_fraction * totals[one.source]]
    if too_many:
        found = "\n".join(
            f"- {one.count:,} of {totals[one.source]:,} of {one.source}: {one.reason}" for one in too_many
        )
        where = "" if folder is None else f" `tfmm dead-letters {folder}` shows them."
        raise ValueError(
            f"No reason may leave out more than {100 * max_bad_fraction:g} % of a table's rows "
            f"(`data.max_bad_fraction`). Left out:\n{found}\nMend them, or raise `data.max_bad_fraction`.{where}"
        )


def totals(
    counts: typing.Iterable[dead_letters.Count],
    read: typing.Mapping[str, int],
    data_dir: str | pathlib.Path,
    feature_set: FeatureSet,
) -> dict[str, int]:
    """Returns the rows of each source of dead letters: those that were read of a log, and a catalog's all."""
    tables = declared.tables(feature_set)
    return {
        name: read.get(name) or sum(sum(part.row_groups) for part in schema.table_parts(data_dir, name, tables))
        for name in {one.source for one in counts}
    }


def verify_splits(has_rows: typing.Mapping[str, bool], continues: bool, received: str) -> None:
    """Refuses examples of which a split has none.

    Args:
        has_rows: whether a split has rows, by its name.
        continues: whether a model goes on over them, which has rows to be trained on another time.
        received: as a message ends.
    Raises:
        EmptySpan: a model that goes on has nothing to be trained on.
        ValueError: a split is empty.
    """
    if continues and not has_rows[schema.SPLITS[0]]:
        raise spans.EmptySpan(
            "A new model needs impressions to be trained on and to be judged by. Received, after its parent's, none "
            f"to be trained on: {received}. No new version is made."
        )
    if not all(has_rows.values()):
        raise ValueError(
            f"Both splits must have rows. Received: {received}. Without `split` the newest `data.eval_fraction` of "
            "the impressions are held out; the rows that were left out are dead letters, with their reasons."
        )


class Writer:
    """Rows that are left out, written to a folder as they come."""

    def __init__(self, folder: pathlib.Path):
        self._writer = pq.ParquetWriter(folder.absolute() / "dead_letter-00000-of-00001.parquet", reading.DEAD_LETTER)
        self.count = 0

    def append(self, letters: reading.DeadLetters) -> None:
        for some in letters.batches():
            self._writer.write_table(some)
            self.count += some.num_rows

    def close(self) -> int:
        self._writer.close()
        return self.count
