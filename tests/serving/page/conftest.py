"""A small system that runs in this process: server, replicator, stream and a trainer's metrics; and a browser."""

import contextlib
import dataclasses
import io
import pathlib
import shutil
import threading
import time

import httpx
import keras
import numpy as np
import PIL.Image
import pytest

from serving import metrics, replica_metrics, replicator, served_log
from serving.client import RankingClient
from serving.model_server import logged
from serving.nearline import joining
from serving.nearline import metrics as nearline_metrics
from serving.page import app, serve, settings, watching
from serving.streaming import event_log, events, pipeline
from serving.streaming import metrics as stream_metrics
from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model
from tfmm.features import LABEL, FeatureSet
from tfmm.index import encode, snapshot, store

FEATURES = FeatureSet().resolved(max_behaviors=4, min_count=1)
TYPES = {"user_id": "int64", "item_id": "int64", "category": "int64"}
ITEMS, DIM = np.arange(100, 140, dtype=np.int64), 8
GIVEN = encode.GivenVectors(DIM)


def picture(shade):
    """A PNG."""
    content = io.BytesIO()
    PIL.Image.new("RGB", (8, 8), (shade % 256, 90, 160)).save(content, "PNG")
    return content.getvalue()


def write_index(path):
    """Writes an index with vectors of `ITEMS`."""
    with store.open_store(path) as index:
        rows, scales = encode.quantize(np.random.default_rng(0).normal(size=(len(ITEMS), DIM)))
        index.write(GIVEN.modality, GIVEN.version, ITEMS, rows, scales, [1] * len(ITEMS))
        index.keep_id_types(TYPES)


def write_model(folder):
    """Writes a version of a click model, weights drawn, and the index that it was made of."""
    preprocessing.write(
        folder / "vocabulary", {"user_id": np.arange(1, 9), "item_id": ITEMS, "category": np.arange(1, 4)}, {}
    )
    write_index(folder / "items.sqlite")
    with store.open_store(folder / "items.sqlite") as index:
        snapshot.write_snapshot(index, folder / "snapshot")
    keras.utils.set_random_seed(0)
    make = config_lib.MAKEConfig(attention_units=(4,), units=(8, 4, 4))
    config = config_lib.CTRConfig(units=(8,), attention_units=(4,))
    sizes = preprocessing.load(FEATURES, folder / "vocabulary").sizes
    methods = (config_lib.Method("simtier", {"num_tiers": 8}),)
    model = model_lib.CTRModel(config, make, FEATURES, sizes, {GIVEN.modality: DIM}, methods)
    model.build()
    seeds = keras.random.SeedGenerator(0)
    for variable in model.trainable_variables:
        variable.assign(variable + keras.random.normal(variable.shape, stddev=0.2, seed=seeds))
    model_lib.save_model(model, folder / "model")
    export = config_lib.ExportConfig(
        index_capacity=64, batch_buckets=(4,), candidate_buckets=(4,), jit_compile=False
    )
    parts = folder / "model", folder / "vocabulary", folder / "snapshot", TYPES, export
    saved_model.export(*parts, folder / "versions" / "7")


def _wait_for(condition, told=None, timeout_s=300):
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"timed out: {told}"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="session")
def wait_for():
    """Returns what a condition finds at last; fails when the time is over."""
    return _wait_for


@dataclasses.dataclass
class System:
    """Where everything is, and what an application would do with it."""

    addresses: dict
    grpc: str
    index: str
    events: str
    served: pathlib.Path
    log: event_log.SQLiteEventLog
    ranked: int = 0  # requests

    def send(self, item_id, seed=0, **contents):
        """Sends a new item's event."""
        vector = np.random.default_rng([seed, item_id]).normal(size=DIM).tolist()
        content = {"title": f"item number {item_id}", "image": picture(item_id), "vector": vector} | contents
        self.log.append([events.make_event(item_id, category=1, **content)])

    def rank(self, items=(100, 101)):
        """Asks the server for scores."""
        self.ranked += 1
        with RankingClient(self.grpc, timeout_s=60) as client:
            user = {"user_id": 3, "behavior_item_ids": [101, 102, 103], "behavior_categories": [1, 2, 3]}
            return client.rank(user, {"item_id": list(items), "category": [1] * len(items)})


@contextlib.contextmanager
def running_stream(log, index):
    """The streaming job in a thread."""
    pipeline.stop_requested.clear()
    job = threading.Thread(target=pipeline.run, args=(log, None, index), kwargs={"bundle_s": 0.5})
    job.start()
    try:
        yield
    finally:
        pipeline.stop_requested.set()
        job.join(300)
        pipeline.stop_requested.clear()


def a_trainer():
    """What a near-line trainer tells after a slice that was pushed."""
    told = nearline_metrics.Metrics()
    told.rows.inc(640)
    for delay_s in (4.0, 5.0, 6.0):
        told.trained_delay.observe(delay_s)
    found = {"auc": 0.71, "gauc": 0.69, "logloss": 0.41, "calibration": 1.02}
    told.judged(3, {"passed": True, "rows": 500, "judged_at": time.time(), "metrics": {"multimodal": found}})
    join = joining.Join(joining.Rules(LABEL))
    join.counts.update(requests=12, shown=10)
    told.show(join, {"log": 40})
    return told.registry


@pytest.fixture
def index_path(tmp_path):
    """An index of a test's own, see `write_index`."""
    write_index(tmp_path / "items.sqlite")
    return tmp_path / "items.sqlite"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A version of a click model and its index, see `write_model`; read-only."""
    folder = tmp_path_factory.mktemp("page")
    write_model(folder)
    return folder


@pytest.fixture(scope="module")  # no longer than its file: its threads would be beside the tests of others
def system(model_dir, tmp_path_factory, serving_at):
    """Everything that the page watches, running."""
    folder = tmp_path_factory.mktemp("running")
    index, log = folder / "items.sqlite", folder / "events.sqlite"
    shutil.copy(model_dir / "items.sqlite", index)
    shutil.copytree(model_dir / "versions", folder / "versions")
    with contextlib.ExitStack() as stack:
        logs = logged.Logs((served_log.Log("served", str(folder / "served"), rotate_s=0.1),))
        server = stack.enter_context(serving_at(folder / "versions", name="tfmm", metrics_port=0, logs=logs))
        follower = stack.enter_context(replicator.Replicator(index, [server["grpc"]], "tfmm", refresh_s=0.2))
        stack.enter_context(running_stream(log, index))
        pages = {
            "replicator": metrics.registry(replica_metrics.LagMetrics(follower.lag)),
            "stream": stream_metrics.REGISTRY,
            "trainer": a_trainer(),
        }
        ports = {name: stack.enter_context(metrics.served(page, 0, "127.0.0.1")) for name, page in pages.items()}
        addresses = {"server": [server["metrics"]], **{name: [f"127.0.0.1:{port}"] for name, port in ports.items()}}
        opened = stack.enter_context(event_log.SQLiteEventLog(log))
        yield System(addresses, server["grpc"], str(index), str(log), folder / "served", opened)


@contextlib.contextmanager
def _serving(token="", **told):
    found, servers = [], []
    with pytest.MonkeyPatch.context() as patience, contextlib.ExitStack() as stack:
        for name in ("_TIMEOUT_S", "_PATIENCE_S"):  # what answers late is no process that has gone
            patience.setattr(watching, name, 120.0)
        board, picture = settings.open_board(settings.Settings(every_s=0.5, **told))
        stack.enter_context(board)
        application = app.application(lambda: board.document, picture, token=token)
        arguments = (application, "127.0.0.1", 0, None, found.append, servers.append)
        thread = threading.Thread(target=serve.run, args=arguments)
        thread.start()
        try:
            yield _wait_for(lambda: found and found[0])
        finally:
            servers[0].should_exit = True
            thread.join(60)


@pytest.fixture(scope="session")
def serving_page():
    """Serves a page of some `Settings` while the context lasts, which gives its URL."""
    return _serving


@pytest.fixture(scope="module")
def page_of(system):
    """The running system's page: its URL."""
    system.rank()  # so that a user's request is logged
    told = {"events_url": system.events, "served_dir": system.served, "target": system.grpc}
    with _serving(addresses=system.addresses, index_url=system.index, **told) as url:
        yield url


@pytest.fixture
def data(page_of):
    """Returns a function that reads the page's document, its sections by name."""

    def read(url=page_of):
        found = httpx.get(f"{url}data.json", timeout=60).json()
        return {**found, "sections": {one["name"]: one for one in found["sections"]}}

    return read


@pytest.fixture(scope="module")
def chromium():
    """A Chromium of this machine, or else Playwright's own, driven by Playwright."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    with sync_api.sync_playwright() as driver:
        own = driver.chromium.executable_path  # where `playwright install` puts it
        path = shutil.which("chromium") or shutil.which("google-chrome") or own
        if not pathlib.Path(path).exists():
            pytest.skip("chromium is not on this machine")
        browser = driver.chromium.launch(executable_path=path, timeout=240_000)
        yield browser
        browser.close()
