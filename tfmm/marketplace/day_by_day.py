"""A marketplace as a shop's data folder grows: day by day, a file appended to each log."""

from __future__ import annotations

import pathlib
import shutil

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tfmm.data.instants import DAY_US
from tfmm.marketplace.generator import WEEK_START_US


def append_day(marketplace_dir: str | pathlib.Path, data_dir: str | pathlib.Path, day: int) -> None:
    """Adds to a data folder what happened on one day of the week, and the items that are known at its end.

    Args:
        marketplace_dir: as `generator.generate` wrote it.
        data_dir: made where missing; gets `impressions/day-<day>.parquet` and the same of behaviors, and the catalog
            anew. Day 0 brings what was before the week, too, with the searches, and the users where there are any.
        day: 0 for the first of the week.
    """
    source, folder = pathlib.Path(marketplace_dir).absolute(), pathlib.Path(data_dir).absolute()
    begin, end = WEEK_START_US + day * DAY_US, WEEK_START_US + (day + 1) * DAY_US
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("searches", "users") if day == 0 else ():
        if (source / f"{name}.parquet").exists():
            shutil.copy(source / f"{name}.parquet", folder)
    for name in ("impressions", "behaviors"):
        table = pq.read_table(source / f"{name}.parquet")
        at = _microseconds(table["timestamp"])
        chosen = pc.less(at, end) if day == 0 else pc.and_(pc.greater_equal(at, begin), pc.less(at, end))
        (folder / name).mkdir(exist_ok=True)
        pq.write_table(table.filter(chosen), folder / name / f"day-{day}.parquet", row_group_size=65_536)
    items = pq.read_table(source / "items.parquet")
    pq.write_table(items.filter(pc.less(_microseconds(items["created_at"]), end)), folder / "items.parquet")


def _microseconds(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.timestamp("us")).cast(pa.int64())
