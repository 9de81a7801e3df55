"""Few pairs, and why: the count and the reason stand in the manifest of pairs and in that of the encoder."""

import datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm import artifacts
from tfmm.config import PairsConfig, SCLConfig
from tfmm.data import pairs, scarcity
from tfmm.pretrain import train

HALF = PairsConfig(heldout_fraction=0.5)
START = datetime.datetime(2024, 5, 1)


def shop(num_users=60, per_user=50, items=200):
    """Clicks of users who come one after another, a user a day: a split by user, not by time, starts on day one."""
    generator = np.random.default_rng(0)
    users = np.repeat(np.arange(1, num_users + 1), per_user)
    ids = generator.integers(1, items + 1, len(users))
    minutes = np.tile(np.arange(per_user), num_users) + 1440 * (users - 1)
    times = [START + datetime.timedelta(minutes=int(minute)) for minute in minutes]
    log = {"user_id": users.tolist(), "item_id": ids.tolist(), "timestamp": times}
    titles = [f"word{item % 20} thing{item}" for item in range(1, items + 1)]
    return {
        "items": pa.table({"item_id": range(1, items + 1), "title": titles}),
        "behaviors": pa.table({**log, "action": ["click"] * len(users)}),
        "impressions": pa.table({**log, "label": [1] * len(users)}),
    }


@pytest.fixture
def tables(tmp_path):
    """Writes tables to a data folder of their own; returns it."""

    def write(**data):
        folder = tmp_path / f"data-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        for name, table in data.items():
            pq.write_table(table, folder / f"{name}.parquet")
        return folder

    return write


def last_of_each_user(data, share=0.2, per_user=50):
    last = np.arange(per_user) >= (1 - share) * per_user
    num_users = data["behaviors"].num_rows // per_user
    return with_split(data, np.tile(last, num_users))


def with_split(data, is_eval):
    splits = pa.array(np.where(is_eval, "eval", "train").tolist())
    return {**data, "impressions": data["impressions"].append_column("split", splits)}


def test_split_that_is_no_cut_in_time_is_said_with_the_counts(tables, tmp_path):
    manifest = pairs.build_pairs(tables(**last_of_each_user(shop())), HALF, tmp_path / "pairs")["text"]
    assert (manifest["log_rows"], manifest["log_rows_before_eval"]) == (3000, 39)  # of the first user, each by its end
    assert manifest["train"] + manifest["heldout"] < 39
    said = manifest["warning"]
    assert said.startswith(f"Few pairs teach the text encoder: {manifest['train']}, by co-click. Few pairs are held")
    assert "Of 3,000 rows of behaviors 39 are from before the eval split, which begins at 2024-05-01 00:40 UTC" in said
    assert "`split` is no cut in time, 98 % of the train impressions are later." in said


def test_warning_reaches_the_encoder(tables, tmp_path):
    pairs.build_pairs(tables(**last_of_each_user(shop())), HALF, tmp_path / "pairs")
    config = SCLConfig(modality="text", dim=8, text_buckets=256, epochs=1, batch_size=4)
    made = train.train(config, tmp_path / "pairs" / "text", tmp_path / "encoder")
    assert made["warnings"] == [artifacts.read_manifest(tmp_path / "pairs" / "text")["warning"]]
    assert made["acc_at_1_gain"] is None


def test_cut_in_time_with_many_pairs_is_not_warned_of(tables, tmp_path):
    data = shop()
    manifest = pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")["text"]
    assert manifest["warning"] is None and manifest["late_train_share"] == 0.0
    cut = tables(**with_split(data, np.arange(3000) >= 2400))
    assert pairs.build_pairs(cut, HALF, tmp_path / "cut")["text"]["warning"] is None


def test_few_pairs_of_a_small_log_say_no_more_than_that(tables, tmp_path):
    said = pairs.build_pairs(tables(**shop(num_users=3)), HALF, tmp_path / "pairs")["text"]["warning"]
    assert said.startswith("Few pairs teach the text encoder: ")
    assert "rows of behaviors" not in said and "cut in time" not in said  # 120 of 150 are from before the split


LOG = scarcity.LogCounts("impressions", 23_796, 22_979, 0, 0.0)
HELD = "Few pairs are held out from the image encoder: 87, by co-click, so that Acc@N tells little."


@pytest.mark.parametrize(
    ("train", "heldout", "items", "wanted"),
    [
        (1_103, 87, 40, HELD),
        (1_103, 87, 29, f"{HELD} Those held out from the image encoder are of 29 items: of fewer than 30 Acc@N has no "
                        "interval."),
        (1_103, 900, 29, "Those held out from the image encoder are of 29 items: of fewer than 30 Acc@N has no "
                         "interval."),
        (499, 100, 30, "Few pairs teach the image encoder: 499, by co-click."),
        (500, 100, 30, None),
    ],
)  # fmt: skip
def test_what_is_few_is_said_and_nothing_else(train, heldout, items, wanted):
    counts = {"train": train, "heldout": heldout, "heldout_items": items}
    assert scarcity.warning("image", "co-click", counts, LOG) == wanted
    assert scarcity.warning("image", "co-click", counts, LOG._replace(late_train_share=0.5)) == wanted


def test_items_that_pairs_are_held_out_of_are_those_of_the_encoder(tables, tmp_path):
    few = PairsConfig(heldout_fraction=0.12)
    manifest = pairs.build_pairs(tables(**shop()), few, tmp_path / "pairs")["text"]
    config = SCLConfig(modality="text", dim=8, text_buckets=256, epochs=1, batch_size=64)
    made = train.train(config, tmp_path / "pairs" / "text", tmp_path / "encoder")
    assert made["heldout_pairs"] == manifest["heldout"] > scarcity.FEW_HELDOUT and made["heldout_items"] < 30
    assert f"held out from the text encoder are of {made['heldout_items']} items: of fewer than" in manifest["warning"]
    assert made["acc_at_1_interval"] is None


@pytest.mark.parametrize(("share", "rows", "warned"), [(0.5, 4_000, True), (0.5, 6_000, False), (0.005, 4_000, False)])
def test_many_pairs_of_less_than_half_of_the_rows_are_said_where_the_split_is_why(share, rows, warned):
    log = scarcity.LogCounts("behaviors", 10_000, rows, 0, share)
    said = scarcity.warning("image", "search", {"train": 3_000, "heldout": 300, "heldout_items": 99}, log)
    assert (said is not None) is warned
    assert not warned or said.startswith("A part of the pairs teach")
