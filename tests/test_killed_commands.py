"""Each command that makes an artifact is killed at random moments, run again, and ends like one that was not killed."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import h5py
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from tfmm.index import store

pytest.importorskip("apache_beam", reason="Beam is not installed")

SETTINGS = [
    "marketplace.num_users=150", "marketplace.num_items=120", "marketplace.num_searches=400", "data.max_behaviors=8",
    "marketplace.image_size=16", "text.epochs=2", "image.epochs=1", "make.epochs=2",
]  # fmt: skip
RUN = " --preset small " + " ".join(f"--set {assignment}" for assignment in SETTINGS)
COMMANDS = (
    "data marketplace tables" + RUN,
    "pretrain --data tables --output encoders" + RUN,
    "embed --data tables --encoders encoders --index index.sqlite --snapshot snapshot",
    "train --data tables --snapshot snapshot --output models",
    "evaluate --models models --output evaluation --snapshot snapshot --encoders encoders --data tables",
    "export --models models --output serving --unjudged",
)
KILLS = 3
# How long things took, when they were made, and from what: the index counts its changes by the clock.
LEFT_OUT = ("created_at", "seconds", "digest", "judged", "id", "parents", "watermark")


def start(root, folder, command):
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "tfmm.cli", *command.split()], cwd=folder, stdout=log, stderr=log,
            env={**os.environ, "PYTHONPATH": str(root), "TF_CPP_MIN_LOG_LEVEL": "3"},
        )  # fmt: skip


def finish(process, folder, command):
    """Waits for a command's end; this small, the gate may refuse the model."""
    assert process.wait() in ((0, 1) if command.startswith("evaluate") else (0,)), (folder / "log").read_text()[-3000:]


def kill(root, folder, command, duration, moments):
    """Starts a command and kills it before it ends; one that was faster is started anew."""
    while True:
        process = start(root, folder, command)
        try:
            process.wait(moments.uniform(0.2, 1.0) * duration)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return
        finish(process, folder, command)
        duration *= 0.7


def comparable(value, artifacts):
    """Leaves out what differs from run to run; an artifact's id becomes its folder's name."""
    if isinstance(value, dict):
        return {key: comparable(one, artifacts) for key, one in value.items() if key not in LEFT_OUT}
    if isinstance(value, list):
        return [comparable(one, artifacts) for one in value]
    return artifacts.get(value, value) if isinstance(value, str) else value


def made(folder):
    """All that the commands made, by name: tables, weights, examples, rows, and what the JSON files say."""
    found, artifacts = {}, {}
    paths = {
        str(path.relative_to(folder)): path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "checkpoints" not in path.parts and path.relative_to(folder).parts[0] != "serving"
    }
    for name, path in paths.items():
        if path.name == "manifest.json":
            artifacts[json.loads(path.read_text())["id"]] = name
    for name, path in paths.items():
        if path.suffix == ".h5":
            with h5py.File(path) as file:
                file.visititems(
                    lambda part, it, n=name: found.update({f"{n}:{part}": it[()].tobytes()})
                    if isinstance(it, h5py.Dataset)
                    else None
                )
        elif path.suffix == ".json":
            found[name] = comparable(json.loads(path.read_text()), artifacts)
        elif path.suffix == ".parquet":
            found[name] = pq.read_table(path)
        elif ".tfrecord" in path.name:
            records = tf.data.TFRecordDataset(str(path), "GZIP").as_numpy_iterator()
            found[name] = [tf.train.Example.FromString(record) for record in records]
    with store.open_store(folder / "index.sqlite") as index:
        for entry in index.encoders():
            rows = index.embeddings(entry.modality, entry.encoder_version)
            found[f"index:{entry.modality}"] = (entry.encoder_version, rows.ids.tolist(), rows.rows.tobytes())
    return found


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_commands_that_are_killed_at_random_moments_make_what_they_make_in_one_go(root, tmp_path):
    moments, whole, killed = random.Random(20261126), tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    for command in COMMANDS:
        begun = time.monotonic()
        finish(start(root, whole, command), whole, command)
        duration = time.monotonic() - begun
        for _ in range(KILLS):
            kill(root, killed, command, duration, moments)
        finish(start(root, killed, command), killed, command)
    expected, found = made(whole), made(killed)
    assert found.keys() == expected.keys() and len(found) > 50
    assert [name for name in expected if found[name] != expected[name]] == []
    versions = [path for path in (killed / "serving").iterdir() if path.name.isdigit()]
    judged = files(killed / "models" / "multimodal" / "Format-Serving")
    assert versions and all(files(version) == judged for version in versions)  # a server never sees half a version
