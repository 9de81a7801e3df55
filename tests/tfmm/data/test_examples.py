import dataclasses
import datetime

import numpy as np
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm import artifacts, fingerprints, preprocessing
from tfmm.config import DataConfig
from tfmm.data import examples, join, schema, shards, transform
from tfmm.features import OUT_OF_VOCABULARY, FeatureSet
from tfmm.training import sources

L3 = DataConfig(max_behaviors=3, eval_fraction=0.25, min_id_count=1)
FEATURES = FeatureSet().resolved(max_behaviors=3, min_count=1)
NOBODY = {"user_id": np.zeros(0, np.int64)}


def read(folder, split):
    return shards.read_columns(str(folder / f"{split}-*"))


def with_inputs(raw, vocabulary, feature_set):
    """Returns the columns of the train split, and the model's inputs as a trainer reads them."""
    files = sorted(str(path) for path in raw.glob("train-*"))
    source = sources.open_source(files, feature_set, {}, preprocessing.load(feature_set, vocabulary))
    return read(raw, "train") | source.gather(np.arange(source.num_rows))


def us(time):
    return int(time.replace(tzinfo=datetime.timezone.utc).timestamp()) * 1_000_000


def test_an_impression_sees_the_newest_strictly_earlier_behaviors():
    catalog = {"item_id": np.array([10, 11, 12, 13]), "category": np.array([1, 1, 0, 2])}
    impressions = {
        "user_id": np.array([1, 1, 2]),
        "item_id": np.array([13, 12, 10]),
        "timestamp": np.array([50, 20, 60]),
        "label": np.array([1, 0, 1]),
    }
    behaviors = {
        "user_id": np.array([1, 1, 1, 1, 2]),
        "item_id": np.array([12, 11, 10, 13, 99]),
        "timestamp": np.array([30, 20, 10, 50, 5]),
    }
    built = examples.build(impressions, behaviors, catalog, NOBODY, FeatureSet().resolved(2, 1))
    assert {name: values.tolist() for name, values in built.items()} == {
        "user_id": [1, 1, 2],
        "item_id": [12, 13, 10],
        "category": [0, 2, 1],
        "behavior_item_ids": [[10, 0], [11, 12], [99, 0]],
        "behavior_categories": [[1, 0], [1, 0], [0, 0]],
        "timestamp": [20, 50, 60],
        "label": [0, 1, 1],
    }
    assert list(built) == [*(column.name for column in FEATURES.columns), "timestamp", "label"]


def test_the_order_of_rows_says_nothing():
    """Rows of one instant that come as one positive and four negatives leave in an order free of labels."""
    n = 4000
    users, items = np.repeat(np.arange(n // 5), 5) + 1, np.arange(n) + 1
    impressions = {
        "user_id": users,
        "item_id": items,
        "timestamp": np.zeros(n, np.int64),
        "label": (np.arange(n) % 5 == 0).astype(np.int64),
    }
    nothing = {name: np.zeros(0, np.int64) for name in ("user_id", "item_id", "timestamp")}
    catalog = {"item_id": items, "category": items}
    built = examples.build(impressions, nothing, catalog, NOBODY, FeatureSet().resolved(2, 1))
    place = np.arange(n)
    correlation = np.corrcoef(built["label"], place % 5 == 0)[0, 1]
    assert abs(correlation) < 0.06  # 4 standard deviations of independent draws
    shuffled = np.random.default_rng(0).permutation(n)
    again = examples.build(
        {name: v[shuffled] for name, v in impressions.items()}, nothing, catalog, NOBODY, FeatureSet().resolved(2, 1)
    )
    np.testing.assert_array_equal(again["item_id"], built["item_id"])
    assert not built["behavior_item_ids"].any()


def test_the_last_impressions_are_eval_and_an_instant_is_not_split():
    assert examples.eval_start(np.array([1, 2, 3, 4]), 0.25) == 4
    assert examples.eval_start(np.array([3, 3, 3, 1]), 0.25) == 3
    with pytest.raises(ValueError, match="must have rows"):
        examples.eval_start(np.zeros(0, np.int64), 0.25)


def shop(at, ids, users):
    times = [1, 2, 3, 4, 5, 6, 7, 8]
    return {
        "items": [{"item_id": item, "category": "lamp", "title": "t"} for item in ids],
        "behaviors": [{"user_id": users[0], "item_id": ids[0], "timestamp": at(m), "action": "click"} for m in (0, 3)],
        "impressions": [
            {"user_id": users[m % 2], "item_id": ids[m % 3], "timestamp": at(m), "label": m % 2} for m in times
        ],
    }


@pytest.mark.parametrize("ids, users", [([1, 2, 3], [8, 9]), (["a", "b", "c"], ["u", "v"])], ids=["int64", "string"])
def test_written_examples_are_split_by_time(tables, tmp_path, at, ids, users):
    folder = tables(**shop(at, ids, users))
    manifest = join.write_examples(folder, L3, FEATURES, tmp_path / "out")
    assert {name: manifest[name] for name in ("train", "eval", "dead_letter")} == {
        "train": 6,
        "eval": 2,
        "dead_letter": 0,
    }
    train, held = read(tmp_path / "out", "train"), read(tmp_path / "out", "eval")
    assert sorted(train["timestamp"].tolist()) == [us(at(m)) for m in range(1, 7)]
    assert sorted(held["timestamp"].tolist()) == [us(at(m)) for m in (7, 8)]
    prints, user = fingerprints.fingerprint(ids), fingerprints.fingerprint(users)
    row = int(np.flatnonzero(held["timestamp"] == us(at(8)))[0])
    assert held["user_id"][row] == user[0] and held["item_id"][row] == prints[2]
    assert held["behavior_item_ids"][row].tolist() == [prints[0], prints[0], 0]
    lamp = fingerprints.fingerprint(["lamp"])[0]
    assert held["category"][row] == lamp and held["behavior_categories"][row].tolist() == [lamp, lamp, 0]


def test_the_split_column_decides_where_there_is_one(tables, tmp_path, at):
    data = shop(at, [1, 2, 3], [8, 9])
    data["impressions"] = [{**row, "split": "eval" if k == 0 else "train"} for k, row in enumerate(data["impressions"])]
    manifest = join.write_examples(tables(**data), L3, FEATURES, tmp_path / "out")
    assert (manifest["train"], manifest["eval"]) == (7, 1)


def test_histories_are_clicked_impressions_where_behaviors_are_absent(tables, tmp_path, at):
    data = shop(at, [1, 2, 3], [8, 9])
    del data["behaviors"]
    join.write_examples(tables(**data), L3, FEATURES, tmp_path / "out")
    held = read(tmp_path / "out", "eval")
    row = int(np.flatnonzero(held["timestamp"] == us(at(7)))[0])
    assert held["behavior_item_ids"][row].tolist() == [2, 1, 3]  # minutes 1, 3 and 5: all clicks of user 9 before 7


def test_bad_rows_become_dead_letters_with_a_reason(tables, tmp_path, at):
    data = shop(at, [1, 2, 3], [8, 9])
    good = data["impressions"][0]
    data["impressions"] += [
        {**good, "label": 2},
        {**good, "user_id": None},
        {**good, "item_id": 77},
        {**good, "item_id": 0},
        {**good, "timestamp": None, "label": None},
    ]
    data["behaviors"] += [{**data["behaviors"][0], "action": "stare"}]
    config = dataclasses.replace(L3, max_bad_fraction=0.5)
    manifest = join.write_examples(tables(**data), config, FEATURES, tmp_path / "out")
    assert (manifest["train"] + manifest["eval"], manifest["dead_letter"]) == (8, 6)
    letters = pq.read_table(next((tmp_path / "out").glob("dead_letter-*.parquet"))).to_pylist()
    reasons = {(letter["table"], letter["row"]): letter["reason"] for letter in letters}
    assert reasons == {
        ("impressions", 8): "`label` must be 0 or 1",
        ("impressions", 9): "`user_id` must not be null",
        ("impressions", 10): "`item_id` must be in the items table",
        ("impressions", 11): "`item_id` must not be 0 or empty",
        ("impressions", 12): "`timestamp` must not be null",
        ("behaviors", 2): "`action` must be one of click, cart, favorite, purchase",
    }
    assert all(letter["content"].startswith("{") for letter in letters)


def test_an_empty_split_is_refused(tables, tmp_path, at):
    data = shop(at, [1, 2, 3], [8, 9])
    data["impressions"] = [{**row, "split": "train"} for row in data["impressions"]]
    with pytest.raises(ValueError, match="Both splits must have rows"):
        join.write_examples(tables(**data), L3, FEATURES, tmp_path / "out")


def test_a_behavior_of_a_delisted_item_stays_in_the_history(tables, tmp_path, at):
    data = shop(at, [1, 2, 3], [8, 9])
    data["behaviors"][1]["item_id"] = 55
    manifest = join.write_examples(tables(**data), L3, FEATURES, tmp_path / "out")
    held = read(tmp_path / "out", "eval")
    row = int(np.flatnonzero(held["timestamp"] == us(at(8)))[0])
    assert manifest["dead_letter"] == 0
    assert held["behavior_item_ids"][row].tolist() == [1, 55, 0]
    assert held["behavior_categories"][row][1] == 0


def test_vocabularies_hold_the_ids_of_the_train_split(tables, tmp_path, at):
    folder = tables(**shop(at, [1, 2, 3], [8, 9]))
    join.write_examples(folder, L3, FEATURES, tmp_path / "raw")
    manifest = transform.fit(tmp_path / "raw", tmp_path / "out")
    lines = {
        path.name: [int(line) for line in path.read_text().split()]
        for path in (tmp_path / "out").iterdir()
        if path.name != artifacts.MANIFEST
    }
    assert set(lines) == set(FEATURES.vocabularies)
    assert lines["user_id"] == [8, 9] and sorted(lines["item_id"]) == [1, 2, 3]
    assert lines["item_id"][0] == 1  # in every history, so the most frequent
    assert manifest["vocabulary_sizes"] == {"user_id": 4, "item_id": 5, "category": 3}
    columns = with_inputs(tmp_path / "raw", tmp_path / "out", FEATURES)
    for column in FEATURES.columns:
        index = {0: 0, **{id_: k + 2 for k, id_ in enumerate(lines[column.feature.embedding])}}
        expected = np.vectorize(index.get)(columns[column.name])
        np.testing.assert_array_equal(columns[column.input], expected)


def test_rare_ids_are_out_of_vocabulary(tables, tmp_path, at):
    data = shop(at, [1, 2, 3], [8, 9])
    data["impressions"][5]["item_id"] = 3
    join.write_examples(tables(**data), L3, FeatureSet().resolved(3, min_count=3), tmp_path / "raw")
    transform.fit(tmp_path / "raw", tmp_path / "out")
    kept = [int(line) for line in (tmp_path / "out/item_id").read_text().split()]
    train = read(tmp_path / "raw", "train")
    ids, counts = np.unique(np.concatenate([train["item_id"], train["behavior_item_ids"].ravel()]), return_counts=True)
    assert sorted(kept) == [i for i, n in zip(ids.tolist(), counts.tolist()) if n >= 3 and i != 0]
    columns = with_inputs(tmp_path / "raw", tmp_path / "out", FeatureSet().resolved(3, min_count=3))
    assert set(columns["item_id_index"][~np.isin(columns["item_id"], kept)]) <= {OUT_OF_VOCABULARY}


def test_serialized_examples_parse_with_the_table_of_features():
    spec = preprocessing.raw_spec(FeatureSet().resolved(max_behaviors=2, min_count=1))
    row = {name: np.array([[1, 2]]) if name.startswith("behavior") else np.array([7]) for name in spec}
    parsed = tf.io.parse_single_example(next(examples.serialize(row)), spec)
    assert parsed["behavior_item_ids"].numpy().tolist() == [1, 2] and int(parsed["label"]) == 7


def test_reading_what_was_not_written_names_the_step(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"matches no file\. Write the examples first"):
        examples.read_columns(str(tmp_path / "train-*"), preprocessing.raw_spec(FEATURES))
    with pytest.raises(FileNotFoundError, match="the stage that writes this folder did not finish"):
        transform.fit(tmp_path, tmp_path / "out")
    assert not (tmp_path / artifacts.MANIFEST).exists()


def test_the_marketplace_gives_as_many_examples_as_impressions(small_marketplace, tmp_path):
    declared = FeatureSet().resolved(max_behaviors=5, min_count=2)
    manifest = join.write_examples(small_marketplace, DataConfig(max_behaviors=5), declared, tmp_path)
    rows = schema.read_table(small_marketplace, "impressions").num_rows
    assert manifest["train"] + manifest["eval"] == rows and manifest["dead_letter"] == 0
    assert manifest["eval"] == pytest.approx(0.2 * rows, rel=0.01)
    train, held = read(tmp_path, "train"), read(tmp_path, "eval")
    assert train["timestamp"].max() < held["timestamp"].min()
    for columns in (train, held):
        filled = columns["behavior_item_ids"] != 0
        assert (filled[:, :-1] >= filled[:, 1:]).all()  # right-padded
        assert (columns["category"] > 0).all()
        np.testing.assert_array_equal(columns["behavior_categories"] > 0, filled)
