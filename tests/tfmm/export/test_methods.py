"""Each method, all together, and classes of a user's own: one score in trainer, signatures and the C++ loader."""

import dataclasses
import pathlib
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from tfmm import config as config_lib
from tfmm import preprocessing, saved_model
from tfmm import vectors as vectors_lib
from tfmm.ctr import integrations
from tfmm.ctr import model as model_lib
from tfmm.ctr import train as train_lib
from tfmm.export import saved_model as export_lib
from tfmm.index import encode, item_vectors
from tfmm.training import examples as examples_lib
from tfmm.training import sources

ROWS = 40
MODALITIES = ("image",)
ALL = tuple(name for name in integrations.INTEGRATIONS if name != "behavior_search")
SETTINGS = {"simtier": {"num_tiers": 8}, "semantic_id": {"codebook_size": 16}, "behavior_search": {"num_selected": 3}}
EXPORT = config_lib.ExportConfig(index_capacity=400, batch_buckets=(64,), candidate_buckets=(64,))
INT64 = dict.fromkeys(("user_id", "item_id", "category"), "int64")
MODULE = '''
import keras
from keras import ops

from tfmm.ctr.integrations import Integration
from tfmm.ctr.ranker import Ranker


class Tower(Ranker):
    """Inner products of item embeddings of its own, beside all that is known."""

    def __init__(self, feature_set, sizes, width=8, name=None):
        super().__init__(feature_set, sizes, name)
        self.items = keras.layers.Embedding(sizes["item_id"], width)
        self.normal = keras.layers.BatchNormalization()
        self.dropout = keras.layers.Dropout(0.1)
        self.output_layer = keras.layers.Dense(1)

    def call(self, impressions, knowledge, training=None):
        behaviors = self.items(impressions.inputs["behavior_item_ids_index"])  # [B or 1, L, width]
        target = self.items(impressions.inputs["item_id_index"])  # [B, width]
        similar = ops.sum(impressions.per_row(behaviors) * target[:, None], axis=-1)
        x = impressions.join([similar, target, impressions.column("category"), *knowledge])
        return self.output_layer(self.dropout(self.normal(x, training=training), training=training))[:, 0]


class BestMatch(Integration):
    """The similarity of the most similar behavior, -1 where there is none to compare."""

    def __init__(self, scale=1.0, name=None):
        super().__init__(name=name)
        self.scale = scale

    def parts(self, context):
        known = ops.where(context.both_exist, context.similarity(), -1.0)
        return [self.scale * ops.max(known, axis=1, keepdims=True)]
'''
OWN = "my_export_team"
CASES = [
    pytest.param((("simtier", f"{OWN}:BestMatch"), f"{OWN}:Tower"), id="own model and method"),
    pytest.param((("simtier",), ""), id="simtier"),
    pytest.param(((*ALL, f"{OWN}:BestMatch"), ""), id="all together", marks=pytest.mark.slow),
    *(pytest.param(((name,), ""), id=name, marks=pytest.mark.slow) for name in ALL if name != "simtier"),
    pytest.param((("behavior_search", "simtier"), ""), id="behavior_search", marks=pytest.mark.slow),
    pytest.param(((f"{OWN}:BestMatch",), ""), id="own method", marks=pytest.mark.slow),
    pytest.param((("make", "simscore"), f"{OWN}:Tower"), id="own model", marks=pytest.mark.slow),
]


@dataclasses.dataclass(frozen=True)
class Road:
    """A model that was trained and exported, and the rows to score."""

    model: model_lib.CTRModel
    version_dir: pathlib.Path
    columns: dict
    tables: dict
    raw: dict


@pytest.fixture
def road(request, shop, examples, tmp_path, monkeypatch):
    """The road of one case, from training to export."""
    names, own_model = request.param
    (tmp_path / f"{OWN}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    ctr = config_lib.CTRConfig(
        batch_size=256, learning_rate=1e-2, attention_units=(8,), units=(16,), model=own_model,
        model_settings={"width": 4} if own_model else {},
    )  # fmt: skip
    manifest = train_lib.train(
        ctr, shop.train, shop.eval, shop.vocabularies, tmp_path / "model", shop.features, modalities=MODALITIES,
        methods=[config_lib.Method(name, SETTINGS.get(name, {})) for name in names], snapshot_dir=shop.snapshot,
        make_config=config_lib.MAKEConfig(attention_units=(8,), units=(16, 8, 4)),
    )  # fmt: skip
    assert set(manifest["metrics"]) == {"auc", "gauc", "logloss"}
    version_dir = tmp_path / "tfmm" / "1"
    export_lib.export(tmp_path / "model", shop.vocabularies, shop.snapshot, INT64, EXPORT, version_dir)
    tables = item_vectors.load_vectors(shop.snapshot, MODALITIES)
    preprocessor = preprocessing.load(shop.features, shop.vocabularies)
    files = examples_lib.example_files(shop.eval)
    columns = sources.open_source(files, shop.features, tables, preprocessor).gather(np.arange(1000))
    spec = {column.name: preprocessing.raw_spec(shop.features)[column.name] for column in shop.features.columns}
    raw = {name: values.numpy() for name, values in tf.io.parse_example(examples[:ROWS], spec).items()}
    columns = {name: values[:ROWS] for name, values in columns.items()}
    np.testing.assert_array_equal(columns["item_id"], raw["item_id"])
    yield Road(model_lib.load_model(tmp_path / "model"), version_dir, columns, tables, raw)
    sys.modules.pop(OWN, None)


def of_one_user(features, values):
    """The columns with the first row's user side in every row."""
    shared = {name for c in features.columns if c.side == "user" for name in (c.name, c.input)}
    shared |= {item_vectors.slots_name(m, s.name) for m in MODALITIES for s in features.sequences}
    return {name: np.repeat(v[:1], len(v), 0) if name in shared else v for name, v in values.items()}


def vectors_of(raw, tables, features):
    """The vectors that a caller brings."""
    inputs = dict(raw)
    for modality, table in tables.items():
        for side, ids in item_vectors.sides(features).items():
            found = table.lookup(tf.constant(table.slots(raw[ids])))
            inputs |= {name: part.numpy() for name, part in vectors_lib.named(modality, side, found).items()}
    return inputs


def upsert(loaded, ids, dim):
    rows, scales = encode.quantize(np.random.default_rng(5).normal(size=(len(ids), dim)))
    values = {"modality": np.array("image", object), "item_ids": ids, "rows": rows, "scales": scales}
    return loaded(
        "upsert_items",
        {**values, "sequences": np.full(len(ids), time.time_ns() // 1000), "encoder_version": np.array("v1", object)},
    )["statuses"]


@pytest.mark.parametrize("road", CASES, indirect=True)
def test_one_score_from_trainer_to_server(road, shop):
    features, near = shop.features, {"atol": 1e-5, "rtol": 0}
    pointwise = train_lib.predict(road.model, road.tables, sources.InMemory(road.columns))
    ranked = train_lib.predict(road.model, road.tables, sources.InMemory(of_one_user(features, road.columns)))
    assert np.std(pointwise) > 1e-3 and np.std(ranked) > 1e-3
    user = {column.name for column in features.columns if column.side == "user"}
    request = {name: values[:1] if name in user else values for name, values in road.raw.items()}
    with saved_model.load_session(road.version_dir) as loaded:
        np.testing.assert_allclose(loaded("serving_default", road.raw)["score"], pointwise, **near)
        np.testing.assert_allclose(loaded("rank", request)["score"], ranked, **near)
        for raw, expected in ((road.raw, pointwise), (request, ranked)):
            vectors = vectors_of(raw, road.tables, features)
            np.testing.assert_allclose(loaded("score_vectors", vectors)["score"], expected, **near)
        items = np.unique(road.raw["item_id"])
        assert not upsert(loaded, items, road.tables["image"].dim).any()
        sees = (road.raw["behavior_item_ids"] > 0).sum(1) >= 3
        changes = np.abs(loaded("serving_default", road.raw)["score"] - pointwise)
        assert np.median(changes[sees]) > 1e-4
    if "simtier-image-behavior" in road.model.integrations:
        check_tiers(road, features)


def check_tiers(road, features):
    """Tier counts are equal in eager mode, under XLA, and with one history for all candidates."""
    batch = {name: tf.constant(values) for name, values in of_one_user(features, road.columns).items()}
    inputs = train_lib.model_inputs(batch, road.tables, features)
    for modality in MODALITIES:
        of_user = vectors_lib.names(modality, "behavior")
        shared = {name: values[:1] if name in of_user else values for name, values in inputs.items()}
        expected = road.model.tiers(inputs, modality)
        assert np.unique(expected).size > 2

        @tf.function(jit_compile=True, autograph=False)
        def compiled(tensors, modality=modality):
            return road.model.tiers(tensors, modality)

        used = (*of_user, *vectors_lib.names(modality, vectors_lib.TARGET))
        for form in (inputs, shared):
            np.testing.assert_array_equal(compiled({name: form[name] for name in used}), expected)
