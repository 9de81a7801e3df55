import collections

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tfmm.config import PairsConfig
from tfmm.data import behaviors as behaviors_lib
from tfmm.data import checks, declared, pairs, schema
from tfmm.data.sources import online_retail
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(shared_data):
    return shared_data / "online_retail"


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("online_retail")
    online_retail.convert(source, folder)
    return folder


def test_the_tables_pass_the_check(converted):
    report = checks.check(converted)
    assert report.ok, [str(fault) for fault in report.faults]
    assert report.counts == {"items": 3_659, "behaviors": 386_359, "impressions": 362_300}
    assert schema.modalities(converted) == ("text",)
    assert schema.id_types(converted) == {"user_id": "int64", "item_id": "string", "category": "int64"}


def test_price_and_country_can_be_declared(converted, source):
    features = (Feature("price", "item", "number", scaling="log"), Feature("country", "user"))
    assert declared.faults(converted, FeatureSet((*DEFAULT_FEATURES, *features))) == []
    items = pq.read_table(converted / "items.parquet")
    given = pq.read_table(source / "items.parquet")
    assert items["price"].to_pylist() == given["median_price"].to_pylist()
    users = pq.read_table(converted / "users.parquet").to_pydict()
    assert len(users["user_id"]) == len(set(users["user_id"]))
    raw = pq.read_table(source / "transactions_raw.parquet", columns=["customer_id", "country"]).to_pydict()
    lines = collections.defaultdict(collections.Counter)
    for user, country in zip(raw["customer_id"], raw["country"]):
        if user is not None:
            lines[user][country] += 1
    assert set(users["user_id"]) == set(lines)
    for user, country in zip(users["user_id"], users["country"]):
        known = {name: count for name, count in lines[user].items() if name != "Unspecified"}
        assert country == (min(known, key=lambda name: (-known[name], name)) if known else None)
    assert users["country"].count(None) < 5
    assert set(schema.read_table(converted, "impressions")["user_id"].to_pylist()) <= set(users["user_id"])


def test_labels_and_splits_are_the_sources(converted, source):
    shown = schema.read_table(converted, "impressions")
    given = pq.read_table(source / "ctr_samples.parquet", columns=["label", "split"])
    counts = collections.Counter(zip(shown["label"].to_pylist(), shown["split"].to_pylist()))
    expected = collections.Counter(zip(given["label"].to_pylist(), given["split"].to_pylist()))
    assert counts == {(label, {"test": "eval"}.get(split, split)): n for (label, split), n in expected.items()}


def test_the_order_of_rows_does_not_tell_labels(converted):
    labels = schema.read_table(converted, "impressions", ["label"])["label"].to_numpy()
    by_place = [labels[place::5].mean() for place in range(5)]
    np.testing.assert_allclose(by_place, 0.2, atol=0.01)  # the source has 1, 0, 0, 0, 0


def test_histories_are_those_of_the_source(converted, source):
    """The source brings each row's history: items bought in earlier invoices."""
    acts = schema.read_table(converted, "behaviors")
    users, times = acts["user_id"].to_numpy(), schema.microseconds(acts["timestamp"])
    order = behaviors_lib.sort_behaviors(
        users, times, schema.fingerprints(acts["item_id"]), acts["order_line"].to_numpy()
    )
    given = pq.read_table(source / "ctr_samples.parquet", columns=["user_id", "timestamp", "history", "invoice_no"])
    given = given.take(np.random.default_rng(0).permutation(given.num_rows)[:500])
    bought = pq.read_table(source / "purchases.parquet", columns=["invoice_no", "invoice_date"])
    first = bought.group_by("invoice_no").aggregate([("invoice_date", "min")])
    first_of = dict(zip(first["invoice_no"].to_pylist(), schema.microseconds(first["invoice_date_min"]).tolist()))
    at = np.array([first_of[name] for name in given["invoice_no"].to_pylist()])
    rows, mask = behaviors_lib.histories(given["user_id"].to_numpy(), at, users[order], times[order], 100)
    items, agree = acts["item_id"].to_numpy()[order], 0
    for row, valid, theirs in zip(rows, mask, given["history"].to_pylist()):
        ours = items[row[valid]].tolist()
        agree += collections.Counter(ours) == collections.Counter(theirs) if len(theirs) < 100 else len(ours) == 100
    assert agree / given.num_rows > 0.98  # invoices of one user that overlap in time differ


def test_no_target_is_in_its_history(converted):
    """Impressions are items not bought before; an invoice of two minutes must not be its own history."""
    acts, shown = schema.read_table(converted, "behaviors"), schema.read_table(converted, "impressions")
    acted, seen = (
        behaviors_lib.tie_break(table["user_id"].to_numpy(), schema.fingerprints(table["item_id"]))
        for table in (acts, shown)
    )  # one number per user and item
    first = np.lexsort((schema.microseconds(acts["timestamp"]), acted))
    pairs_of, rows = np.unique(acted[first], return_index=True)
    places = np.minimum(np.searchsorted(pairs_of, seen), len(pairs_of) - 1)
    earlier = schema.microseconds(acts["timestamp"])[first][rows][places] < schema.microseconds(shown["timestamp"])
    assert (earlier & (pairs_of[places] == seen)).mean() < 1e-3


def test_order_lines_are_the_invoices_own(converted, source):
    raw = pq.read_table(source / "transactions_raw.parquet", columns=["invoice_no", "stock_code"])
    lines = raw.filter(pc.equal(raw["invoice_no"], "536365"))["stock_code"].to_pylist()
    acts = schema.read_table(converted, "behaviors", ["item_id", "order_id", "order_line"])
    acts = acts.filter(pc.equal(acts["order_id"], "536365")).to_pylist()
    assert acts and all(lines[act["order_line"]] == act["item_id"] for act in acts)


def test_co_purchase_pairs_are_alike_in_words(converted, tmp_path):
    manifest = pairs.build_pairs(converted, PairsConfig(max_pairs=20_000), tmp_path)["text"]
    assert manifest["source"] == "co-purchase" and manifest["train"] > 15_000 and manifest["heldout"] > 1_000
    table = pq.read_table(tmp_path / "text" / "train.parquet", columns=["query", "positive"]).to_pydict()

    def overlap(left, right):
        return np.mean(
            [len({*a.split()} & {*b.split()}) / len({*a.split()} | {*b.split()}) for a, b in zip(left, right)]
        )

    others = table["positive"][1:] + table["positive"][:1]
    assert overlap(table["query"], table["positive"]) > 2 * overlap(table["query"], others)


def test_a_folder_without_the_source_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="`src` must hold Online Retail's tables"):
        online_retail.convert(tmp_path, tmp_path / "out")
