import numpy as np
import pyarrow.parquet as pq
import pytest

from tfmm import artifacts
from tfmm.config import PairsConfig
from tfmm.data import pairs, schema
from tfmm.pretrain import pair_table

HALF = PairsConfig(heldout_fraction=0.5)


def read(folder, modality="text"):
    return {split: pq.read_table(folder / modality / f"{split}.parquet").to_pylist() for split in ("train", "heldout")}


def shop(at, ids):
    """One search per item, which ends in buying it; a rival is clicked from its page."""
    items, searches, behaviors = [], [], []
    for k, item in enumerate(ids):
        rival = ids[(k + 1) % len(ids)]
        items.append({"item_id": item, "title": f"title {item}", "image": f"image {item}".encode()})
        search = {"search_id": 100 + k, "user_id": 1, "timestamp": at(k)}
        searches.append({**search, "query_text": f"query {item}", "query_image": b"snapshot"})
        act = {"user_id": 1, "timestamp": at(k), "search_id": 100 + k}
        behaviors += [
            {**act, "item_id": item, "action": "click", "trigger_item_id": None},
            {**act, "item_id": rival, "action": "click", "trigger_item_id": item},
            {**act, "item_id": item, "action": "purchase", "trigger_item_id": None},
        ]
    impressions = [{"user_id": 1, "item_id": ids[0], "timestamp": at(m), "label": 0} for m in range(10_000, 10_010)]
    return {"items": items, "searches": searches, "behaviors": behaviors, "impressions": impressions}


@pytest.mark.parametrize("ids", [list(range(1, 41)), [f"item-{k}" for k in range(40)]], ids=["int64", "string"])
def test_a_search_pairs_its_query_with_what_was_bought(tables, tmp_path, at, ids):
    manifests = pairs.build_pairs(tables(**shop(at, ids)), HALF, tmp_path / "pairs")
    assert set(manifests) == {"image", "text"}
    splits = read(tmp_path / "pairs")
    assert len(splits["train"]) + len(splits["heldout"]) == 40
    fingerprints = dict(zip(schema.fingerprints(schema.read_table(tmp_path, "items")["item_id"]).tolist(), ids))
    for pair in splits["heldout"] + splits["train"]:
        item = fingerprints[pair["positive_item_id"]]
        assert (pair["query"], pair["positive"]) == (f"query {item}", f"title {item}")
        assert pair["query_id"] == 100 + ids.index(item)
    for pair in splits["heldout"]:
        rival = ids[(ids.index(fingerprints[pair["positive_item_id"]]) + 1) % 40]
        assert pair["negative"] == f"title {rival}"
    image = read(tmp_path / "pairs", "image")["train"][0]
    assert image["query"] == b"snapshot"
    assert image["positive"].startswith(b"image ")


def test_held_out_pairs_name_the_category_of_what_was_bought(tables, tmp_path, at):
    made = shop(at, list(range(1, 41)))
    for item in made["items"]:
        item["category"] = item["item_id"] % 3 or None
    pairs.build_pairs(tables(**made), HALF, tmp_path / "pairs")
    splits = read(tmp_path / "pairs")
    assert "positive_category" not in splits["train"][0]
    item_of = dict(zip(schema.fingerprints(schema.read_table(tmp_path, "items")["item_id"]).tolist(), range(1, 41)))
    for pair in splits["heldout"]:
        number = item_of[pair["positive_item_id"]] % 3
        assert pair["positive_category"] == (str(number) if number else None)
    found = pair_table.read_pairs(tmp_path / "pairs" / "text" / "heldout.parquet")
    assert found.categories.tolist() == [pair["positive_category"] for pair in splits["heldout"]]
    kept = found.without(np.arange(len(found.contents)) == found.query[0])
    assert len(kept.categories) == len(kept) == len(found) - 1


def test_no_held_out_positive_is_trained_on(tables, tmp_path, at):
    pairs.build_pairs(tables(**shop(at, list(range(1, 41)))), HALF, tmp_path / "pairs")
    splits = read(tmp_path / "pairs")
    held = {pair["positive_item_id"] for pair in splits["heldout"]}
    trained = {pair["positive_item_id"] for pair in splits["train"]}
    negatives = {pair["negative_item_id"] for pair in splits["train"]} - {None}
    assert held and trained and not held & trained and not held & negatives
    assert negatives  # some rivals are not held out


def test_a_click_that_ended_in_a_purchase_too_is_no_negative(tables, tmp_path, at):
    data = shop(at, list(range(1, 41)))
    data["behaviors"] += [
        {**act, "action": "purchase", "trigger_item_id": None} for act in data["behaviors"] if act["trigger_item_id"]
    ]
    manifests = pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")
    assert manifests["text"]["with_negative"] == 0
    assert all(pair["negative"] is None for pair in read(tmp_path / "pairs")["heldout"])


def test_what_happened_in_the_eval_split_is_not_used(tables, tmp_path, at):
    data = shop(at, list(range(1, 41)))
    data["impressions"] = [{**row, "timestamp": at(k + 20)} for k, row in enumerate(data["impressions"])]
    manifests = pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")
    assert manifests["text"]["train"] + manifests["text"]["heldout"] == 28  # purchases before minute 28
    data["impressions"] = [{**row, "split": "eval" if k % 2 else "train"} for k, row in enumerate(data["impressions"])]
    manifests = pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")
    assert manifests["text"]["train"] + manifests["text"]["heldout"] == 21  # the first eval row stands at minute 21


def test_pairs_without_query_or_content_are_left_out(tables, tmp_path, at):
    data = shop(at, list(range(1, 41)))
    data["items"][0]["title"] = None
    data["items"][1]["title"] = ""
    data["searches"][2]["query_text"] = None
    manifests = pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")
    assert manifests["text"]["train"] + manifests["text"]["heldout"] == 37
    assert all(pair["query"] and pair["positive"] for split in read(tmp_path / "pairs").values() for pair in split)
    assert 2 not in {pair["negative_item_id"] for split in read(tmp_path / "pairs").values() for pair in split}


def test_adjacent_lines_of_an_order_are_co_purchase_pairs(tables, tmp_path, at):
    items = [{"item_id": k, "title": f"title {k}"} for k in range(1, 61)]
    lines = [
        {
            "user_id": 1,
            "item_id": k,
            "timestamp": at(0),
            "action": "purchase",
            "order_id": (k - 1) // 3,
            "order_line": k,
        }
        for k in range(1, 61)
    ]
    for line in lines:
        line["order_id"] += 1
    lines.reverse()
    impressions = [{"user_id": 1, "item_id": 1, "timestamp": at(m), "label": 0} for m in range(2_000, 2_010)]
    folder = tables(items=items, behaviors=lines, impressions=impressions)
    manifests = pairs.build_pairs(folder, PairsConfig(heldout_fraction=0.3), tmp_path / "pairs")
    assert manifests["text"]["source"] == "co-purchase"
    splits = read(tmp_path / "pairs")
    for pair in splits["train"] + splits["heldout"]:
        second = pair["positive_item_id"]
        assert pair["query"] == f"title {second - 1}" and second % 3 != 1
        assert pair["negative"] is None
    held = {pair["positive"] for pair in splits["heldout"]}
    assert held
    assert not held & {pair[side] for pair in splits["train"] for side in ("query", "positive")}


def test_items_of_one_title_make_no_co_purchase_pair(tables, tmp_path, at):
    items = [{"item_id": k, "title": "same" if k < 20 else f"title {k}"} for k in range(1, 61)]
    lines = [
        {"user_id": 1, "item_id": k, "timestamp": at(0), "action": "purchase", "order_id": 7, "order_line": k}
        for k in range(1, 61)
    ]
    impressions = [{"user_id": 1, "item_id": 1, "timestamp": at(m), "label": 0} for m in range(2_000, 2_010)]
    folder = tables(items=items, behaviors=lines, impressions=impressions)
    pairs.build_pairs(folder, HALF, tmp_path / "pairs")
    assert all(p["query"] != p["positive"] for split in read(tmp_path / "pairs").values() for p in split)


def test_the_number_of_pairs_is_bounded_and_seeded(tables, tmp_path, at):
    folder = tables(**shop(at, list(range(1, 41))))
    config = PairsConfig(heldout_fraction=0.5, max_pairs=20)
    first = pairs.build_pairs(folder, config, tmp_path / "a")["text"]
    assert first["train"] + first["heldout"] == 20
    assert artifacts.read_manifest(tmp_path / "a" / "text", "pairs") == first
    pairs.build_pairs(folder, config, tmp_path / "b")
    assert read(tmp_path / "a") == read(tmp_path / "b")
    pairs.build_pairs(folder, PairsConfig(heldout_fraction=0.5, max_pairs=20, seed=1), tmp_path / "c")
    assert read(tmp_path / "a") != read(tmp_path / "c")


def test_the_distinct_contents_of_the_pairs_are_bounded(tables, tmp_path, at):
    """A content counts once, however many pairs share it: titles have 8 or 9 bytes, queries 8 or 9, too."""
    folder = tables(**shop(at, list(range(1, 41))))
    whole = pairs.build_pairs(folder, HALF, tmp_path / "a")["text"]
    assert whole["found"] == whole["train"] + whole["heldout"] == 40
    half = PairsConfig(heldout_fraction=0.5, max_content_bytes=400)
    drawn = pairs.build_pairs(folder, half, tmp_path / "b")["text"]
    assert drawn["found"] == 40 and 15 < drawn["train"] + drawn["heldout"] < 30
    held = [pair for rows in read(tmp_path / "b").values() for pair in rows]
    contents = {pair[name] for pair in held for name in ("query", "positive", "negative")} - {None}
    assert 380 < sum(map(len, contents)) <= 400
    assert [row for row in read(tmp_path / "a")["train"] if row in held]  # the same draw, cut short


@pytest.mark.parametrize("group_rows", [1, 3, 100])
def test_row_groups_hold_each_content_once_and_read_back_alike(tables, tmp_path, at, group_rows, monkeypatch):
    folder = tables(**shop(at, list(range(1, 41))))
    pairs.build_pairs(folder, HALF, tmp_path / "whole")
    monkeypatch.setattr(pairs, "GROUP_BYTES", 1)
    monkeypatch.setattr(pairs, "MIN_GROUP_ROWS", group_rows)
    pairs.build_pairs(folder, HALF, tmp_path / "parts")
    for modality in ("image", "text"):
        assert read(tmp_path / "parts", modality) == read(tmp_path / "whole", modality)
    file = pq.ParquetFile(tmp_path / "parts" / "image" / "train.parquet")
    rows = file.metadata.num_rows
    assert file.num_row_groups == -(-rows // group_rows)
    query = pq.read_table(tmp_path / "whole" / "image" / "train.parquet")["query"].chunk(0)
    assert query.dictionary.to_pylist() == [b"snapshot"]  # one picture, of all searches
    whole, parts = (
        pair_table.read_pairs(tmp_path / name / "image" / "train.parquet") for name in ("whole", "parts")
    )
    assert len(set(parts.contents)) == len(parts.contents) and sorted(parts.contents) == sorted(whole.contents)
    for column in ("query", "positive", "negative"):
        values = [[None if row < 0 else table.contents[row] for row in getattr(table, column)]
                  for table in (whole, parts)]  # fmt: skip
        assert values[0] == values[1] == [row[column] for row in read(tmp_path / "whole", "image")["train"]]


def test_the_held_out_share_is_as_asked():
    held = pairs.is_heldout(np.arange(1, 20_001), PairsConfig(heldout_fraction=0.1))
    assert abs(held.mean() - 0.1) < 0.01  # 5 standard deviations of a fair draw


def test_a_catalog_with_nothing_but_vectors_needs_no_pairs(tables, tmp_path):
    assert pairs.build_pairs(tables(items=[{"item_id": 1, "vector": [1.0]}]), HALF, tmp_path / "pairs") == {}


def clicks(at, of, items=40):
    """Clicks of two users, item after item; `of`: the table that tells of them."""
    shown = [
        {"user_id": user, "item_id": item, "timestamp": at(2 * item + user), "label": 1}
        for user in (1, 2)
        for item in range(1, items + 1)
    ]
    later = [{"user_id": 1, "item_id": k % items + 1, "timestamp": at(1_000 + k), "label": 0} for k in range(200)]
    data = {
        "items": [{"item_id": k, "title": f"title {k}", "image": f"image {k}".encode()} for k in range(1, items + 1)],
        "impressions": shown + later,
    }
    if of == "behaviors":
        rows = [{**row, "action": "click"} for row in shown]
        data |= {"behaviors": [{k: v for k, v in row.items() if k != "label"} for row in rows], "impressions": later}
    return data


def total(manifest):
    return manifest["train"] + manifest["heldout"]


def test_a_hard_negative_is_no_click_of_the_eval_split(tables, tmp_path, at):
    data = shop(at, list(range(1, 41)))
    for act in data["behaviors"]:
        if act["trigger_item_id"]:
            act["timestamp"] = at(20_000)
    assert pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")["text"]["with_negative"] == 0
    assert all(pair["negative"] is None for pair in read(tmp_path / "pairs")["heldout"])


@pytest.mark.parametrize("split", ["eval", None])
def test_rows_without_a_time_count_for_nothing(tables, tmp_path, at, split):
    data = shop(at, list(range(1, 41)))
    for k, row in enumerate(data["impressions"]):
        row["split"] = split and ("eval" if k > 4 else "train")
    data["impressions"].append({**data["impressions"][-1], "timestamp": None})
    for act in data["behaviors"][:15]:  # of five searches
        act["timestamp"] = None
    assert total(pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")["text"]) == 35


@pytest.mark.parametrize("of", ["behaviors", "impressions"])
def test_without_purchases_clicks_one_after_the_other_are_pairs(tables, tmp_path, at, of):
    data = clicks(at, of)
    data[of].insert(3, dict(data[of][2]))  # a click told twice is no pair of an item with itself
    late = {**data[of][0], "timestamp": at(1_195)}  # in the eval split
    data[of] += [{**late, "item_id": k} for k in (5, 9)]
    data[of] += [{**data[of][0], "user_id": 0, "item_id": k} for k in (5, 9)]  # 0 is no user
    manifests = pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")
    assert {modality: manifest["source"] for modality, manifest in manifests.items()} == {
        "image": "co-click",
        "text": "co-click",
    }
    splits = read(tmp_path / "pairs")
    found = sorted(pair["positive_item_id"] for pair in splits["heldout"])
    assert found == sorted(2 * [k for k in range(2, 41) if pairs.is_heldout(np.array([k]), HALF)[0]])
    for pair in splits["train"] + splits["heldout"]:
        assert (pair["query"], pair["negative"]) == (f"title {pair['positive_item_id'] - 1}", None)
        assert pair["query_id"] in (1, 2)
    held = {pair["positive"] for pair in splits["heldout"]}
    assert splits["train"] and not held & {pair[side] for pair in splits["train"] for side in ("query", "positive")}


def test_behaviors_without_clicks_leave_the_clicked_impressions(tables, tmp_path, at):
    data = clicks(at, "impressions")
    data["behaviors"] = [{"user_id": 1, "item_id": k, "timestamp": at(k), "action": "purchase"} for k in range(1, 41)]
    assert pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")["text"]["source"] == "co-click"


@pytest.mark.parametrize("queries", ["absent", "null", "one"])
def test_each_modality_learns_from_the_first_source_that_gives_enough(tables, tmp_path, at, queries):
    data = shop(at, list(range(1, 41)))
    for k, row in enumerate(data["searches"]):
        if queries == "absent":
            del row["query_image"]
        elif queries == "null" or k:
            row["query_image"] = None
    manifests = pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")
    assert (manifests["text"]["source"], manifests["image"]["source"]) == ("search", "co-click")
    assert all(pair["query"].startswith(b"image ") for pair in read(tmp_path / "pairs", "image")["train"])


def test_orders_stand_in_for_searches_that_give_no_pair(tables, tmp_path, at):
    data = shop(at, list(range(1, 41)))
    for k, act in enumerate(data["behaviors"]):
        act |= {"search_id": None, "order_id": 7 if act["action"] == "purchase" else None, "order_line": k}
    assert pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")["text"]["source"] == "co-purchase"


def test_logs_that_give_no_pairs_are_answered_with_the_way_out(tables, tmp_path, at):
    data = clicks(at, "impressions", items=2)
    with pytest.raises(ValueError, match="'image' must have at least 2 pairs to train on and 2 to hold out") as error:
        pairs.build_pairs(tables(**data), HALF, tmp_path / "pairs")
    for named in ("query_image", "search_id", "order_line", "action click", "impressions with label 1", "vector"):
        assert named in str(error.value)
    assert not (tmp_path / "pairs").exists()
