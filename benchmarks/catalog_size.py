"""How long do snapshot, load and catch-up of a large item index take, and what does an item cost a server's memory?

One modality, a fresh process for each dim: the table of an exported version, loaded by the C++ loader as servers do,
and the process's resident memory before and after; and the same of a version of one item in another process, so that
what a session and its graph take is not counted as the items'. Catch-up: a tenth of the items change after the
snapshot, and are upserted in the replicator's batches. The row is D bytes; what an item costs beyond it is the bar.
"""

import argparse
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
import recording

DIMS, BATCH, CHUNK, ROOM = (64, 128), 256, 100_000, 1.25
COLUMNS = ("ids", "rows", "scales", "sequences")
MAX_EXTRA_BYTES = 80


def resident_bytes():
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * 4096


def fill(index, first, count, dim, time_us):
    from tfmm.index import encode

    draw = np.random.default_rng([first, time_us])
    for start in range(first, first + count, CHUNK):
        ids = np.arange(start, min(start + CHUNK, first + count), dtype=np.int64)
        rows = draw.integers(-127, 128, (len(ids), dim), np.int8)
        index.write("image", "v1", ids, rows, encode.scales_of(rows), np.full(len(ids), time_us))


def save_version(folder, table):
    import tensorflow as tf

    from tfmm import saved_model

    def upsert(item_ids, rows, scales, sequences):
        return {"statuses": table.upsert(item_ids, rows, scales, sequences, tf.constant("v1"))}

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.table = table

    ids = tf.TensorSpec([None], tf.int64)
    specs = {"item_ids": ids, "rows": tf.TensorSpec([None, table.dim], tf.int8), "sequences": ids,
             "scales": tf.TensorSpec([None], tf.float32)}  # fmt: skip
    functions = {
        "upsert_items": tf.function(upsert).get_concrete_function(**specs),
        "index_status": tf.function(lambda: {"size": table.status()["size"]}).get_concrete_function(),
    }
    saved_model.save(Module(), functions, folder)


def export(folder, items, dim):
    """Fills an index, exports its table as a version; returns seconds. The process that loads it is another."""
    from tfmm.index import graph_table, snapshot, store

    seconds = {}

    def timed(name, call):
        start = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - start
        return result

    with store.open_store(folder / "items.sqlite") as index:
        timed("write", lambda: fill(index, 1, items, dim, 1))
        timed("snapshot", lambda: snapshot.write_snapshot(index, folder / "snapshot"))
        found = snapshot.load_snapshot(folder / "snapshot")["image"]
        one = dataclasses.replace(found, **{name: getattr(found, name)[:1] for name in COLUMNS})
        save_version(folder / "one_item", graph_table.GraphTable("image", one, dim, 1, "v1"))
        timed("export", lambda: save_version(
            folder / "version", graph_table.GraphTable("image", found, dim, int(items * ROOM), "v1")))  # fmt: skip
        fill(index, 1, items // 10, dim, 2)  # other rows of the same items: what a version catches up with
        (folder / "watermark").write_text(str(found.watermark))
    return seconds


def load_one_item(folder, items, dim):
    """Loads the version of one item; returns its bytes."""
    from tfmm import saved_model

    before = resident_bytes()
    with saved_model.load_session(folder / "one_item") as loaded:
        loaded("index_status", {}, ["size"])
        return {"version_bytes": resident_bytes() - before}


def load(folder, items, dim):
    """Loads a version and brings it up to date; returns seconds and bytes."""
    from tfmm import saved_model
    from tfmm.index import store

    with store.open_store(folder / "items.sqlite") as index:
        index.changes("image", "v1", 0, 1)
        before, start = resident_bytes(), time.perf_counter()
        with saved_model.load_session(folder / "version") as loaded:
            if loaded("index_status", {}, ["size"])["size"] != items:
                raise RuntimeError("The version lacks items.")
            seconds = {"load": time.perf_counter() - start}
            taken = resident_bytes() - before
            watermark, start, count = int((folder / "watermark").read_text()), time.perf_counter(), 0
            while len(rows := index.changes("image", "v1", watermark, BATCH)):
                inputs = {"item_ids": rows.ids, "rows": rows.rows, "scales": rows.scales, "sequences": rows.sequences}
                loaded("upsert_items", inputs, ["statuses"])
                watermark, count = int(rows.sequences[-1]), count + len(rows)
            seconds["catch_up"] = time.perf_counter() - start
    return {"seconds": seconds, "caught_up_rows": count, "bytes": taken}


STEPS = {step.__name__: step for step in (export, load_one_item, load)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--step", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--dim", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(json.dumps(STEPS[options.step](options.folder, options.items, options.dim)))
        return
    results, bars = {}, {}
    for dim in DIMS:
        with tempfile.TemporaryDirectory() as name:
            told = {}
            for step in STEPS:
                command = [sys.executable, __file__, "--items", str(options.items), "--step", step, "--folder", name,
                           "--dim", str(dim)]  # fmt: skip
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                told[step] = json.loads(done.stdout.splitlines()[-1])
        seconds = told["export"] | told["load"].pop("seconds")
        per_item = (told["load"]["bytes"] - told["load_one_item"]["version_bytes"]) / options.items
        extra = per_item - dim
        results[f"D={dim}"] = {"seconds": seconds, **told["load"], **told["load_one_item"], "bytes_per_item": per_item,
                               "beyond_the_row": extra}  # fmt: skip
        bars[f"bytes beyond the row per item, D={dim}"] = recording.bar(extra, at_most=MAX_EXTRA_BYTES)
    facts = {"items": options.items, "room": ROOM, "batch": BATCH, **results}
    recording.write(pathlib.Path(__file__).stem, __doc__.splitlines()[0], facts, bars=bars)


if __name__ == "__main__":
    main()
