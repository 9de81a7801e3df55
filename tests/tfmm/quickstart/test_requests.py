"""Tests of requests that are made of the tables: they say what examples of the same rows say."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tfmm.config import DataConfig
from tfmm.data import join, shards
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Sequence
from tfmm.quickstart import requests

ZONE = "Asia/Kolkata"  # half an hour beside the hour
START = datetime.datetime(2024, 6, 5, 12)


def test_times_of_a_request_are_those_of_the_examples(tmp_path):
    at = [START + datetime.timedelta(minutes=i) for i in range(8)]
    before = [START - datetime.timedelta(minutes=63, seconds=7)]
    tables = {
        "items": {"item_id": [1, 2], "title": ["a", "b"], "listed": [datetime.date(2024, 6, 1), None]},
        "impressions": {"user_id": [7] * 8, "item_id": [1, 2] * 4, "timestamp": at, "label": [0, 1, 1, 0] * 2},
        "behaviors": {"user_id": [7], "item_id": [1], "timestamp": before, "action": ["click"]},
    }
    for name, columns in tables.items():
        pq.write_table(pa.table(columns), tmp_path / f"{name}.parquet")
    declared = FeatureSet(
        (
            *DEFAULT_FEATURES,
            Feature("hour", "context", "time", source="impressions.timestamp"),
            Feature("listed", "item", "time"),
            Feature("acted", "behavior", "time", source="behaviors.timestamp"),
        ),
        (Sequence("acts", features=("item_id", "listed", "acted")),),
    ).resolved(2, 1)
    user = requests.busiest_user(tmp_path, declared, ZONE)
    items = requests.first_items(tmp_path, declared, 2, ZONE)
    join.write_examples(tmp_path, DataConfig(max_behaviors=2, time_zone=ZONE), declared, tmp_path / "out")
    held = shards.read_columns(str(tmp_path / "out/eval-*"))
    newest = int(np.argmax(held["timestamp"]))
    assert user["hour"] == held["hour"][newest] == held["timestamp"][newest]
    assert user["acts_acted"] == held["acts_acted"][newest][:1].tolist()
    assert user["acts_listed"] == held["acts_listed"][newest][:1].tolist()
    by_item = dict(zip(held["item_id"].tolist(), held["listed"].tolist()))
    assert [by_item[item] for item in by_item] == [items["listed"][item - 1] for item in by_item]
    midnight = datetime.datetime(2024, 6, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5.5)))
    assert items["listed"] == [midnight.timestamp() * 1e6, 0]
