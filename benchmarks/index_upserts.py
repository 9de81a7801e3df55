"""Do four writers and readers of one item index ever make a wrong row, and how many upserts a second does it take?

Each writer upserts rows that tell item, event and writer; items are shared, and some are withdrawn. Readers follow the
changes all the while, one of them by `snapshot`, and compaction runs beside them. In the end every row of the index and
of the reader must be that of the newest event of its item, which is known beforehand; and what a reader saw on the way
must be a row that some writer made, with sequence numbers that ascend.
"""

import argparse
import multiprocessing
import pathlib
import shutil
import subprocess
import tempfile
import time

import numpy as np
import recording

from serving.deploy import started
from tfmm.index import rows as rows_lib
from tfmm.index import store

DIM, WRITERS, BATCH = 64, 4, 256
MODALITY, VERSION = "image", "v1"
SCALE = np.float32(0.125)
WITHDRAWN_EVERY = 16  # batches of a writer, one of which withdraws


def row_of(ids, times):
    """The rows that events of these times make, int8 [n, DIM]: no two events of an item make the same."""
    mixed = (ids.astype(np.uint64)[:, None] * np.uint64(0x9E3779B97F4A7C15)
             + times.astype(np.uint64)[:, None] * np.uint64(0xC2B2AE3D27D4EB4F)
             + np.arange(DIM, dtype=np.uint64) * np.uint64(0x165667B19E3779F9))  # fmt: skip
    return (mixed >> np.uint64(33)).astype(np.uint8).view(np.int8)


def events(writer, upserts, num_items):
    """Yields (ids, times, whether they are withdrawn) of a writer's batches; times differ between writers."""
    draw = np.random.default_rng(writer)
    for number in range(upserts // WRITERS // BATCH):
        ids = draw.choice(num_items, BATCH, replace=False).astype(np.int64) + 1
        first = (number * WRITERS + writer) * BATCH + 1
        yield ids, np.arange(first, first + BATCH), number % WITHDRAWN_EVERY == WITHDRAWN_EVERY - 1


def expected(upserts, num_items):
    """The newest event of each item: (time or 0, whether it is withdrawn)."""
    times, gone = np.zeros(num_items + 1, np.int64), np.zeros(num_items + 1, bool)
    for writer in range(WRITERS):
        for ids, own, withdrawn in events(writer, upserts, num_items):
            is_newer = own > times[ids]
            times[ids[is_newer]], gone[ids[is_newer]] = own[is_newer], withdrawn
    return times, gone


def write(url, ready, writer, upserts, num_items):
    with store.open_store(url) as index:
        ready.wait()
        for ids, times, withdrawn in events(writer, upserts, num_items):
            if withdrawn:
                index.withdraw(ids.tolist(), times.tolist())
                continue
            scales, unknown = np.full(len(ids), SCALE), np.zeros(len(ids), np.int64)
            own = rows_lib.IndexRows(ids, row_of(ids, times), scales, unknown, times)
            index.apply(store.IndexBatch([store.TableRows(MODALITY, VERSION, own)]))


def wrong_rows(found):
    """Rows that no event made."""
    live = found.scales != 0
    is_wrong = (found.rows[live] != row_of(found.ids[live], found.event_times_us[live])).any(axis=1)
    return int(is_wrong.sum() + (found.scales[live] != SCALE).sum() + found.rows[~live].any())


def follow(url, ready, done, answers):
    """Reads every change until all writers have ended; answers (changes, wrong rows, ids and rows that it holds)."""
    position = seen = wrong = 0
    held = {}
    with store.open_store(url) as index:
        ready.wait()
        is_last = False
        while not is_last:
            is_last = done.is_set()
            while len(rows := index.changes(MODALITY, VERSION, position, 4096)):
                wrong += wrong_rows(rows) + int((np.diff(rows.sequences) <= 0).sum())
                position, seen = int(rows.sequences[-1]), seen + len(rows)
                for item_id, row, scale in zip(rows.ids.tolist(), rows.rows, rows.scales):
                    held.pop(item_id, None)
                    if scale:
                        held[item_id] = row.tobytes()
    answers.put(("follow", seen, wrong, held))


def look(url, ready, done, answers):
    """Takes snapshots, and compacts, until all writers have ended; answers (snapshots, wrong rows, nothing)."""
    count = wrong = 0
    with store.open_store(url) as index:
        ready.wait()
        while not done.is_set():
            found = index.snapshot({MODALITY: VERSION})[MODALITY].rows
            wrong, count = wrong + wrong_rows(found), count + 1
            index.compact()
            done.wait(1.0)
    answers.put(("look", count, wrong, {}))


def measure(url, upserts, num_items):
    """Runs writers and readers; returns figures."""
    spawn = multiprocessing.get_context("spawn")
    done, answers, ready = spawn.Event(), spawn.Queue(), spawn.Barrier(WRITERS + 4)
    with store.open_store(url) as index:
        index.register_encoder(MODALITY, VERSION, DIM)
        readers = [spawn.Process(target=work, args=(url, ready, done, answers)) for work in (follow, follow, look)]
        writers = [spawn.Process(target=write, args=(url, ready, n, upserts, num_items)) for n in range(WRITERS)]
        for process in [*readers, *writers]:
            process.start()
        ready.wait()
        start = time.perf_counter()
        for process in writers:
            process.join()
        elapsed = time.perf_counter() - start
        done.set()
        told = [answers.get() for _ in readers]
        if any(process.exitcode for process in writers):
            raise RuntimeError("A writer failed.")
        index.compact()
        times, gone = expected(upserts, num_items)
        known = np.flatnonzero((times > 0) & ~gone)
        wanted = dict(zip(known.tolist(), map(bytes, row_of(known, times[known]))))
        rows = index.embeddings(MODALITY, VERSION)
        last = dict(zip(rows.ids.tolist(), map(bytes, rows.rows)))
        wrong = {"index": differing(last, wanted)}
        for place, (kind, _, on_the_way, held) in enumerate(told):
            wrong[f"{kind} {place} on the way"] = on_the_way
            if kind == "follow":
                wrong[f"{kind} {place}, in the end"] = differing(held, wanted)
    return {"upserts_per_s": upserts / elapsed, "seconds": elapsed, "wrong_rows": wrong,
            "items_in_the_end": len(wanted), "changes_or_snapshots_read": [count for _, count, *_ in told]}  # fmt: skip


def differing(found, wanted):
    return sum(found.get(item_id) != wanted.get(item_id) for item_id in found.keys() | wanted.keys())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upserts", type=int, default=1_000_000)
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--without-record", action="store_true", help="write no results; exit 1 where a row is wrong")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as name:
        results["sqlite"] = measure(f"{name}/items.sqlite", options.upserts, options.items)
        if shutil.which("redis-server"):
            (port,) = started.free_ports(1)
            command = ["redis-server", "--bind", "127.0.0.1", "--port", str(port), "--dir", name, "--save", "",
                       "--appendonly", "yes", "--appendfsync", "everysec"]  # fmt: skip
            with subprocess.Popen(command, stdout=subprocess.DEVNULL) as server:
                try:
                    results["redis"] = measure(f"redis://127.0.0.1:{port}/0", options.upserts, options.items)
                finally:
                    server.terminate()
    wrong = sum(sum(side["wrong_rows"].values()) for side in results.values())
    if options.without_record:
        raise SystemExit(1 if wrong else 0)
    bars = {f"wrong rows of {options.upserts} upserts by {WRITERS} writers": recording.bar(wrong, at_most=0)}
    facts = {"upserts": options.upserts, "items": options.items, "dim": DIM, "batch": BATCH, "stores": results}
    recording.write(pathlib.Path(__file__).stem, __doc__.splitlines()[0], facts, seed=0, bars=bars)


if __name__ == "__main__":
    main()
