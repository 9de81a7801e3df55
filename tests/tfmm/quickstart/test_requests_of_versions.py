"""Requests made of tables with several rows per id say what an impression after all of them sees."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfmm.config import DataConfig
from tfmm.data import join, shards
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Sequence
from tfmm.quickstart import requests

START = datetime.datetime(2024, 6, 5, 12)


def test_a_request_has_the_newest_versions(tmp_path):
    at = [START + datetime.timedelta(minutes=minute) for minute in range(8)]
    tables = {
        "items": {
            "item_id": [2, 1, 2, 1], "title": ["a"] * 4, "price": [1.0, 2.0, 3.0, 4.0],
            "listed": pa.array([None, at[0], at[1], None], pa.timestamp("us")),
            "updated_at": pa.array([at[5], at[6], at[2], None], pa.timestamp("us")),
        },
        "users": {"user_id": [7, 7, 7], "income": [10.0, 20.0, 30.0], "updated_at": [at[1], at[5], at[0]]},
        "impressions": {"user_id": [7] * 8, "item_id": [1, 2] * 4, "timestamp": at, "label": [0, 1, 1, 0] * 2},
        "behaviors": {"user_id": [7], "item_id": [2], "timestamp": [START - datetime.timedelta(days=1)],
                      "action": ["click"]},
    }  # fmt: skip
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet", row_group_size=2)
    declared = FeatureSet(
        (*DEFAULT_FEATURES, Feature("price", "item", "number"), Feature("listed", "item", "time"),
         Feature("income", "user", "number")),
        (Sequence("acts", features=("item_id", "price", "listed")),),
    ).resolved(2, 1)  # fmt: skip
    user = requests.busiest_user(tmp_path, declared, "UTC")
    items = requests.first_items(tmp_path, declared, 9, "UTC")
    assert dict(zip(items["item_id"], zip(items["price"], items["listed"]))) == {
        2: (1.0, 0), 1: (2.0, int(at[0].replace(tzinfo=datetime.timezone.utc).timestamp()) * 1_000_000)
    }  # fmt: skip
    assert (user["income"], user["acts_price"], user["acts_listed"]) == (20.0, [1.0], [0])
    join.write_examples(tmp_path, DataConfig(), declared, tmp_path / "out")
    held = shards.read_columns(str(tmp_path / "out/eval-*"))
    newest = int(np.argmax(held["timestamp"]))  # of item 2, a minute after the last version
    assert (held["income"][newest], held["price"][newest]) == (user["income"], 1.0)
    assert (held["acts_price"][newest][0], held["acts_listed"][newest][0]) == (1.0, 0)
