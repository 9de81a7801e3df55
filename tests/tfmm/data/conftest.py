"""Data folders of a few rows."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest


@pytest.fixture(scope="session")
def at():
    """Returns a function from minutes after an arbitrary start to a timestamp."""
    return lambda minute: datetime.datetime(2024, 3, 4) + datetime.timedelta(minutes=minute)


@pytest.fixture
def tables(tmp_path):
    """Returns a function that writes tables, given as lists of rows, and returns their folder."""

    def write(**rows_of):
        for name, rows in rows_of.items():
            table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
            pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=3)
        return tmp_path

    return write
