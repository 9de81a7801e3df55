"""Modalities of a team's own, by hand from data to a streamed item: titles beside two sets of ready vectors, an
encoder of theirs that is trained, and one that is used as it is.
"""

import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from serving.streaming import events
from tfmm import artifacts, presets, saved_model
from tfmm.assignments import override
from tfmm.data import schema
from tfmm.index import item_index, snapshot
from tfmm.marketplace import generator

pytest.importorskip("apache_beam", reason="Beam is not installed")

# The only file that a team writes: its run, and its encoders.
TEAM = '''
import dataclasses

import keras
import tensorflow as tf

from tfmm import presets
from tfmm.modalities import Modality
from tfmm.pretrain.encoders import Encoder


class Audio(Encoder):
    """Reads 16 floats of a sound."""

    def build_model(self):
        features = keras.Input((16,))
        initializer = keras.initializers.GlorotUniform(self.config.seed)
        vector = keras.layers.Dense(self.config.dim, kernel_initializer=initializer)(features)
        return keras.Model([features], keras.layers.UnitNormalization()(vector))

    def prepare(self, contents):
        return (tf.io.decode_raw(contents, tf.float32, fixed_length=64),), tf.strings.length(contents) == 64


class Ends:
    """The first bytes of a title, in no way learned."""

    def __init__(self, config):
        self.scale = tf.constant(config.dim, tf.float32)

    def encode(self, contents):
        first = tf.cast(tf.io.decode_raw(contents, tf.uint8, fixed_length=8), tf.float32)
        return first / self.scale


def run():
    return dataclasses.replace(
        presets.small(),
        modalities=(
            Modality("text", "text", column="title", query_column="query_text"),
            Modality("clip", "vector", column="clip_vector"),
            Modality("brand", "vector", column="brand_vector"),
            Modality("audio", "team:Audio", column="sound", settings={"dim": 12, "epochs": 1}),
            Modality("ends", "team:Ends", column="title", frozen=True),
        ),
    )
'''
DIMS = {"text": 32, "clip": 6, "brand": 4, "audio": 12, "ends": 8}
SMALL = [
    "marketplace.num_users=150",
    "marketplace.num_items=120",
    "marketplace.num_searches=400",
    "data.max_behaviors=8",
    "text.epochs=1",
    "make.epochs=1",
    "export.jit_compile=false",
]
GATE = [  # this small, it is only run
    "gate.min_auc=0.0",
    "gate.min_gauc=0.0",
    "gate.min_gain_over_id=-1.0",
    "gate.max_logloss=9",
    "gate.max_logloss_rise=9",
    "gate.max_calibration_rise=9",
    "gate.max_hidden_bias=9",
]
NEW = 987_654_321  # an item that the catalog does not hold


@pytest.fixture(scope="module")
def folder(tmp_path_factory, run_commands):
    """The folder in which every stage's command has run."""
    folder = tmp_path_factory.mktemp("own_modalities")
    generator.generate(override(presets.small(), SMALL).marketplace, folder / "tables")
    path = folder / "tables" / "items.parquet"
    items, draw = pq.read_table(path), np.random.default_rng(0)
    sounds = draw.normal(size=(len(items), 16)).astype(np.float32)
    clips = [None if n % 10 == 0 else row.tolist() for n, row in enumerate(draw.normal(size=(len(items), 6)))]
    items = items.append_column("sound", pa.array([sound.tobytes() for sound in sounds]))
    items = items.append_column("clip_vector", pa.array(clips, pa.list_(pa.float32())))
    items = items.append_column("brand_vector", pa.array(draw.normal(size=(len(items), 4)).tolist()))
    pq.write_table(items.drop(["image"]), path)
    searches = pq.read_table(folder / "tables" / "searches.parquet").drop(["query_image"])
    pq.write_table(searches, folder / "tables" / "searches.parquet")
    (folder / "team.py").write_text(TEAM)
    options = " --run team:run " + " ".join(f"--set {assignment}" for assignment in (*SMALL, *GATE))
    said = run_commands(
        folder,
        "run show --data tables" + options,
        "data check tables" + options,
        "pretrain --data tables --output encoders" + options,
        "embed --data tables --encoders encoders --index index/items.sqlite --snapshot snapshot",
        "train --data tables --snapshot snapshot --output models",
        "evaluate --models models --output evaluation --snapshot snapshot --encoders encoders --data tables",
        "export --models models --evaluation evaluation --output serving",
    )
    (folder / "stdout.txt").write_text(said)
    return folder


def test_all_stand_side_by_side_in_the_index(folder):
    found = snapshot.load_snapshot(folder / "snapshot")
    assert {name: found[name].dim for name in found.modalities} == DIMS
    num_items = schema.read_table(folder / "tables", "items", ["item_id"]).num_rows
    sizes = {name: len(found[name].ids) for name in DIMS}
    assert sizes["clip"] == num_items - -(-num_items // 10) and sizes["brand"] == sizes["audio"] == num_items


def test_encoders_are_those_that_are_declared(folder):
    manifests = {path.parent.name: json.loads(path.read_text()) for path in folder.glob("encoders/*/manifest.json")}
    assert {n for n, m in manifests.items() if m["kind"] == "encoder"} == {"text", "audio", "ends"}
    assert manifests["audio"]["config"]["encoder"] == "team:Audio" and 0.0 <= manifests["audio"]["acc_at_1"] <= 1.0
    assert manifests["ends"]["frozen"] and "acc_at_1" not in manifests["ends"]
    assert not (folder / "encoders" / "pairs" / "ends").exists()
    pairs = artifacts.read_manifest(folder / "encoders" / "pairs" / "audio")
    assert pairs["source"] in ("co-purchase", "co-click")  # no query brings a sound
    probed = json.loads((folder / "evaluation" / "report.json").read_text())["encoders"]
    assert set(probed) == set(DIMS)
    assert "gauc_untrained" in probed["audio"]["probe"] and "gauc_untrained" not in probed["ends"]["probe"]
    said = (folder / "stdout.txt").read_text()
    assert "ends: team:Ends as it is, 8 values." in said


def test_a_streamed_item_is_scored_with_all_of_its_contents(folder):
    """The event brings every content; each modality's vector, once upserted, changes the score."""
    payload = events.make_event(NEW, title="a red shoe", contents={
        "clip": [1.0, 0, 0, 0, 0, 0.5], "brand": [0.5, 1, 0, 0], "ends": "a red shoe",
        "audio": np.linspace(-1, 1, 16, dtype=np.float32).tobytes()})  # fmt: skip
    stream(folder, payload)
    (version,) = (folder / "serving").iterdir()
    items = schema.read_table(folder / "tables", "items")
    history = items["item_id"].to_pylist()[1:6]
    request = {
        "user_id": [schema.read_table(folder / "tables", "impressions")["user_id"][0].as_py()],
        "behavior_item_ids": [history],
        "behavior_categories": [items["category"].to_pylist()[1:6]],
        "item_id": [NEW],
        "category": [items["category"].to_pylist()[0]],
    }
    with saved_model.load_session(version) as model, item_index.ItemIndex(folder / "index" / "items.sqlite") as index:
        scores = [float(model("rank", request)["score"][0])]
        for modality, entry in index.active_encoders().items():
            rows = index.embeddings(modality, entry.encoder_version)
            here = rows.ids == NEW
            assert here.sum() == 1, modality
            upsert = {
                "modality": np.array(modality, object),
                "encoder_version": np.array(entry.encoder_version, object),
                "item_ids": rows.ids[here],
                "rows": rows.rows[here],
                "scales": rows.scales[here],
                "sequences": rows.sequences[here],
            }
            assert model("upsert_items", upsert)["statuses"].tolist() == [0], modality
            scores.append(float(model("rank", request)["score"][0]))
        assert len(set(scores)) == len(DIMS) + 1


def stream(folder, payload):
    """Runs the streaming job, which knows encoders and index alone, on one event."""
    from serving.streaming import event_log

    with event_log.SQLiteEventLog(folder / "events.sqlite") as log:
        log.append([payload])
        name = log.name
    job = subprocess.Popen(
        [sys.executable, "-m", "serving.streaming", "--events", "events.sqlite", "--index", "index/items.sqlite",
         "--encoders", "encoders"],
        cwd=folder, env={**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])},
    )  # fmt: skip
    try:
        with item_index.ItemIndex(folder / "index" / "items.sqlite") as index:
            deadline = time.monotonic() + 300
            while index.position(name) < 1:
                assert job.poll() is None and time.monotonic() < deadline
                time.sleep(0.1)
            assert index.dead_letters() == []
    finally:
        job.terminate()
        job.wait(60)
