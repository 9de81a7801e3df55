"""Do the examples and the training of both models stay within one memory, whatever the number of rows?

Tables of a size are made piece by piece: users with a history, items, impressions whose clicks follow a taste. Then
`join`, `transform`, MAKE, the ID-only twin and the multimodal model run, each in a process of its own, whose memory is
watched: what is the process' own (anonymous), since pages of files that it reads are the machine's to keep or to drop.
"""

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import recording

from tfmm.config import CTRConfig, DataConfig, MAKEConfig, RunConfig

ROW_GROUP = 250_000
START_US = 1_700_000_000_000_000
DAY_US = 86_400_000_000
NUM_ITEMS, DIM = 100_000, 64
STAGES = ("join", "transform", "make", "id", "multimodal")


def generate(num_rows: int, length: int, folder: pathlib.Path) -> None:
    """Writes `items`, `behaviors` and `impressions`: ten impressions a user, `length` behaviors before them."""
    folder.mkdir(parents=True)
    generator, num_users = np.random.default_rng(0), max(1, num_rows // 10)
    category = 1 + np.arange(NUM_ITEMS) % 50
    items = {
        "item_id": np.arange(1, NUM_ITEMS + 1),
        "category": category,
        "title": [f"item {k % 997}" for k in range(NUM_ITEMS)],
    }
    pq.write_table(pa.table(items), folder / "items.parquet")
    users_per_group = max(1, ROW_GROUP // length)
    with Writer(folder / "behaviors.parquet") as out:
        for first in range(0, num_users, users_per_group):
            users = np.arange(first, min(first + users_per_group, num_users))
            user = np.repeat(users + 1, length)
            item = taste(user, generator)
            at = START_US + generator.integers(0, 20 * DAY_US, len(user))
            out.write(
                {
                    "user_id": user,
                    "item_id": item,
                    "timestamp": at.astype("datetime64[us]"),
                    "action": np.array(["click"]).repeat(len(user)),
                }
            )
    with Writer(folder / "impressions.parquet") as out:
        for first in range(0, num_rows, ROW_GROUP):
            user = 1 + np.arange(first, min(first + ROW_GROUP, num_rows)) % num_users
            item = np.where(
                generator.random(len(user)) < 0.5,
                taste(user, generator),
                generator.integers(1, NUM_ITEMS + 1, len(user)),
            )
            likes = category[item - 1] == favorite(user)
            label = (generator.random(len(user)) < np.where(likes, 0.4, 0.1)).astype(np.int64)
            at = START_US + 20 * DAY_US + generator.integers(0, 10 * DAY_US, len(user))
            out.write({"user_id": user, "item_id": item, "timestamp": at.astype("datetime64[us]"), "label": label})


def favorite(user: np.ndarray) -> np.ndarray:
    return 1 + user % 50


def taste(user: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns items, most of them of the user's favorite category."""
    own = favorite(user) + 50 * generator.integers(0, NUM_ITEMS // 50, len(user))
    return np.where(generator.random(len(user)) < 0.7, own, generator.integers(1, NUM_ITEMS + 1, len(user)))


class Writer:
    """A Parquet file, written row group by row group."""

    def __init__(self, path: pathlib.Path):
        self._path, self._writer = path, None

    def write(self, columns: dict[str, np.ndarray]) -> None:
        table = pa.table(columns)
        self._writer = self._writer or pq.ParquetWriter(self._path, table.schema)
        self._writer.write_table(table)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


def write_snapshot(folder: pathlib.Path) -> None:
    """Writes vectors of all items: those of a category are near."""
    from tfmm.index import encode, item_index, snapshot

    generator = np.random.default_rng(1)
    centers = generator.normal(size=(51, DIM))
    vectors = centers[1 + np.arange(NUM_ITEMS) % 50] + 0.7 * generator.normal(size=(NUM_ITEMS, DIM))
    rows, scales = encode.quantize((vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32))
    with item_index.ItemIndex(folder / "items.sqlite") as index:
        ids = np.arange(1, NUM_ITEMS + 1)
        index.write("text", "true", ids, np.asarray(rows), np.asarray(scales), np.ones(NUM_ITEMS, np.int64))
        snapshot.write_snapshot(index, folder / "snapshot")


def run_of(length: int) -> RunConfig:
    return RunConfig(data=DataConfig(max_behaviors=length), make=MAKEConfig(epochs=4), ctr=CTRConfig())


def work(stage: str, folder: pathlib.Path, length: int) -> dict[str, float]:
    """Runs one stage; returns its metrics."""
    from tfmm.ctr import train as ctr_train
    from tfmm.data import join, transform
    from tfmm.make import train as make_train

    run = run_of(length)
    patterns = [str(folder / "examples" / f"{split}-*") for split in ("train", "eval")]
    if stage == "join":
        join.write_examples(folder / "data", run.data, run.feature_set, folder / "examples")
    elif stage == "transform":
        transform.fit(folder / "examples", folder / "vocabulary")
    elif stage == "make":
        return make_train.train(run.make, *patterns, folder / "snapshot", folder / "make", run.feature_set)["metrics"]
    else:
        own = {"modalities": ("text",), "snapshot_dir": folder / "snapshot", "make_dir": folder / "make"}
        of_model = own if stage == "multimodal" else {}
        vocabulary, output = folder / "vocabulary", folder / stage
        return ctr_train.train(run.ctr, *patterns, vocabulary, output, run.feature_set, **of_model)["metrics"]
    return {}


def own_memory(pid: int) -> int:
    """Returns the bytes of memory that are a process' own, pages of files apart."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def measure(stage: str, folder: pathlib.Path, length: int) -> dict[str, float]:
    """Runs one stage in a process of its own; returns its seconds, its peak memory and its metrics."""
    command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder), "--length", str(length)]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        printed: list[str] = []
        reader = threading.Thread(target=lambda: printed.append(process.stdout.read()))
        reader.start()
        while process.poll() is None:
            try:
                peak = max(peak, own_memory(process.pid))
            except (FileNotFoundError, ProcessLookupError):
                break
            time.sleep(0.1)
        reader.join()
    if process.returncode:
        raise RuntimeError(f"{stage} ended with {process.returncode}: run `{' '.join(command)}` to see why.")
    found = json.loads(printed[0].splitlines()[-1])
    return {**found, "seconds": time.perf_counter() - start, "peak_mb": peak / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--length", type=int, default=50)
    parser.add_argument("--scratch", help="a folder on a disk with room; the system's where it is not given")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage:
        metrics = work(options.stage, options.folder, options.length)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps({"cpu_s": used.ru_utime + used.ru_stime, "metrics": metrics}))
        return
    sizes: dict[str, dict] = {}
    for num_rows in options.rows:
        with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
            folder = pathlib.Path(scratch)
            generate(num_rows, options.length, folder / "data")
            write_snapshot(folder)
            found = {stage: measure(stage, folder, options.length) for stage in STAGES}
            on_disk = sum(path.stat().st_size for path in (folder / "examples").iterdir())
        per_million = {stage: one["cpu_s"] / num_rows * 1e6 for stage, one in found.items()}
        sizes[str(num_rows)] = {
            "stages": found,
            "cpu_s_per_million_rows": {**per_million, "all": sum(per_million.values())},
            "peak_mb": max(one["peak_mb"] for one in found.values()),
            "bytes_per_row": on_disk / num_rows,
        }
        print(num_rows, json.dumps(sizes[str(num_rows)], indent=1), flush=True)
    largest = sizes[str(options.rows[-1])]
    bars = {
        "CPU seconds per million rows": recording.bar(largest["cpu_s_per_million_rows"]["all"], at_most=250),
        "peak memory of a process in MB": recording.bar(largest["peak_mb"], at_most=4000),
    }
    if len(options.rows) > 1:
        growth = largest["peak_mb"] / sizes[str(options.rows[0])]["peak_mb"]
        bars["peak memory over that of the smallest size"] = recording.bar(growth, at_most=1.1)
    name = f"any_size_{options.length}"
    recording.write(name, __doc__.splitlines()[0], {"length": options.length, "sizes": sizes}, bars=bars)


if __name__ == "__main__":
    main()
