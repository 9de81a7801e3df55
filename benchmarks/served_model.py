"""What the benchmarks of the server share: a click model of the default run's size, weights drawn, and its server."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import typing

import keras
import numpy as np

from tfmm import config as config_lib
from tfmm import preprocessing
from tfmm.ctr import model as model_lib
from tfmm.export import saved_model
from tfmm.index import encode, item_index, snapshot

NUM_ITEMS, NUM_USERS, NUM_CATEGORIES = 20_000, 10_000, 50
DIMS = {"image": 64, "text": 64}
MODEL_NAME = "tfmm"
ROOT = pathlib.Path(__file__).resolve().parents[1]


def write(folder: pathlib.Path, export: config_lib.ExportConfig | None = None) -> pathlib.Path:
    """Writes a SavedModel with the default run's features, methods and settings, and its index; returns its folder.

    The index lies in `folder / "items.sqlite"`.
    """
    run, rng = config_lib.RunConfig(), np.random.default_rng(0)
    keras.utils.set_random_seed(0)
    items = np.arange(1, NUM_ITEMS + 1)
    with item_index.ItemIndex(folder / "items.sqlite") as index:
        for modality, dim in DIMS.items():
            rows, scales = encode.quantize(rng.normal(size=[NUM_ITEMS, dim]))
            index.write(modality, "drawn", items, rows, scales, np.ones(NUM_ITEMS, np.int64))
        snapshot.write_snapshot(index, folder / "snapshot")
    known = {"user_id": np.arange(1, NUM_USERS + 1), "item_id": items, "category": np.arange(1, NUM_CATEGORIES + 1)}
    preprocessing.write(folder / "vocabulary", known, {})
    sizes = preprocessing.load(run.feature_set, folder / "vocabulary").sizes
    model = model_lib.CTRModel(run.ctr, run.make, run.feature_set, sizes, DIMS, run.methods)
    model.build()
    model_lib.save_model(model, folder / "model")
    version = folder / MODEL_NAME / "1"
    saved_model.export(
        folder / "model", folder / "vocabulary", folder / "snapshot", dict.fromkeys(known, "int64"),
        export or run.export, version,
    )  # fmt: skip
    return version


def rank_inputs(num_candidates: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the inputs of `rank`: a user with a whole history, and candidates of the catalog."""
    length = config_lib.RunConfig().data.max_behaviors
    return {
        "user_id": rng.integers(1, NUM_USERS, [1]),
        "behavior_item_ids": rng.integers(1, NUM_ITEMS, [1, length]),
        "behavior_categories": rng.integers(1, NUM_CATEGORIES, [1, length]),
        "item_id": rng.integers(1, NUM_ITEMS, [num_candidates]),
        "category": rng.integers(1, NUM_CATEGORIES, [num_candidates]),
    }


class Server(typing.NamedTuple):
    """A server in a process of its own."""

    process: subprocess.Popen
    grpc_port: int
    rest_port: int

    def memory_mb(self) -> float:
        """Resident memory now."""
        pages = int(pathlib.Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextlib.contextmanager
def serving(base_path: pathlib.Path, *flags: str) -> typing.Iterator[Server]:
    """Starts `python -m serving.model_server`, and ends it."""
    ready_file = base_path.parent / f"ready-{time.monotonic_ns()}.json"
    command = [sys.executable, "-m", "serving.model_server", f"--model_name={MODEL_NAME}",
               f"--model_base_path={base_path}", "--port=0", "--rest_api_port=0", f"--ready_file={ready_file}",
               *flags]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        while not ready_file.exists():
            if process.poll() is not None:
                raise ChildProcessError(f"The server ended with {process.returncode}: {' '.join(command)}")
            time.sleep(0.05)
        facts = json.loads(ready_file.read_text())
        yield Server(process, facts["grpc_port"], facts["rest_port"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
