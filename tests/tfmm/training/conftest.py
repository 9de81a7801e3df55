"""Small pairs of texts and pictures, and trainings as processes of their own."""

import io
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

SCRIPT = pathlib.Path(__file__).with_name("trainers.py")


def write(path, kind, queries, positives, item_ids, negatives):
    columns = {"query": queries, "positive": positives, "negative": negatives}
    table = {name: pa.array(values, kind) for name, values in columns.items()}
    pq.write_table(pa.table({**table, "positive_item_id": pa.array(item_ids, pa.int64())}), path)


def picture(pixels):
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def pairs(tmp_path_factory):
    """Folders `text` and `image` of pairs, some with a hard negative; read-only."""
    folder, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    words = [f"word{i}" for i in range(30)]
    for split, items in (("train", range(1, 41)), ("heldout", range(41, 61))):
        titles = [" ".join(rng.choice(words, 4, replace=False)) for _ in items]
        negatives = [title if item % 3 else None for item, title in zip(items, titles[::-1])]
        queries = [" ".join(title.split()[:3]) for title in titles]
        (folder / "text").mkdir(exist_ok=True)
        write(folder / "text" / f"{split}.parquet", pa.string(), queries, titles, list(items), negatives)
    for split, items in (("train", range(1, 25)), ("heldout", range(25, 37))):
        pixels = {item: rng.uniform(0, 255, (16, 16, 3)) for item in items}
        ids = [item for item in items for _ in range(2)]  # two queries each: false negatives in the batch
        queries = [picture(pixels[item] + rng.normal(0, 40, (16, 16, 3))) for item in ids]
        negatives = [picture(rng.uniform(0, 255, (16, 16, 3))) if item % 5 < 2 else None for item in ids]
        (folder / "image").mkdir(exist_ok=True)
        positives = [picture(pixels[item]) for item in ids]
        write(folder / "image" / f"{split}.parquet", pa.binary(), queries, positives, ids, negatives)
    return folder


@pytest.fixture
def start_training(shop, pairs, root):
    """Returns a function that starts `trainers.py`; what it started is ended with the test."""
    started = []

    def start(output, *arguments, devices=1, log=subprocess.PIPE, cluster=None, index=0):
        task = {"cluster": {"worker": cluster}, "task": {"type": "worker", "index": index}}
        own = {} if cluster is None else {"TF_CONFIG": json.dumps(task)}
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(shop.folder), str(pairs), str(output), str(devices), *arguments],
            env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3", **own}, cwd=root, text=True,
            stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
