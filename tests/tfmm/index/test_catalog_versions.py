"""Tests of a catalog with several rows per item: the newest is what is embedded, served and shown."""

import datetime
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet
from tfmm.index import beam, item_features, item_index, snapshot

START = datetime.datetime(2024, 3, 4)
FEATURES = FeatureSet((*DEFAULT_FEATURES, Feature("price", "item", "number"), Feature("listed", "item", "time")))


def write(folder, rows, unit="us", **options):
    """Writes rows of (item id, title, price, listed, updated_at)."""
    columns = dict(zip(("item_id", "title", "price", "listed", "updated_at"), zip(*rows)))
    columns = {name: list(values) for name, values in columns.items()}
    columns["listed"] = pa.array(columns["listed"], pa.timestamp("us"))
    columns["updated_at"] = pa.array(columns["updated_at"], pa.timestamp(unit))
    folder.mkdir(parents=True)
    pq.write_table(pa.table(columns), folder / "items.parquet", **options)


def at(day):
    return START + datetime.timedelta(days=day)


def embed(folder, encoder_dirs, path, **options):
    dirs = {"text": encoder_dirs["text"]}
    return beam.embed_catalog(folder, dirs, path, feature_set=FEATURES, **options)["text"]


def held(path):
    """The index as it is: ids, text rows and features."""
    with item_index.ItemIndex(path) as index:
        taken = snapshot.take_snapshot(index)
        (layout,) = item_features.layouts(index)
        rows = index.embeddings("item_features", layout.version)
        values = layout.unpack(rows.rows)
        return taken["text"].ids, taken["text"].rows, rows.ids, values["price"], values["listed"]


ROWS = [
    (1, "old red", 1.0, at(0), at(3)),
    (2, "blue", 2.0, at(1), at(1)),
    (1, "new red", 3.0, at(2), at(5)),
    (3, "was there", 4.0, None, at(1)),
    (1, "oldest red", 5.0, at(4), None),
    (3, None, 6.0, at(5), at(2)),
    (4, "green", None, at(6), at(1)),
]
NEWEST = [ROWS[place] for place in (2, 1, 5, 6)]


def test_the_index_holds_the_newest_version_as_if_there_were_no_other(encoder_dirs, tmp_path):
    write(tmp_path / "versions", ROWS, row_group_size=3)
    write(tmp_path / "newest", [(*row[:4], None) for row in NEWEST])
    counts = [embed(tmp_path / name, encoder_dirs, tmp_path / f"{name}.sqlite") for name in ("versions", "newest")]
    assert counts[0] == counts[1] == {"embedded": 3, "changed": 3, "rejected": 0, "missing": 1}
    for versions, newest in zip(held(tmp_path / "versions.sqlite"), held(tmp_path / "newest.sqlite")):
        np.testing.assert_array_equal(versions, newest)
    assert held(tmp_path / "versions.sqlite")[3].tolist()[:3] == [3.0, 2.0, 6.0]


def test_a_later_version_is_taken_by_the_next_embedding(encoder_dirs, tmp_path):
    write(tmp_path / "first", ROWS)
    write(tmp_path / "second", [*ROWS, (2, "blue again", 9.0, at(1), at(7))])
    embed(tmp_path / "first", encoder_dirs, tmp_path / "index.sqlite")
    assert embed(tmp_path / "second", encoder_dirs, tmp_path / "index.sqlite")["changed"] == 1
    assert held(tmp_path / "index.sqlite")[3].tolist()[:3] == [3.0, 9.0, 6.0]


def test_two_versions_of_one_instant_are_refused_before_any_work(encoder_dirs, tmp_path):
    write(tmp_path / "data", [*ROWS, ROWS[3]])
    with pytest.raises(ValueError, match=r"`items.item_id` must have one row per instant of `updated_at`.* rows 7\."):
        embed(tmp_path / "data", encoder_dirs, tmp_path / "index.sqlite")
    assert not (tmp_path / "index.sqlite").exists()


def test_rows_of_one_id_whose_newest_nobody_tells_are_refused_before_any_work(encoder_dirs, tmp_path):
    """Such as copies of the catalog of several days, in folders `dt=...`."""
    write(tmp_path / "data", ROWS)
    file = tmp_path / "data" / "items.parquet"
    pq.write_table(pq.read_table(file).drop(["updated_at"]), file)
    with pytest.raises(ValueError, match=r"`items.item_id` must be unique.*Received: 3 rows .* first rows 2, 4, 5\."):
        embed(tmp_path / "data", encoder_dirs, tmp_path / "index.sqlite")
    assert not (tmp_path / "index.sqlite").exists()


def test_version_of_a_time_that_is_none_is_a_dead_letter(encoder_dirs, tmp_path):
    """The older one stands in for it."""
    seconds = [int(row[4].replace(tzinfo=datetime.timezone.utc).timestamp()) if row[4] else None for row in ROWS]
    seconds[2], seconds[6] = seconds[2] * 1_000_000, seconds[6] * 1_000_000
    write(tmp_path / "data", [(*row[:4], second) for row, second in zip(ROWS, seconds)], "s")
    counts = embed(tmp_path / "data", encoder_dirs, tmp_path / "index.sqlite", dead_letter_dir=tmp_path / "dead")
    assert counts == {"embedded": 2, "changed": 2, "rejected": 2, "missing": 1}
    ids, _, feature_ids, prices, _ = held(tmp_path / "index.sqlite")
    assert ids.tolist() == [1, 2] and feature_ids.tolist() == [1, 2, 3] and prices.tolist() == [1.0, 2.0, 6.0]
    lines = [line for path in (tmp_path / "dead").iterdir() for line in path.read_text().splitlines()]
    reasons = {json.loads(line)["item_id"]: json.loads(line)["reason"] for line in lines}
    assert set(reasons) == {1, 4} and reasons[1].startswith("updated_at: must lie in the years 1 to 9999")


def test_rows_without_an_id_are_dead_letters_each(encoder_dirs, tmp_path):
    write(tmp_path / "data", [*ROWS, (None, "x", 1.0, None, at(1)), (None, "y", 1.0, None, at(1))])
    assert embed(tmp_path / "data", encoder_dirs, tmp_path / "index.sqlite")["rejected"] == 2
