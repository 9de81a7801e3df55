"""A click model that was trained a little, its index, and requests as they would have been served after it."""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from serving.nearline import joining, rows
from serving.streaming import event_log
from tfmm import preprocessing, presets
from tfmm.config import CTRConfig, ExportConfig, GateConfig, MAKEConfig
from tfmm.ctr import model as model_lib
from tfmm.ctr import pre_ranking
from tfmm.ctr import state as state_lib
from tfmm.ctr.continuing import continue_over
from tfmm.export import saved_model
from tfmm.features import LABEL
from tfmm.index import encode, item_features, item_index, item_vectors, live_vectors, snapshot
from tfmm.pre_ranking import PreRankingConfig
from tfmm.stages import run_file
from tfmm.stages.folders import MULTIMODAL, PRE_RANKING, SERVING, STATE, TRAINED
from tfmm.training import sources

START_S = 1_709_596_800.0
NUM_USERS, NUM_ITEMS, DIM, LENGTH = 40, 120, 8, 6
ENCODERS = {"text": "v1"}
ID_TYPES = {"user_id": "int64", "item_id": "int64", "category": "int64"}
RUN = dataclasses.replace(
    presets.small(),
    data=dataclasses.replace(presets.small().data, max_behaviors=LENGTH, min_id_count=2),
    ctr=CTRConfig(units=(8,), attention_units=(8,), batch_size=32, block_rows=128, segments=2),
    make=MAKEConfig(units=(8, 8, 8), attention_units=(8,)),
    export=ExportConfig(index_capacity=256, batch_buckets=(64,), candidate_buckets=(8,), jit_compile=False),
    gate=GateConfig(0.0, 0.0, 9.0, max_loss_to_service=1.0, max_logloss_rise=9.0, max_calibration_rise=9.0,
                    max_hidden_bias=9.0),
)  # fmt: skip

HEAD = PreRankingConfig(num_tiers=4, dim=4, units=(4,), candidate_buckets=(8,))


class Shop:
    """Items with vectors, users with tastes, and what they are shown."""

    def __init__(self, seed: int = 0):
        generator = np.random.default_rng(seed)
        self.ids = np.arange(1000, 1000 + NUM_ITEMS)
        self.categories = generator.integers(1, 6, NUM_ITEMS)
        self.vectors = generator.normal(size=(NUM_ITEMS, DIM))
        self.tastes = generator.normal(size=(NUM_USERS, DIM))

    def records(self, first: int, count: int, seed: int = 0, shown: int = 4, gap_s: float = 1.0):
        """Returns requests `first` ... with the labels that come up to 4 s later, all in order of time, as dicts."""
        generator, found = np.random.default_rng([seed, first]), []
        for number in range(first, first + count):
            time_s, user = START_S + gap_s * number, int(generator.integers(NUM_USERS))
            items = generator.choice(NUM_ITEMS, shown + 1, replace=False)
            history = generator.choice(NUM_ITEMS, generator.integers(0, LENGTH + 3), replace=False)
            found.append({
                "request_id": f"r{number}", "time": time_s, "model": "tfmm", "version": 1, "encoders": ENCODERS,
                "index": {}, "features": {"user_id": user + 1, "behavior_item_ids": self.ids[history].tolist(),
                                          "behavior_categories": self.categories[history].tolist()},
                "items": self.ids[items].tolist(), "item_features": {"category": self.categories[items].tolist()},
                "scores": [0.5] * len(items),
            })  # fmt: skip
            for item in items[:shown]:
                event = {"request_id": f"r{number}", "item_id": int(self.ids[item])}
                found.append({**event, "time": time_s + 0.5, "shown": True})
                liking = self.tastes[user] @ self.vectors[item] / DIM**0.5
                if generator.random() < 1 / (1 + np.exp(1.0 - 1.5 * liking)):
                    found.append({**event, "time": time_s + 0.6 + float(generator.random() * 3), "label": True})
        return sorted(found, key=lambda one: one["time"])


def payloads(records):
    return [json.dumps(record).encode() for record in records]


@pytest.fixture(scope="session")
def nearline_shop():
    return Shop()


@pytest.fixture(scope="session")
def models(nearline_shop, tmp_path_factory):
    """A folder as `tfmm train` leaves it, of a model trained over 100 requests, with an index beside it; read-only.

    The model has a pre-ranking head, its weights drawn.
    """
    folder = tmp_path_factory.mktemp("nearline")
    shop, features = nearline_shop, RUN.feature_set
    with item_index.ItemIndex(folder / "index.sqlite") as index:
        quantized, scales = encode.quantize(shop.vectors)
        has = np.arange(NUM_ITEMS) % 10 > 0
        index.write("text", "v1", shop.ids[has], quantized[has], scales[has], np.ones(has.sum(), np.int64))
        snapshot.write_snapshot(index, folder / "snapshot")
        stored = live_vectors.LiveFeatures(index, item_features.Layout.of(features, ID_TYPES))
    join = joining.Join(joining.Rules(LABEL, window_us=10_000_000))
    for place, payload in enumerate(payloads(shop.records(0, 100))):
        join.add("log", event_log.Event(place + 1, payload))
    reader = rows.Reader(features, ID_TYPES, stored)
    raw = rows.concatenate([reader.read(one) for one in join.advance(2**62)])
    half = len(shop.ids) // 2  # the other half is not known yet
    known = {"user_id": np.arange(1, NUM_USERS + 1), "item_id": shop.ids[:half], "category": np.arange(1, 6)}
    preprocessing.write(folder / "vocabulary", known, {})
    tables = item_vectors.load_vectors(folder / "snapshot", ["text"])
    preprocessor = preprocessing.load(features, folder / "vocabulary")
    keras.utils.set_random_seed(0)
    model = model_lib.CTRModel(RUN.ctr, RUN.make, features, preprocessor.sizes, {"text": DIM}, RUN.methods)
    model.build()
    model.freeze_make()
    state = state_lib.State(model, state_lib.optimizer_of(model, RUN.ctr), tables)
    columns = {column.name: raw[column.name] for column in features.columns}
    tensors = {name: tf.constant(values) for name, values in columns.items()}
    inputs = {name: values.numpy() for name, values in preprocessor(tensors).items()}
    slots = item_vectors.add_slots(columns, tables, features)
    slots = {name: values for name, values in slots.items() if name not in columns}
    continue_over(state, RUN.ctr, sources.InMemory({**inputs, **slots, LABEL: raw[LABEL].astype(np.int32)}))
    through = int(raw["timestamp"][-1])
    state.note_span(through, raw["item_id"])
    training = {
        "trained_through": {"timestamp": through, "row": 4}, "rows": len(raw[LABEL]), "newest": through,
        "span": {"number": 1, "rows": len(raw[LABEL]), "first": int(raw["timestamp"][0]), "last": through},
        "lag": {"rows": 0, "seconds": 0.0}, "examples": "of a test", "parent": None, "encoder_versions": ENCODERS,
        "make": None,
    }  # fmt: skip
    place = folder / "models" / MULTIMODAL
    state_lib.save(state, place / STATE, folder / "vocabulary", training=training, seen={})
    model_lib.save_model(model, place / TRAINED, training=training)
    head, head_dir = pre_ranking.PreRankingModel(HEAD, model), folder / "models" / PRE_RANKING / TRAINED
    head.build()
    pre_ranking.save_model(head, head_dir, [place / TRAINED])
    parts = place / TRAINED, folder / "vocabulary", folder / "snapshot"
    saved_model.export(*parts, ID_TYPES, RUN.export, place / SERVING, head_dir)
    run_file.write(RUN, folder / "models")
    return folder


class Process:
    """A near-line trainer as a process."""

    def __init__(self, root: pathlib.Path, folder: pathlib.Path, work_dir: pathlib.Path, *options: str):
        self.work_dir = work_dir
        command = [
            sys.executable, "-m", "serving.nearline", "--models", str(folder / "models"), "--index",
            str(folder / "index.sqlite"), "--workdir", str(work_dir), "--output", str(work_dir / "versions"), *options,
        ]  # fmt: skip
        self.log = work_dir.parent / f"{work_dir.name}.log"
        with self.log.open("ab") as file:
            environment = {**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"}
            self.process = subprocess.Popen(command, stderr=file, cwd=root, env=environment)

    def said(self) -> str:
        return self.log.read_text()

    def facts(self):
        """Returns the facts of the newest checkpoint and its folder; None where there is none."""
        found = sorted(self.work_dir.glob("*/checkpoints/[0-9]*/facts.json"), key=lambda p: int(p.parent.name))
        try:
            return (json.loads(found[-1].read_text()), found[-1].parent) if found else None
        except FileNotFoundError:  # a newer one has taken its place
            return self.facts()

    def rows(self) -> int:
        found = self.facts()
        return found[0]["training"]["rows"] if found else 0

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


@contextlib.contextmanager
def starting(root, models):
    """Gives a function that starts a trainer; what is still there at the end is stopped."""
    started = []

    def start(work_dir: pathlib.Path, *options: str) -> Process:
        started.append(Process(root, models, work_dir, *options))
        return started[-1]

    try:
        yield start
    finally:
        for one in started:
            if one.process.poll() is None:
                one.stop()


@pytest.fixture(scope="session", name="starting")
def _starting(root, models):
    """The context of `start_trainer`, for fixtures of a module."""
    return functools.partial(starting, root, models)


@pytest.fixture
def start_trainer(starting):
    """Returns a function that starts a trainer; what is still there at the end is stopped."""
    with starting() as start:
        yield start
