"""Data folders of a few rows, and one small marketplace for all tests."""

import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm.config import MarketplaceConfig
from tfmm.data import marketplace

SMALL = MarketplaceConfig(
    num_items=300, new_items_per_day=20, num_users=250, impressions_per_user_day=5, num_searches=400, image_size=16
)


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


@pytest.fixture(scope="session")
def small_config():
    """The settings of `small_marketplace`."""
    return SMALL


@pytest.fixture(scope="session")
def small_marketplace(tmp_path_factory):
    """A folder with a small marketplace; read-only."""
    folder = tmp_path_factory.mktemp("marketplace")
    marketplace.generate(SMALL, folder)
    return folder
