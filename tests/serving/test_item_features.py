"""Item features on their road: catalog or event -> index -> snapshot -> table in the graph -> score by ids alone."""

import dataclasses
import datetime
import logging
import shutil
import time

import keras
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from serving import replicator
from serving.client import RankingClient
from serving.streaming import embedding, event_log, events, ingestion
from tfmm import config as config_lib
from tfmm import preprocessing, saved_model
from tfmm.ctr import model as model_lib
from tfmm.data import declared, examples, schema
from tfmm.evaluate import in_service
from tfmm.export import parity, warmup
from tfmm.export import saved_model as export_lib
from tfmm.features import DEFAULT_FEATURES, Feature, FeatureSet, Sequence
from tfmm.fingerprints import fingerprint
from tfmm.index import encode, item_features, snapshot, store

beam = pytest.importorskip("tfmm.index.beam", reason="Beam is not installed")

NEW, UNKNOWN, VECTORS = 9_000, 7_777, 6
ITEMS = list(range(100, 140))
FEATURES = FeatureSet(
    (
        *DEFAULT_FEATURES,
        Feature("brand", "item"),
        Feature("price", "item", "number", scaling="log"),
        Feature("tags", "item", "ids", max_values=3),
        Feature("in_stock", "item", "boolean"),
        Feature("launch_hour", "item", "time", source="items.launched"),
        Feature("device", "context", num_buckets=8),
        Feature("age", "behavior", "number", source="behaviors.age"),
    ),
    (Sequence("clicks", features=("item_id", "category", "price", "launch_hour", "age")),),
).resolved(max_behaviors=4, min_count=1)
STORED = ("category", "brand", "price", "tags", "in_stock", "launch_hour")
USER = {"user_id": 3, "device": 5, "clicks_item_id": [101, 102, 139], "clicks_age": [50.0, None, 3.0]}
EXPORT = config_lib.ExportConfig(index_capacity=64, batch_buckets=(4, 64), candidate_buckets=(4, 64))


def write_catalog(folder):
    draw = np.random.default_rng(1)
    start = datetime.datetime(2024, 1, 1)
    rows = len(ITEMS)
    table = {
        "item_id": ITEMS,
        "category": [None if n % 9 == 0 else n % 3 + 1 for n in range(rows)],
        "brand": [None if n % 7 == 0 else f"brand {n % 5}" for n in range(rows)],
        "price": [None if n % 6 == 0 else float(price) for n, price in enumerate(np.exp(draw.normal(2, 1, rows)))],
        "tags": [[["red", "new", None, "soft", "big"][t] for t in range(n % 6)] or None for n in range(rows)],
        "in_stock": [None if n % 5 == 0 else n % 2 == 0 for n in range(rows)],
        "launched": pa.array(
            [None if n % 8 == 0 else start + datetime.timedelta(hours=n) for n in range(rows)], pa.timestamp("us")
        ),
        "vector": pa.array([draw.normal(size=VECTORS).tolist() for _ in range(rows)], pa.list_(pa.float32())),
    }
    folder.mkdir()
    pq.write_table(pa.table(table), folder / "items.parquet", row_group_size=25)


@dataclasses.dataclass
class Road:
    """The folders of one run, and what a request of catalog items holds."""

    folder: object
    model: model_lib.CTRModel

    @property
    def version(self):
        return self.folder / "tfmm" / "1"

    def values(self, feature_set=FEATURES):
        """The catalog's features as examples hold them."""
        tables = declared.tables(feature_set)
        items = schema.read_table(self.folder / "tables", "items", tables=tables)
        return {f.name: _values(items[f.column], f) for f in feature_set.stored}


def _values(column, feature):
    if feature.kind != "time":
        return declared.values(column, feature)
    found = schema.microseconds(column)
    return np.where(found == np.iinfo(np.int64).min, 0, found)


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    folder = tmp_path_factory.mktemp("item_features")
    write_catalog(folder / "tables")
    beam.embed_catalog(folder / "tables", {}, folder / "items.sqlite", feature_set=FEATURES)
    with store.open_store(folder / "items.sqlite") as index:
        snapshot.write_snapshot(index, folder / "snapshot")
    names = {"user_id": range(1, 9), "item_id": ITEMS, "category": range(1, 4)}
    words = {"brand": [f"brand {n}" for n in range(5)], "tags": ["red", "new", "soft", "big"]}
    vocabularies = {name: np.array(list(ids)) for name, ids in names.items()}
    vocabularies |= {name: fingerprint(values) for name, values in words.items()}
    statistics = {"price": np.array([2.0, 1.0], np.float32), "age": np.array([30.0, 0.05], np.float32)}
    preprocessing.write(folder / "vocabulary", vocabularies, statistics)
    keras.utils.set_random_seed(0)
    model = model_lib.CTRModel(
        config_lib.CTRConfig(units=(8,), attention_units=(4,)),
        config_lib.MAKEConfig(attention_units=(4,), units=(8, 4, 4)),
        FEATURES,
        preprocessing.load(FEATURES, folder / "vocabulary").sizes,
        {"vector": VECTORS},
        (config_lib.Method("simtier", {"num_tiers": 8}),),
    )
    model.build()
    seeds = keras.random.SeedGenerator(0)  # keras's own goes on from what other tests have drawn
    for variable in model.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.3, seed=seeds))
    model_lib.save_model(model, folder / "model")
    types = declared.id_types(folder / "tables", FEATURES)
    assert types == {"user_id": "int64", "item_id": "int64", "category": "int64", "brand": "string", "tags": "string",
                     "device": "int64"}  # fmt: skip
    parts = (folder / name for name in ("model", "vocabulary", "snapshot"))
    export_lib.export(*parts, types, EXPORT, folder / "tfmm" / "1")
    return Road(folder, model)


@pytest.fixture(scope="module")
def loaded(road):
    """The export, for tests that only read."""
    with saved_model.load_session(road.version) as model:
        yield model


@pytest.fixture
def fresh(road):
    """The export in a session of its own: upserts of one test are not seen by another."""
    with saved_model.load_session(road.version) as model:
        yield model


@pytest.fixture
def index(road, tmp_path):
    """A copy of the index, to be written."""
    (tmp_path / "items.sqlite").write_bytes((road.folder / "items.sqlite").read_bytes())
    with store.open_store(tmp_path / "items.sqlite") as index:
        yield index


def ids_alone(items):
    """What a request must bring for items."""
    ages = [[np.nan if age is None else age for age in USER["clicks_age"]]]
    return {"user_id": [3], "device": [5], "clicks_item_id": [USER["clicks_item_id"]], "clicks_age": ages,
            "item_id": items}  # fmt: skip


def as_text(column):
    return np.array([[tag.encode() for tag in row] for row in column], object)


def all_columns(road, items):
    """The same request with every feature of its own, as a caller sends it."""
    table = schema.read_table(road.folder / "tables", "items", tables=declared.tables(FEATURES)).to_pylist()
    of = {row["item_id"]: row for row in table}
    epoch = datetime.datetime(1970, 1, 1)

    def rows(ids, column, missing):
        found = [of.get(item, {}).get(column) for item in ids]
        return [missing if value is None else value for value in found]

    def hours(ids):
        return [(value - epoch) // datetime.timedelta(microseconds=1) for value in rows(ids, "launched", epoch)]

    tags = [[tag or "" for tag in row] for row in rows(items, "tags", [])]
    clicks = USER["clicks_item_id"]
    return ids_alone(items) | {
        "category": rows(items, "category", 0),
        "brand": np.array([brand.encode() for brand in rows(items, "brand", "")], object),
        "price": rows(items, "price", np.nan),
        "tags": as_text([[*row, *[""] * (5 - len(row))] for row in tags]),
        "in_stock": [float(value) for value in rows(items, "in_stock", np.nan)],
        "launch_hour": hours(items),
        "clicks_category": [rows(clicks, "category", 0)],
        "clicks_price": [rows(clicks, "price", np.nan)],
        "clicks_launch_hour": [hours(clicks)],
    }


def trainer_scores(road, known, snapshot_dir):
    """The Keras model's own scores of USER and items: pairs of an id and the features as examples hold them."""
    places = [ITEMS.index(item) for item in USER["clicks_item_id"]]
    catalog, count = road.values(), len(known)
    row = {"user_id": np.full(count, 3), "device": np.full(count, 5), "item_id": np.array([item for item, _ in known])}
    clicks = {"item_id": USER["clicks_item_id"], "age": [np.nan if v is None else v for v in USER["clicks_age"]]}
    for column in FEATURES.columns:
        name = column.feature.name
        if column.sequence is not None:
            values = clicks[name] if name in clicks else catalog[name][places]
            padded = np.full(column.shape, column.missing)
            padded[: len(values)] = values
            row[column.name] = np.repeat(padded[None], count, axis=0)
        elif name in STORED:
            row[column.name] = np.stack([np.asarray(features[name]) for _, features in known])
    row = {c.name: row[c.name].astype(examples.dtype_of(c)) for c in FEATURES.columns}
    records = list(examples.serialize(row))
    return parity.keras_scores(road.folder / "model", road.folder / "vocabulary", snapshot_dir, records)["score"]


def test_the_snapshot_has_the_catalogs_values(road):
    found = snapshot.load_snapshot(road.folder / "snapshot").features
    assert found.table.ids.tolist() == ITEMS
    values = found.layout.unpack(np.asarray(found.table.rows))
    for name, wanted in road.values().items():
        np.testing.assert_array_equal(values[name], wanted)
    assert np.isnan(values["price"][0]) and values["tags"][4].tolist() == fingerprint(["red", "new", "soft"]).tolist()


def test_ids_alone_are_scored_as_all_features(road, loaded):
    assert set(loaded.signatures["rank_ids"].inputs) == set(ids_alone([1]))
    assert set(loaded.signatures["rank"].inputs) == set(all_columns(road, [100]))
    items = [*ITEMS, UNKNOWN]
    scores = loaded("rank", all_columns(road, items))["score"]
    np.testing.assert_array_equal(loaded("rank_ids", ids_alone(items))["score"], scores)
    known = [
        (item, {name: values[place] for name, values in road.values().items()}) for place, item in enumerate(ITEMS[:12])
    ]
    np.testing.assert_allclose(scores[:12], trainer_scores(road, known, road.folder / "snapshot"), atol=1e-6)
    assert len(set(scores.tolist())) == len(items)


def test_any_number_of_candidates_and_behaviors_is_looked_up(road, loaded):
    for items, clicks in (([], [101]), (ITEMS, []), (ITEMS[:1], [101, 0, 0]), (ITEMS[:5], ITEMS[:30])):
        ages = [[1.0] * len(clicks)]
        request = ids_alone(items) | {"clicks_item_id": np.array([clicks], np.int64), "clicks_age": ages}
        assert loaded("rank_ids", request)["score"].shape == (len(items),)
    longer = ids_alone(ITEMS[:5]) | {"clicks_item_id": [[105] * 9 + USER["clicks_item_id"] + [103]],
                                     "clicks_age": [[9.0] * 9 + [50.0, np.nan, 3.0] + [1.0]]}  # fmt: skip
    newest = ids_alone(ITEMS[:5]) | {"clicks_item_id": [[*USER["clicks_item_id"], 103]],
                                     "clicks_age": [[50.0, np.nan, 3.0, 1.0]]}  # fmt: skip
    np.testing.assert_array_equal(loaded("rank_ids", longer)["score"], loaded("rank_ids", newest)["score"])


EMPTY = {"tags": np.zeros([1, 0], object), "brand": np.zeros([0], object), "clicks_price": np.zeros([1, 0])}


@pytest.mark.parametrize("left_out", [["price"], ["brand", "tags"], ["clicks_price"], ["clicks_category", "in_stock"]])
def test_what_a_request_brings_counts_and_what_it_leaves_empty_is_looked_up(road, loaded, left_out):
    changed = all_columns(road, ITEMS)
    changed |= {"price": np.arange(40) + 1.0, "category": np.arange(40) % 3, "clicks_category": [[3, 3, 3]],
                "brand": np.array([b"brand 1"] * 40, object), "tags": np.array([[b"big"]] * 40, object),
                "clicks_price": [[1.0, 2.0, 3.0]], "in_stock": [1.0] * 40}  # fmt: skip
    mixed = changed | {name: all_columns(road, ITEMS)[name] for name in left_out}
    assert (loaded("rank", mixed)["score"] != loaded("rank", changed)["score"]).sum() > 20
    empty = {name: EMPTY.get(name, np.zeros([1, 0] if name.startswith("clicks") else [0])) for name in left_out}
    np.testing.assert_array_equal(loaded("rank", changed | empty)["score"], loaded("rank", mixed)["score"])


@pytest.mark.parametrize("name, values", [("price", [1.0, 2.0]), ("clicks_price", [[1.0]]), ("tags", [["a"], ["b"]])])
def test_a_part_of_a_column_is_refused_by_name(road, loaded, name, values):
    request = all_columns(road, ITEMS[:3]) | {name: values}
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"`{name}` must be as long as"):
        loaded("rank", request)


def test_an_item_that_is_not_known_is_scored_as_one_with_all_missing(road, loaded):
    missing = all_columns(road, [UNKNOWN])
    assert missing["tags"].shape == (1, 5) and np.isnan(missing["price"][0]) and missing["category"] == [0]
    np.testing.assert_array_equal(
        loaded("rank", missing)["score"], loaded("rank_ids", ids_alone([UNKNOWN]))["score"]
    )


def test_the_tables_say_how_far_they_are(road, loaded):
    status = loaded("index_status", {})
    assert status["modality"].tolist() == [b"item_features", b"vector"]
    assert status["size"].tolist() == [40, 40]
    manifest = export_lib.read_manifest(road.version)
    assert set(manifest["item_features"]["names"]) == set(STORED) and list(manifest["index"]) == ["vector"]
    assert manifest["warmup_requests"] == 5


def stream(index, *payloads):
    """Takes events as the streaming job does."""
    layouts, given = item_features.layouts(index), encode.GivenVectors(VECTORS)
    arriving = [event_log.Event(n, payload) for n, payload in enumerate(payloads, index.position("log") + 1)]
    return ingestion.ingest(embedding.EventBatch("log", arriving), [given], index, layouts)


def upsert(loaded, index):
    """Sends all that the index has of the model's tables, as the replicator does."""
    status = loaded("index_status", {})
    for modality, version in zip(status["modality"].tolist(), status["encoder_version"].tolist()):
        rows = index.changes(modality.decode(), version.decode(), 0)
        request = {"modality": np.array(modality, object), "item_ids": rows.ids, "rows": rows.rows,
                   "scales": rows.scales, "sequences": rows.sequences,
                   "encoder_version": np.array(version, object)}  # fmt: skip
        assert set(loaded("upsert_items", request)["statuses"].tolist()) <= {0, 1, 2}


NEW_FEATURES = {
    "category": 2, "brand": "brand 3", "price": 12.5, "tags": ["soft", None, "red"], "in_stock": False,
    "launched": 1_700_000_000_000_000,
}  # fmt: skip
AS_EXAMPLES = {
    "category": 2, "brand": int(fingerprint(["brand 3"])[0]), "price": 12.5, "in_stock": 0.0,
    "tags": [*fingerprint(["soft", "red"]).tolist(), 0], "launch_hour": 1_700_000_000_000_000,
}  # fmt: skip


def score_of(loaded, item):
    return loaded("rank_ids", ids_alone([item]))["score"][0]


def test_a_streamed_item_is_scored_with_its_features_as_the_trainer_scores_it(road, fresh, index, tmp_path):
    vector = [1.0, 0.5, 0, 0, -1, 2]
    before = score_of(fresh, NEW)
    stream(index, events.make_event(NEW, vector=vector, features=NEW_FEATURES))
    assert index.dead_letters() == []
    snapshot.write_snapshot(index, tmp_path / "snapshot")
    upsert(fresh, index)
    score = score_of(fresh, NEW)
    assert score != before
    found, known = [score], [AS_EXAMPLES]
    changes = {
        "brand": ("brand 1", int(fingerprint(["brand 1"])[0])), "price": (99.0, 99.0), "category": (1, 1),
        "tags": (["big"], [int(fingerprint(["big"])[0]), 0, 0]), "in_stock": (None, np.nan), "launched": (None, 0),
    }  # fmt: skip
    for column, (value, as_example) in changes.items():
        stream(index, events.make_event(NEW, features={column: value}))  # a change of this one alone
        upsert(fresh, index)
        known.append(AS_EXAMPLES | {"launch_hour" if column == "launched" else column: as_example})
        found.append(score_of(fresh, NEW))
        assert found[-1] != score, column
        stream(index, events.make_event(NEW, features={column: NEW_FEATURES[column]}))
    stream(index, events.make_event(NEW, withdrawn=True))
    upsert(fresh, index)
    assert score_of(fresh, NEW) == before
    wanted = trainer_scores(road, [(NEW, features) for features in known], tmp_path / "snapshot")
    np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_an_event_without_a_feature_leaves_it_missing_or_as_it_was(index):
    stream(index, events.make_event(NEW, vector=[1.0] * VECTORS, features={"price": 5.0}))
    layout = item_features.layouts(index)[-1]
    found = index.embeddings("item_features", layout.version)
    values = {name: column[found.ids == NEW][0] for name, column in layout.unpack(found.rows).items()}
    assert values["price"] == 5.0 and values["category"] == values["brand"] == 0 and np.isnan(values["in_stock"])
    stream(index, events.make_event(NEW, vector=[2.0] * VECTORS))  # says nothing of features
    stream(index, events.make_event(NEW, features={"brand": "brand 2"}))
    found = index.embeddings("item_features", layout.version)
    values = {name: column[found.ids == NEW][0] for name, column in layout.unpack(found.rows).items()}
    assert (values["price"], values["brand"]) == (5.0, fingerprint(["brand 2"])[0])
    assert index.dead_letters() == []


def test_a_model_in_service_gets_the_features_of_new_items_while_the_next_one_declares_others(road, fresh, index):
    more = dataclasses.replace(FEATURES, features=(*FEATURES.features, Feature("launch_day", "item", "time",
                               source="items.launched", part="weekday"), Feature("old", "item", "number",
                               source="items.price")))  # fmt: skip
    beam.embed_catalog(road.folder / "tables", {}, index.url, feature_set=more)
    assert len(item_features.layouts(index)) == 2
    stream(index, events.make_event(NEW, vector=[1.0] * VECTORS, features=NEW_FEATURES))
    for layout in item_features.layouts(index):
        found = index.embeddings("item_features", layout.version)
        values = {name: column[found.ids == NEW][0] for name, column in layout.unpack(found.rows).items()}
        assert values["price"] == 12.5 and values.get("old", 12.5) == 12.5
    before = score_of(fresh, NEW)
    upsert(fresh, index)
    assert score_of(fresh, NEW) != before
    catalog = index.embeddings("item_features", item_features.layouts(index)[0].version)
    assert set(ITEMS) < set(catalog.ids.tolist())


def test_the_model_in_service_is_judged_with_the_features_of_new_items(road, fresh, index, tmp_path):
    before = score_of(fresh, NEW)
    stream(index, events.make_event(NEW, features=NEW_FEATURES))  # features alone: no row of vectors is new
    assert in_service.catch_up(fresh, index) == {
        "item_features": {"rows": 1, "left_out": None, "ahead": None},
        "vector": {"rows": 0, "left_out": None, "ahead": None},
    }
    assert score_of(fresh, NEW) != before
    snapshot.write_snapshot(index, tmp_path / "snapshot")
    (scored,) = trainer_scores(road, [(NEW, AS_EXAMPLES)], tmp_path / "snapshot")
    np.testing.assert_allclose(score_of(fresh, NEW), scored, atol=1e-6)


def test_an_index_without_features_works_and_says_so(road, loaded, tmp_path, caplog):
    with store.open_store(tmp_path / "old.sqlite") as index:
        rows = snapshot.load_snapshot(road.folder / "snapshot")["vector"]
        index.write("vector", rows.encoder_version, rows.ids, np.array(rows.rows), rows.scales, rows.ids)
        snapshot.write_snapshot(index, tmp_path / "snapshot")
    types = declared.id_types(road.folder / "tables", FEATURES)
    parts = road.folder / "model", road.folder / "vocabulary", tmp_path / "snapshot"
    one_bucket = dataclasses.replace(EXPORT, batch_buckets=(64,), candidate_buckets=(64,))  # that of all items
    with caplog.at_level(logging.WARNING):
        export_lib.export(*parts, types, one_bucket, tmp_path / "1")
    assert "holds no brand, category, in_stock, launch_hour, price, tags of items" in caplog.text
    with saved_model.load_session(tmp_path / "1") as without:
        assert "rank_ids" not in without.signatures
        request = all_columns(road, ITEMS)
        np.testing.assert_array_equal(without("rank", request)["score"], loaded("rank", request)["score"])


def test_a_catalog_without_a_declared_column_is_refused_before_any_work(road, tmp_path):
    lacking = dataclasses.replace(FEATURES, features=(*FEATURES.features, Feature("size", "item"), Feature(
        "weight", "item", "number")))  # fmt: skip
    with pytest.raises(ValueError, match=r"Missing: items\.size of 'size', items\.weight of 'weight'"):
        beam.embed_catalog(road.folder / "tables", {}, tmp_path / "new.sqlite", feature_set=lacking)
    assert not (tmp_path / "new.sqlite").exists()


@pytest.fixture(scope="module")
def served(road, serving_at):
    with serving_at(road.folder / "tfmm", "tfmm") as addresses:
        yield addresses


def test_the_client_completes_a_request_of_ids_alone(road, served):
    candidates = {"item_id": [*ITEMS, UNKNOWN]}
    wanted = all_columns(road, candidates["item_id"])
    floats = {column.name for column in FEATURES.served if column.is_float}
    wanted |= {name: np.array(wanted[name], np.float32) for name in floats}
    with RankingClient(served["grpc"], served["rest"], timeout_s=120) as client:
        scores = client.rank(USER, candidates)
        np.testing.assert_array_equal(scores, client.predict(wanted, "rank")["score"])
        np.testing.assert_allclose(client.rank_rest(USER, candidates), scores, rtol=1e-6)
        assert client.top(1, USER, candidates)[0][1] == scores.max()
        prices = [float(n) for n in range(1, 42)]
        given = {**candidates, "price": prices, "tags": [[]] * 41}
        overridden = client.rank(USER, given)
        changed = wanted | {"price": np.array(prices, np.float32), "tags": np.full([41, 1], b"", object)}
        np.testing.assert_array_equal(overridden, client.predict(changed, "rank")["score"])
        np.testing.assert_allclose(client.rank_rest(USER, given), overridden, rtol=1e-6)
        behaviors = {**USER, "clicks_price": [3.0, None, 4.0]}
        changed = wanted | {"clicks_price": np.array([[3.0, np.nan, 4.0]], np.float32)}
        np.testing.assert_array_equal(client.rank(behaviors, candidates), client.predict(changed, "rank")["score"])
        with pytest.raises(ValueError, match=r"`user` must have .*Missing: \['clicks_age', 'device'\]"):
            client.rank({name: USER[name] for name in ("user_id", "clicks_item_id")}, candidates)
        with pytest.raises(ValueError, match=r"`candidates` must have .*Received: \['color'\]"):
            client.rank(USER, {**candidates, "color": ["red"] * 41})


def test_a_server_that_starts_anew_catches_up_on_features_too(road, index, serving_at, tmp_path):
    base = tmp_path / "tfmm"
    shutil.copytree(road.version, base / "1", ignore=shutil.ignore_patterns(warmup.FILE))  # to be up sooner
    stream(index, events.make_event(NEW, vector=[1.0] * VECTORS, features=NEW_FEATURES))
    scores = []
    for start in range(2):
        with serving_at(base, "tfmm") as addresses, RankingClient(addresses["grpc"], timeout_s=120) as client:
            before = client.rank(USER, {"item_id": [NEW]})[0]
            with replicator.Replicator(index.url, [addresses["grpc"]], "tfmm", refresh_s=0.05) as job:
                job.wait_caught_up(60)
                assert {lag.modality for lag in job.lag()} == {"vector", "item_features"}
                scores.append(client.rank(USER, {"item_id": [NEW]})[0])
                stream(index, events.make_event(NEW, features={"price": 50.0 + start}))
                deadline = time.monotonic() + 120
                while client.rank(USER, {"item_id": [NEW]})[0] == scores[-1]:
                    assert time.monotonic() < deadline
                    time.sleep(0.01)
        assert scores[-1] != before
    assert len(set(scores)) == 2  # the second start has the price of the first one's change


def test_what_is_looked_up_is_told_beside_the_scores(road, loaded):
    """As the table has it: the catalog's values, missing where there are none."""
    for signature, request in (("rank_ids", ids_alone([*ITEMS, UNKNOWN])), ("rank", all_columns(road, ITEMS))):
        found = loaded(f"{signature}_logged", request)
        np.testing.assert_array_equal(found["score"], loaded(signature, request)["score"])
        for name, values in road.values().items() if signature == "rank_ids" else ():
            np.testing.assert_array_equal(found[f"looked_up_{name}"][: len(ITEMS)], values)
        clicked = [ITEMS.index(item) for item in USER["clicks_item_id"]]
        np.testing.assert_array_equal(found["looked_up_clicks_price"], road.values()["price"][clicked][None])
        assert found["modality"].tolist() == [b"item_features", b"vector"]
